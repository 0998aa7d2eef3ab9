"""Logits of a track's windows to the scores of the track.

Every aggregator takes logits [n_windows, n_labels] and returns scores [n_labels] in [0, 1]:

    mean        mean of the window scores
    median      median of the window scores
    max         highest window score
    vote        share of windows that choose the label; the mean score counts as one more vote, so it breaks ties
    logit_mean  score of the mean logits (a product of experts)
    top_k_mean  mean of the k highest window scores of each label

A new one is added here, to the name and to the table, and to its twin in `export/savedmodel.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

AggregatorName = Literal["mean", "median", "max", "vote", "logit_mean", "top_k_mean"]
Aggregator = Callable[[np.ndarray, str, int], np.ndarray]


def to_scores(logits: np.ndarray, kind: str) -> np.ndarray:
    """Returns softmax (`single`) or sigmoid (`multi`) of logits over the last axis, float64."""
    logits = np.asarray(logits, np.float64)
    if kind == "single":
        shifted = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(shifted / shifted.sum(-1, keepdims=True))
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))  # the sigmoid that never overflows


def to_logits(scores: np.ndarray) -> np.ndarray:
    """Returns the logits of scores; 0 and 1 are taken as 1e-7 and 1 - 1e-7."""
    clipped = np.clip(np.asarray(scores, np.float64), 1e-7, 1.0 - 1e-7)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def _vote(logits: np.ndarray, kind: str, k: int) -> np.ndarray:
    scores = to_scores(logits, kind)
    best_of_row = np.arange(scores.shape[1]) == scores.argmax(1)[:, None]
    chosen = best_of_row if kind == "single" else scores >= 0.5
    return np.asarray((chosen.sum(0) + scores.mean(0)) / (len(scores) + 1))


def _top_k_mean(logits: np.ndarray, kind: str, k: int) -> np.ndarray:
    scores = np.sort(to_scores(logits, kind), axis=0)
    return np.asarray(scores[-min(k, len(scores)) :].mean(0))


AGGREGATORS: Mapping[str, Aggregator] = {
    "mean": lambda logits, kind, k: np.asarray(to_scores(logits, kind).mean(0)),
    "median": lambda logits, kind, k: np.asarray(np.median(to_scores(logits, kind), axis=0)),
    "max": lambda logits, kind, k: np.asarray(to_scores(logits, kind).max(0)),
    "vote": _vote,
    "logit_mean": lambda logits, kind, k: to_scores(logits.mean(0), kind),
    "top_k_mean": _top_k_mean,
}


def aggregate(logits: np.ndarray, *, kind: str, aggregator: str, top_k: int) -> np.ndarray:
    """Returns the scores [n_labels] of a track with logits [n_windows, n_labels]."""
    return AGGREGATORS[aggregator](np.asarray(logits, np.float64), kind, top_k)


def blend_weights(logits: Sequence[np.ndarray], targets: np.ndarray, kind: str) -> list[float]:
    """Returns the weights, 0 or more, of the sum of logits with the least log loss.

    Their sum is free: it says how sure the whole may be. One shift of all logits is fitted along and left out, since
    calibration sets it anew.

    Args:
        logits: [n_tracks, n_labels] of every member.
        targets: bool [n_tracks, n_labels].
        kind: `single` or `multi`.
    """
    from scipy.optimize import minimize

    stacked = np.stack([np.asarray(some, np.float64) for some in logits])
    n = len(stacked)

    def loss(parameters: np.ndarray) -> float:
        scores = to_scores(np.tensordot(parameters[:n], stacked, 1) + parameters[n], kind)
        right = np.where(targets, scores, 1.0 - scores if kind == "multi" else 1.0)
        return float(-np.log(np.maximum(right, 1e-12)).mean())

    bounds = [(0.0, None)] * n + [(None, None) if kind == "multi" else (0.0, 0.0)]
    found = minimize(loss, np.array([1.0 / n] * n + [0.0]), bounds=bounds, method="L-BFGS-B")
    weights = [float(weight) for weight in found.x[:n]]
    return weights if sum(weights) > 0 else [1.0 / n] * n
