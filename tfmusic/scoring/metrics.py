"""The metrics of the tasks, their intervals, and curves over the threshold and the score; as scikit-learn to 1e-12."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def accuracy(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Returns the share of tracks whose class id is right; both int [n_tracks]."""
    return float(np.mean(predicted == targets))


def micro_f1(predicted: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Returns the global micro-F1 over all tracks and tags, 0 where nothing is positive; bool [n_tracks, n_tags]."""
    rows = np.ones(len(targets)) if weights is None else weights
    hits = float(rows @ (predicted & targets).sum(1))
    marked = float(rows @ (predicted.sum(1) + targets.sum(1)))
    return 2 * hits / marked if marked else 0.0


def confusion(predicted: np.ndarray, targets: np.ndarray, n_classes: int) -> np.ndarray:
    """Returns counts [n_classes, n_classes]; rows are true classes, columns predicted ones."""
    counts = np.bincount(targets * n_classes + predicted, minlength=n_classes**2)
    return np.asarray(counts.reshape(n_classes, n_classes))


def per_label(predicted: np.ndarray, targets: np.ndarray) -> Mapping[str, np.ndarray]:
    """Returns precision, recall, F1 and support of every label; inputs bool [n_tracks, n_labels]; 0 for 0 / 0."""
    hits = (predicted & targets).sum(0)
    n_predicted, n_true = predicted.sum(0), targets.sum(0)
    precision, recall = _ratio(hits, n_predicted), _ratio(hits, n_true)
    return {"precision": precision, "recall": recall, "f1": _ratio(2 * hits, n_predicted + n_true), "support": n_true}


def one_hot(ids: np.ndarray, n_classes: int) -> np.ndarray:
    """Returns class ids as bool [n_tracks, n_classes]."""
    return np.asarray(np.arange(n_classes) == ids[:, None])


def decide(scores: np.ndarray, kind: str, *, min_tags: int = 0, max_tags: int | None = None) -> np.ndarray:
    """Returns which labels are predicted, bool [n_tracks, n_labels].

    For one label a track that is the best class. For several tags it is every tag whose score is at least .5; where
    these are fewer than `min_tags` or more than `max_tags`, the highest scores decide. Of equal scores the first
    label counts as the higher.
    """
    if kind == "single":
        return one_hot(scores.argmax(1), scores.shape[1])
    rank = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    most = scores.shape[1] if max_tags is None else max_tags
    return np.asarray(((scores >= 0.5) & (rank < most)) | (rank < min_tags))


def names(chosen: np.ndarray, labels: Sequence[str], kind: str) -> list[Any]:
    """Returns predicted labels by name: one a track, or a list of tags that may be empty."""
    lists = [[labels[i] for i in np.flatnonzero(row).tolist()] for row in chosen]
    return [row[0] for row in lists] if kind == "single" else lists


def headline(predicted: np.ndarray, targets: np.ndarray, kind: str, weights: np.ndarray | None = None) -> float:
    """Returns the metric of the task: accuracy for one label a track, global micro-F1 for several.

    Args:
        predicted: bool [n_tracks, n_labels].
        targets: bool [n_tracks, n_labels].
        kind: `single` or `multi`.
        weights: weight of every row, or None for 1.
    """
    if kind == "single":
        return float(np.average(predicted.argmax(1) == targets.argmax(1), weights=weights))
    return micro_f1(predicted, targets, weights)


def headline_name(kind: str) -> str:
    """Returns the name of the metric of a task."""
    return "accuracy" if kind == "single" else "micro_f1"


def metric_of_names(predicted: list[Any], true: list[Any], kind: str) -> float:
    """Returns the official metric of label names: exact match, or global micro-F1 over lists of tags."""
    hits, marked = hits_and_totals(predicted, true, kind).sum(0)
    return float(hits / marked) if marked else 0.0


def hits_and_totals(predicted: list[Any], true: list[Any], kind: str) -> np.ndarray:
    """Returns two numbers for every track, [n_tracks, 2]; the metric is the ratio of their sums.

    One label a track: whether it is right, and 1. Several: twice the tags in common, and all tags of both.
    """
    pairs = list(zip(predicted, true, strict=True))
    if kind == "single":
        return np.array([[float(name == true_name), 1.0] for name, true_name in pairs])
    sets = [(set(tags), set(true_tags)) for tags, true_tags in pairs]
    return np.array([[2.0 * len(tags & true_tags), float(len(tags) + len(true_tags))] for tags, true_tags in sets])


def bootstrap_interval(
    counts: np.ndarray, *, against: np.ndarray | None = None, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Returns the 95 % interval of a metric over new draws of as many tracks (Efron 1979, percentiles).

    Args:
        counts: as `hits_and_totals` returns them.
        against: those of other predictions of the same tracks; the interval is then that of the difference from them.
        samples: number of draws.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    both = counts if against is None else np.concatenate([counts, against], axis=1)
    sums = np.array([both[rng.integers(0, len(both), len(both))].sum(0) for _ in range(samples)])
    values = _ratios(sums[:, :2])
    if against is not None:
        values -= _ratios(sums[:, 2:])
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _ratios(sums: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(sums[:, 0], sums[:, 1], out=np.zeros(len(sums)), where=sums[:, 1] > 0))


def majority_baseline(true: list[Any], kind: str) -> float:
    """Returns the official metric of the best constant prediction.

    One label: the most common one. Several tags: as many of the most common tags as score best.
    """
    counts = Counter(name for names in true for name in ([names] if kind == "single" else names))
    order = [name for name, _ in counts.most_common()]
    if kind == "single":
        return metric_of_names([order[0]] * len(true), true, kind)
    return max(metric_of_names([order[:n]] * len(true), true, kind) for n in range(len(order) + 1))


def metric_intervals(
    predicted: np.ndarray, targets: np.ndarray, kind: str, *, samples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Returns value, low and high end of the 95 % interval of several metrics (bootstrap, Efron 1979, percentiles).

    One label a track: accuracy, macro recall (balanced accuracy), macro-F1. Several tags: micro-F1, precision, recall,
    macro-F1. A mean over labels takes only those that some track has.

    Args:
        predicted: bool [n_tracks, n_labels].
        targets: bool [n_tracks, n_labels].
        kind: `single` or `multi`.
        samples: number of draws of as many tracks.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    n = len(targets)
    counts = np.concatenate([predicted & targets, predicted, targets], axis=1).astype(np.float64)
    drawn = []
    for _ in range(samples):
        times = np.bincount(rng.integers(0, n, n), minlength=n)
        drawn.append([metric(*np.split(times @ counts, 3)) for metric in _METRICS[kind].values()])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    whole = [metric(*np.split(counts.sum(0), 3)) for metric in _METRICS[kind].values()]
    return {
        name: (float(value), float(below), float(above))
        for name, value, below, above in zip(_METRICS[kind], whole, low, high, strict=True)
    }


def track_f1(predicted: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the F1 of every track's prediction, [n_tracks]; both bool [n_tracks, n_labels]."""
    return np.asarray(per_label(predicted.T, targets.T)["f1"])


def _macro(above: np.ndarray, below: np.ndarray, n_true: np.ndarray) -> float:
    occurs = n_true > 0
    return float(_ratio(above, below)[occurs].mean()) if occurs.any() else 0.0


_Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], float]  # hits, predicted, true of every label
_METRICS: dict[str, dict[str, _Metric]] = {
    "single": {
        "accuracy": lambda hits, predicted, true: float(hits.sum() / max(true.sum(), 1)),
        "macro recall": lambda hits, predicted, true: _macro(hits, true, true),
        "macro-F1": lambda hits, predicted, true: _macro(2 * hits, predicted + true, true),
    },
    "multi": {
        "micro-F1": lambda hits, predicted, true: float(2 * hits.sum() / max((predicted + true).sum(), 1)),
        "precision": lambda hits, predicted, true: float(hits.sum() / max(predicted.sum(), 1)),
        "recall": lambda hits, predicted, true: float(hits.sum() / max(true.sum(), 1)),
        "macro-F1": lambda hits, predicted, true: _macro(2 * hits, predicted + true, true),
    },
}


