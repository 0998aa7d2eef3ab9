"""Weights of an ensemble, from the logits of its members on tracks that none of them has trained on."""

from collections.abc import Sequence

import numpy as np

from tfmusic.scoring.aggregate import to_scores


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
