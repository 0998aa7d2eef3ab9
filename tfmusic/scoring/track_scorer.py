"""From the logits of a track's windows to its prediction: the one path of validation, evaluate, predict and exports.

Calibration makes .5 the best threshold of a task with several tags. It has two steps, both fitted on held-out tracks:

1. window logits are lowered by `window_shift`, so that .5 is the best threshold for single windows;
2. the logit of the aggregated score is lowered by `track_shifts[aggregator]`, so that .5 is the best for tracks.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field, ValidationError

from tfmusic.core.contract import Contract, Kind
from tfmusic.core.files import read_json_file, write_json
from tfmusic.core.section import Count, CountOrZero, Section, first_error
from tfmusic.errors import RunError, one_line
from tfmusic.scoring import metrics
from tfmusic.scoring.aggregate import AGGREGATORS, AggregatorName, aggregate, to_logits, to_scores


class TrackScorer(Section):
    """Everything between the logits of a track's windows and its prediction.

    Attributes:
        kind: `single` for one label a track, `multi` for several tags.
        aggregator: how the windows become the track.
        top_k: how many windows the aggregator top_k_mean takes.
        window_shift: subtracted from the logits of every window.
        track_shifts: subtracted from the logit of the track's score, by aggregator; 0 where one is missing.
        min_tags: a prediction has at least so many tags.
        max_tags: and at most so many; None for no limit.
    """

    kind: Kind
    aggregator: AggregatorName = "mean"
    top_k: Count = 3
    window_shift: float = 0.0
    track_shifts: Mapping[str, float] = Field(default_factory=dict)
    min_tags: CountOrZero = 0
    max_tags: CountOrZero | None = None

    @property
    def aggregators(self) -> tuple[str, ...]:
        """The aggregators that may be compared: those that were calibrated, or all where nothing was."""
        return tuple(name for name in AGGREGATORS if not self.track_shifts or name in self.track_shifts)

    def window_scores(self, logits: np.ndarray) -> np.ndarray:
        """Returns the calibrated scores [n_windows, n_labels] of windows with logits of that shape."""
        return to_scores(logits - self.window_shift, self.kind)

    def track_scores(self, logits: np.ndarray, aggregator: str | None = None) -> np.ndarray:
        """Returns the calibrated scores [n_labels] of a track with logits [n_windows, n_labels].

        `aggregator` names another one than the scorer's own, for comparisons.
        """
        name = aggregator or self.aggregator
        scores = aggregate(logits - self.window_shift, kind=self.kind, aggregator=name, top_k=self.top_k)
        shift = self.track_shifts.get(name, 0.0)
        return to_scores(to_logits(scores) - shift, "multi") if shift else scores

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Returns which labels are predicted, bool [n_tracks, n_labels], for scores of that shape."""
        return metrics.decide(scores, self.kind, min_tags=self.min_tags, max_tags=self.max_tags)

    def names(self, scores: np.ndarray, labels: Sequence[str]) -> list[Any]:
        """Returns the predicted label name of every track, or a list of tag names that may be empty."""
        return metrics.names(self.decide(scores), labels, self.kind)

    def fit(
        self, logits: Sequence[np.ndarray], targets: np.ndarray, aggregators: Iterable[str] = tuple(AGGREGATORS)
    ) -> Self:
        """Returns this scorer calibrated on held-out tracks; one label a track needs no calibration.

        Args:
            logits: [n_windows, n_tags] of every track.
            targets: bool [n_tracks, n_tags].
            aggregators: those that will be used.
        """
        if self.kind == "single":
            return self
        repeated = np.repeat(targets, [len(track) for track in logits], axis=0)
        window_shift = _shift(to_scores(np.concatenate(logits), self.kind), repeated)
        by_window = self.model_copy(update={"window_shift": window_shift, "track_shifts": {}})
        track_shifts = {
            name: _shift(np.stack([by_window.track_scores(track, name) for track in logits]), targets)
            for name in aggregators
        }
        return by_window.model_copy(update={"track_shifts": track_shifts})

    @classmethod
    def load(cls, path: Path, contract: Contract) -> Self:
        """Returns the scorer of the task of a contract from a JSON file.

        Raises:
            RunError: the file is missing, has no scorer for this task, or one of another kind.
        """
        try:
            scorer = cls.model_validate(read_json_file(path)[contract.task])
            if scorer.kind != contract.kind:
                raise ValueError(f"kind must be {contract.kind}, as in contract.json; it is {scorer.kind}")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise RunError(
                f"{path}: must be the calibration of a tfmusic model for task {contract.task}. Received:"
                f" {first_error(error) if isinstance(error, ValidationError) else one_line(str(error))}"
            ) from error
        return scorer


def save_scorers(scorers: Mapping[str, TrackScorer], path: Path) -> None:
    """Writes the scorers of one or several tasks, by task, as one JSON file."""
    write_json(path, {task: scorer.model_dump() for task, scorer in scorers.items()})


def best_threshold(scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Returns the threshold of the best global micro-F1 and that F1; exact, by sorting; both [n, n_tags].

    The threshold lies in the middle between two scores, so that rounding cannot move a tag over it.
    """
    order = np.argsort(-scores.ravel(), kind="stable")
    sorted_scores, n_hits = scores.ravel()[order], np.cumsum(targets.ravel()[order])
    f1 = 2 * n_hits / (np.arange(1, len(order) + 1) + n_hits[-1])
    is_last_of_ties = np.append(sorted_scores[1:] < sorted_scores[:-1], True)
    best = int(np.argmax(np.where(is_last_of_ties, f1, -1.0)))
    below = sorted_scores[best + 1] if best + 1 < len(order) else 0.0
    return float((sorted_scores[best] + below) / 2), float(f1[best])


def _shift(scores: np.ndarray, targets: np.ndarray) -> float:
    return float(to_logits(np.array(best_threshold(scores, targets)[0])))
