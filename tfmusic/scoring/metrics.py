"""The metrics of the tasks; all agree with scikit-learn to 1e-12."""

from collections import Counter
from collections.abc import Mapping, Sequence
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


def score_answers(predicted: list[Any], answers: list[Any], kind: str) -> float:
    """Returns the official metric of label names: exact match, or global micro-F1 over lists of tags."""
    hits, marked = answer_counts(predicted, answers, kind).sum(0)
    return float(hits / marked) if marked else 0.0


def answer_counts(predicted: list[Any], answers: list[Any], kind: str) -> np.ndarray:
    """Returns two numbers for every track, [n_tracks, 2]; the metric is the ratio of their sums.

    One label a track: whether it is right, and 1. Several: twice the tags in common, and all tags of both.
    """
    pairs = list(zip(predicted, answers, strict=True))
    if kind == "single":
        return np.array([[float(mine == theirs), 1.0] for mine, theirs in pairs])
    sets = [(set(mine), set(theirs)) for mine, theirs in pairs]
    return np.array([[2.0 * len(mine & theirs), float(len(mine) + len(theirs))] for mine, theirs in sets])


def bootstrap_interval(counts: np.ndarray, *, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of a metric over new draws of as many tracks (Efron 1979, percentiles).

    Args:
        counts: as `answer_counts` returns them.
        samples: number of draws.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    sums = np.array([counts[rng.integers(0, len(counts), len(counts))].sum(0) for _ in range(samples)])
    values = np.divide(sums[:, 0], sums[:, 1], out=np.zeros(samples), where=sums[:, 1] > 0)
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def best_constant(answers: list[Any], kind: str) -> float:
    """Returns the official metric of one and the same answer for every track, the best there is for these answers.

    One label: the most common one. Several tags: the most common tags, as many of them as serve best.
    """
    counts = Counter(name for answer in answers for name in ([answer] if kind == "single" else answer))
    order = [name for name, _ in counts.most_common()]
    if kind == "single":
        return score_answers([order[0]] * len(answers), answers, kind)
    return max(score_answers([order[:n]] * len(answers), answers, kind) for n in range(len(order) + 1))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(above, below, out=np.zeros(len(above)), where=below > 0))
