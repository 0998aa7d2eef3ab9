"""Curves over the threshold and over the score: what a threshold costs, and how far scores are to be believed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tfmusic.scoring.metrics import per_label


@dataclass(frozen=True)
class ThresholdCurve:
    """Global precision, recall and micro-F1 by threshold, float64 [n_thresholds] each, 0 for 0 / 0."""

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def threshold_curve(scores: np.ndarray, targets: np.ndarray, thresholds: np.ndarray) -> ThresholdCurve:
    """Returns what comes out where every tag whose score is at least the threshold is answered.

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
        count: answers in each bin, [n_filled].
        error: mean of |score - share| over all answers, the expected calibration error (Naeini et al. 2015).
    """

    score: np.ndarray
    share: np.ndarray
    count: np.ndarray
    error: float


def reliability(scores: np.ndarray, hits: np.ndarray, *, n_bins: int = 10) -> Reliability:
    """Returns how often answers of a score are right, over bins of equal width; both inputs [n], hits bool."""
    place = np.minimum((scores * n_bins).astype(int), n_bins - 1)
    count = np.bincount(place, minlength=n_bins)
    filled = count > 0
    score = np.bincount(place, scores, n_bins)[filled] / count[filled]
    share = np.bincount(place, hits, n_bins)[filled] / count[filled]
    error = float(np.average(np.abs(score - share), weights=count[filled]))
    return Reliability(score, share, count[filled], error)


def metric_intervals(
    predicted: np.ndarray, targets: np.ndarray, kind: str, *, samples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Returns value, low and high end of the 95 % interval of several metrics (bootstrap, Efron 1979, percentiles).

    One label a track: accuracy, macro recall (balanced accuracy), macro-F1. Several tags: micro-F1, precision, recall,
    macro-F1. A mean over labels takes only those that some track has.

    Args:
        predicted: bool [n_tracks, n_labels], the answers.
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
    """Returns the F1 of every track's answer, [n_tracks]; both bool [n_tracks, n_labels]."""
    return np.asarray(per_label(predicted.T, targets.T)["f1"])


def _macro(above: np.ndarray, below: np.ndarray, n_true: np.ndarray) -> float:
    known = n_true > 0
    return float(_ratio(above, below)[known].mean()) if known.any() else 0.0


_Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], float]  # hits, answered, true of every label
_METRICS: dict[str, dict[str, _Metric]] = {
    "single": {
        "accuracy": lambda hits, answered, true: float(hits.sum() / max(true.sum(), 1)),
        "macro recall": lambda hits, answered, true: _macro(hits, true, true),
        "macro-F1": lambda hits, answered, true: _macro(2 * hits, answered + true, true),
    },
    "multi": {
        "micro-F1": lambda hits, answered, true: float(2 * hits.sum() / max((answered + true).sum(), 1)),
        "precision": lambda hits, answered, true: float(hits.sum() / max(answered.sum(), 1)),
        "recall": lambda hits, answered, true: float(hits.sum() / max(true.sum(), 1)),
        "macro-F1": lambda hits, answered, true: _macro(2 * hits, answered + true, true),
    },
}


def _count_at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    ordered = np.sort(values)
    return np.asarray(len(ordered) - np.searchsorted(ordered, thresholds, side="left"))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(above, below, out=np.zeros(len(above)), where=below > 0))
