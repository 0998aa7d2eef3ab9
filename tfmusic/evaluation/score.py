"""The official metric of a file of predictions against a file of true labels, both in AI Rush's format."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.core.files import parse_json, text_cell
from tfmusic.datasets.airush import QUESTIONS
from tfmusic.datasets.metadata import read_columns, read_json
from tfmusic.errors import DataError
from tfmusic.scoring.metrics import (
    bootstrap_interval,
    headline_name,
    hits_and_totals,
    majority_baseline,
    metric_of_names,
)
from tfmusic.scoring.ranking import area_intervals


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
        areas: of a table with scores, value, low and high end of ROC-AUC and PR-AUC, macro and micro.
        without_scores: of such a table, the true labels that it has no scores of, which count in no area.
    """

    metric: str
    value: float
    interval: tuple[float, float]
    tracks: int
    without_prediction: int
    baseline_value: float
    areas: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    without_scores: tuple[str, ...] = ()


def score_files(predictions: Path, labels: Path, kind: str, share: float = 1.0) -> Score:
    """Returns the score of two JSON lists in data_idx order.

    Args:
        predictions: a name a track, or a list of names for several tags; null for a track without prediction. Or the
            `.csv` of `tfmusic predict`, whose scores give the areas as well.
        labels: the true labels.
        kind: `single` or `multi`.
        share: of the list that is scored, from its beginning, rounded up to a track.

    Raises:
        DataError: a file is no such list, or the two do not belong together.
    """
    table = _read_predictions(predictions, kind) if predictions.suffix == ".csv" else None
    listed = table.prediction if table else _read_list(predictions, kind)
    predicted, true = (
        _checked(listed, predictions, kind, may_lack=True),
        _checked(_read_list(labels, kind), labels, kind),
    )
    if len(predicted) != len(true):
        raise DataError(
            f"{predictions}: must have one prediction for each of the {len(true)} tracks of {labels}. Received:"
            f" {len(predicted)}"
        )
    n_scored = math.ceil(share * len(true))
    predicted, true = predicted[:n_scored], true[:n_scored]
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
        areas=_areas(table, true, kind) if table else {},
        without_scores=tuple(sorted(true_labels - set(table.labels))) if table else (),
    )


@dataclass(frozen=True)
class _Predictions:
    """A table of `tfmusic predict`: labels, predictions, and scores [n_tracks, n_labels], NaN without a prediction."""

    labels: list[str]
    prediction: list[Any]
    scores: np.ndarray


def _read_predictions(path: Path, kind: str) -> _Predictions:
    """Returns the rows of a `.csv` of `tfmusic predict`, in the order of data_idx as the inputs were."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        columns = [name for name in rows[0] if name.startswith("score:")]
        scores = np.array([[float(row[name] or "nan") for name in columns] for row in rows])
        cells = [row["prediction"] for row in rows]
        labels = [name.removeprefix("score:") for name in columns]
        by_cell = {text_cell(label): label for label in labels}  # a quote may stand before one
        listed = [
            (parse_json(cell) if kind == "multi" else by_cell.get(cell, cell)) if cell else None for cell in cells
        ]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (IndexError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: must be a table of tfmusic predict, with prediction and score:LABEL. Received: {error}"
        ) from error
    return _Predictions(labels, listed, scores)


def _areas(table: _Predictions, true: list[Any], kind: str) -> dict[str, tuple[float, float, float]]:
    """Returns the areas over the labels of the table, of the tracks that have scores."""
    rows = [row for row in range(len(true)) if np.isfinite(table.scores[row]).all()]
    named = [[true[row]] if kind == "single" else true[row] for row in rows]
    targets = np.array([[label in names for label in table.labels] for names in named], bool)
    return area_intervals(table.scores[rows], targets) if rows else {}


def _read_list(path: Path, kind: str) -> Any:
    values = read_json(path)
    return _read_table(path, kind) if isinstance(values, dict) and "track_index" in values else values


def _checked(values: Any, path: Path, kind: str, *, may_lack: bool = False) -> list[Any]:
    """Returns a list of names, or of lists of names; with `may_lack`, None for a track without prediction."""
    is_right = _is_name if kind == "single" else _is_list_of_names
    if isinstance(values, list) and values and all(is_right(v) or (may_lack and v is None) for v in values):
        return values
    expected = "names" if kind == "single" else "lists of names"
    raise DataError(f"{path}: must be a JSON list of {expected}, one a track, not empty")


def _read_table(path: Path, kind: str) -> list[Any]:
    """Returns the labels of a column table, as the organisers give answers: in the order of data_idx as a number."""
    rows = read_columns(path)
    columns = [ask.column for ask in QUESTIONS.values() if ask.kind == kind and rows and ask.column in rows[0]]
    if len(columns) != 1:
        wanted = " or ".join(ask.column for ask in QUESTIONS.values() if ask.kind == kind)
        raise DataError(
            f"{path}: must have one column of labels, {wanted}. Received: {', '.join(rows[0]) if rows else 'no row'}"
        )
    values = [row[columns[0]] for row in rows]
    if kind == "single":
        return [value[0] if isinstance(value, list) and len(value) == 1 else value for value in values]
    return [[value] if isinstance(value, str) else value for value in values]


def _labels(values: Sequence[Any], kind: str) -> set[str]:
    given = [names for names in values if names is not None]
    return set(given) if kind == "single" else {name for names in given for name in names}


def _is_name(value: object) -> bool:
    return isinstance(value, str)


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_name, value))