@dataclass(frozen=True)
class ThresholdCurve:
    """Global precision, recall and micro-F1 by threshold, float64 [n_thresholds] each, 0 for 0 / 0."""

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def threshold_curve(scores: np.ndarray, targets: np.ndarray, thresholds: np.ndarray) -> ThresholdCurve:
    """Returns precision, recall and F1 where every tag whose score is at least the threshold is predicted.

    Args:
        scores: [n_tracks, n_tags].
        targets: bool [n_tracks, n_tags].
        thresholds: [n_thresholds], any order.
    """
    n_above = _count_at_least(scores.ravel(), thresholds)
    hits = _count_at_least(scores[targets], thresholds)
    return ThresholdCurve(
        thresholds, _ratio(hits, n_above), hits / max(int(targets.sum()), 1), _ratio(2 * hits, n_above + targets.sum())
    )


@dataclass(frozen=True)
class Reliability:
    """Mean score and share of hits by bin of the score, empty bins left out (Niculescu-Mizil & Caruana 2005).

    Attributes:
        score: mean score of each bin, [n_filled].
        share: share of hits in each bin, [n_filled].
        count: scores in each bin, [n_filled].
        error: mean of |score - share| over all scores, the expected calibration error (Naeini et al. 2015).
    """

    score: np.ndarray
    share: np.ndarray
    count: np.ndarray
    error: float


def reliability(scores: np.ndarray, hits: np.ndarray, *, n_bins: int = 10) -> Reliability:
    """Returns how often labels of a score are right, over bins of equal width; both inputs [n], hits bool."""
    bins = np.minimum((scores * n_bins).astype(int), n_bins - 1)
    count = np.bincount(bins, minlength=n_bins)
    filled = count > 0
    score = np.bincount(bins, scores, n_bins)[filled] / count[filled]
    share = np.bincount(bins, hits, n_bins)[filled] / count[filled]
    error = float(np.average(np.abs(score - share), weights=count[filled]))
    return Reliability(score, share, count[filled], error)


def _count_at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    ordered = np.sort(values)
    return np.asarray(len(ordered) - np.searchsorted(ordered, thresholds, side="left"))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(above, below, out=np.zeros(len(above)), where=below > 0))
