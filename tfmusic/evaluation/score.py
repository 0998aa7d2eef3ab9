"""The official metric of a file of predictions against a file of true labels, both in AI Rush's format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmusic.datasets.metadata import read_json
from tfmusic.errors import DataError
from tfmusic.scoring.metrics import (
    bootstrap_interval,
    headline_name,
    hits_and_totals,
    majority_baseline,
    metric_of_names,
)


@dataclass(frozen=True)
class Score:
    """The metric of a file of predictions.

    Attributes:
        metric: its name.
        value: exact match, or global micro-F1 for several tags.
        interval: low and high end of its 95 % interval.
        tracks: how many were scored.
        without_prediction: how many of them have no prediction, which counts as wrong.
        baseline_value: the metric of the majority baseline.
    """

    metric: str
    value: float
    interval: tuple[float, float]
    tracks: int
    without_prediction: int
    baseline_value: float


def score_files(predictions: Path, labels: Path, kind: str) -> Score:
    """Returns the score of two JSON lists in data_idx order.

    Args:
        predictions: a name a track, or a list of names for several tags; null for a track without prediction.
        labels: the true labels.
        kind: `single` or `multi`.

    Raises:
        DataError: a file is no such list, or the two do not belong together.
    """
    predicted, true = _read(predictions, kind, may_lack=True), _read(labels, kind)
    if len(predicted) != len(true):
        raise DataError(
            f"{predictions}: must have one prediction for each of the {len(true)} tracks of {labels}. Received:"
            f" {len(predicted)}"
        )
    predicted_labels, true_labels = _labels(predicted, kind), _labels(true, kind)
    if predicted_labels and true_labels and predicted_labels.isdisjoint(true_labels):
        raise DataError(
            f"{predictions}: must be of the same task as {labels}, which has labels such as {min(true_labels)!r}."
            f" Received: only other labels, such as {min(predicted_labels)!r}"
        )
    nothing: Any = [] if kind == "multi" else None
    filled = [nothing if names is None else names for names in predicted]
    return Score(
        metric=headline_name(kind),
        value=metric_of_names(filled, true, kind),
        interval=bootstrap_interval(hits_and_totals(filled, true, kind)),
        tracks=len(true),
        without_prediction=predicted.count(None),
        baseline_value=majority_baseline(true, kind),
    )


def _read(path: Path, kind: str, *, may_lack: bool = False) -> list[Any]:
    """Returns a list of names, or of lists of names; with `may_lack`, None for a track without prediction."""
    values = read_json(path)
    is_right = _is_name if kind == "single" else _is_list_of_names
    if isinstance(values, list) and values and all(is_right(v) or (may_lack and v is None) for v in values):
        return values
    expected = "names" if kind == "single" else "lists of names"
    raise DataError(f"{path}: must be a JSON list of {expected}, one a track, not empty")


def _labels(values: Sequence[Any], kind: str) -> set[str]:
    given = [names for names in values if names is not None]
    return set(given) if kind == "single" else {name for names in given for name in names}


def _is_name(value: object) -> bool:
    return isinstance(value, str)


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_name, value))
