"""The threshold that makes micro-F1 best, moved to .5 by a shift of logits.

Calibration has two steps, both on validation tracks only, both for tasks with several tags:

1. segment logits are lowered by `segment_shift`, so that .5 is the best threshold for single segments;
2. the aggregated score's logit is lowered by `track_shift[aggregator]`, so that .5 is the best threshold for tracks.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from tfmusic.core.files import read_json_file, write_text
from tfmusic.errors import RunError
from tfmusic.scoring.aggregate import AGGREGATORS, aggregate, to_logits, to_scores
from tfmusic.scoring.metrics import NO_LIMITS, Limits


def best_threshold(scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Returns the threshold of the best global micro-F1 and that F1; exact, by sorting; both [n, n_tags].

    The threshold lies in the middle between two scores, so that rounding cannot move a tag over it.
    """
    flat, hit = scores.ravel(), targets.ravel()
    order = np.argsort(-flat, kind="stable")
    flat, hits = flat[order], np.cumsum(hit[order])
    f1 = 2 * hits / (np.arange(1, len(flat) + 1) + hits[-1])
    last_of_ties = np.append(flat[1:] < flat[:-1], True)
    best = int(np.argmax(np.where(last_of_ties, f1, -1.0)))
    below = flat[best + 1] if best + 1 < len(flat) else 0.0
    return float((flat[best] + below) / 2), float(f1[best])


@dataclass(frozen=True)
class Calibration:
    """Shifts that are subtracted from logits: one for segments, one for tracks under each aggregator.

    The limits of the number of tags travel along, as both decide what scores mean.
    """

    segment_shift: float = 0.0
    track_shift: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(AGGREGATORS, 0.0))
    limits: Limits = NO_LIMITS

    @classmethod
    def fit(
        cls,
        logits: Sequence[np.ndarray],
        targets: np.ndarray,
        *,
        top_k: int,
        aggregators: Iterable[str] = tuple(AGGREGATORS),
        limits: Limits = NO_LIMITS,
    ) -> Self:
        """Returns the calibration of a task with several tags.

        Args:
            logits: [n_segments, n_tags] of every validation track.
            targets: bool [n_tracks, n_tags].
            top_k: parameter of the aggregator top_k_mean.
            aggregators: those that will be asked for; the others keep a shift of 0.
            limits: of the number of tags, kept with the shifts.
        """
        repeated = np.repeat(targets, [len(track) for track in logits], axis=0)
        segment_shift = _shift(to_scores(np.concatenate(logits), "multi"), repeated)
        track_shift = dict.fromkeys(AGGREGATORS, 0.0)
        for name in aggregators:
            scores = [aggregate(track - segment_shift, kind="multi", aggregator=name, top_k=top_k) for track in logits]
            track_shift[name] = _shift(np.stack(scores), targets)
        return cls(segment_shift, track_shift, limits)

    def track_scores(self, logits: np.ndarray, *, kind: str, aggregator: str, top_k: int) -> np.ndarray:
        """Returns the calibrated scores [n_labels] of a track with logits [n_segments, n_labels]."""
        scores = aggregate(logits - self.segment_shift, kind=kind, aggregator=aggregator, top_k=top_k)
        shift = self.track_shift[aggregator]
        return to_scores(to_logits(scores) - shift, "multi") if shift else scores

    def segment_scores(self, logits: np.ndarray, *, kind: str) -> np.ndarray:
        """Returns the calibrated scores [n_segments, n_labels] of segments."""
        return to_scores(logits - self.segment_shift, kind)

    def save(self, path: Path) -> None:
        """Writes the calibration as JSON."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path, task: str | None = None) -> Self:
        """Returns the calibration of a JSON file, that of one task where it has several.

        Raises:
            RunError: the file is missing or holds no such calibration.
        """
        try:
            fields = read_json_file(path)
            fields = fields if task is None else fields[task]
            shifts = {name: float(fields["track_shift"][name]) for name in AGGREGATORS}
            least, most = fields.get("limits", NO_LIMITS)
            found = cls(float(fields["segment_shift"]), shifts, Limits(int(least), None if most is None else int(most)))
            if not np.isfinite([found.segment_shift, *shifts.values()]).all():  # NaN would answer without a word
                raise ValueError("shifts must be finite")
            return found
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise RunError(f"{path}: must be the calibration of a tfmusic model: {error}") from error


def save_by_task(path: Path, calibrations: Mapping[str, Calibration]) -> None:
    """Writes the calibrations of several tasks as one JSON file."""
    write_text(path, json.dumps({task: asdict(item) for task, item in calibrations.items()}, indent=1) + "\n")


def _shift(scores: np.ndarray, targets: np.ndarray) -> float:
    return float(to_logits(np.array(best_threshold(scores, targets)[0])))
