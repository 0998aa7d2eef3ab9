"""A linear head without epochs: logistic regression by L-BFGS (Liu & Nocedal 1989) on what a fixed backbone computes.

The features are standardised by the training tracks. How strongly weights are held down is chosen on inner folds of the
training tracks: the strength whose held-out tracks have the lowest log loss. They are the folds of the records, which
keep artists apart; of one official split, tracks go by the first of their artists. The track that is scored plays no
part in it.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from tfmusic.console import console
from tfmusic.core.contract import Kind
from tfmusic.errors import ConfigError
from tfmusic.evaluation.held_out import TrackLogits

# Of half the squared weights, against the mean loss of a track; the more tracks, the weaker.
STRENGTHS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
_INNER_FOLDS = 4  # where there is one training split
_MOST_STEPS = 300


def solve_head(head: keras.Model, tracks: TrackLogits, folds: np.ndarray, kind: Kind) -> float:
    """Sets the weights of a head and returns the mean loss of the training tracks.

    An example is a track: the mean of its windows, whose logits are the mean of theirs.

    Args:
        head: embeddings to logits: a batch normalisation, perhaps a dropout, and a dense layer.
        tracks: the embeddings [n_windows, n_dims] of every training track.
        folds: the number of the inner fold of every track.
        kind: whether a track has one label.

    Raises:
        ConfigError: the head has other layers.
    """
    from threadpoolctl import threadpool_limits

    norm, dense = _linear_layers(head)
    # The products are small: beside other work, threads that wait for each other took 20 times as long as one.
    with threadpool_limits(limits=1, user_api="blas"):
        return _solve_layers(norm, dense, tracks, folds, kind)


def _solve_layers(norm: Any, dense: Any, tracks: TrackLogits, folds: np.ndarray, kind: Kind) -> float:
    x = np.stack([windows.mean(0, dtype=np.float64) for windows in tracks.logits])
    y = tracks.targets.astype(np.float64)
    numbers, losses = np.unique(folds), np.zeros(len(STRENGTHS))
    for number in numbers if len(numbers) > 1 else ():
        inside = folds != number
        centre, spread = _statistics(x[inside], norm.epsilon)
        for place, solution in enumerate(_solve((x[inside] - centre) / spread, y[inside], kind, STRENGTHS)):
            logits = (x[~inside] - centre) / spread @ solution.weights + solution.bias
            losses[place] += _loss(logits, y[~inside], kind)[0].sum()
    chosen = int(losses.argmin())
    centre, spread = _statistics(x, norm.epsilon)
    x = (x - centre) / spread
    solution = _solve(x, y, kind, STRENGTHS[: chosen + 1])[-1]
    values: Mapping[str, Any] = {
        "gamma": np.ones_like(centre), "beta": np.zeros_like(centre), "moving_mean": centre,
        "moving_variance": spread**2 - norm.epsilon,
    }  # fmt: skip
    norm.set_weights([values[weight.name.partition(":")[0].rpartition("/")[2]] for weight in norm.weights])
    dense.set_weights([solution.weights, solution.bias])
    console.say(
        f"linear head: weights held down by {STRENGTHS[chosen]:g}, of {STRENGTHS[-1]:g} to {STRENGTHS[0]:g} by"
        f" {len(numbers)} inner folds"
    )
    return float(_loss(x @ solution.weights + solution.bias, y, kind)[0].mean())


def inner_folds(splits: Sequence[str], groups: Sequence[frozenset[str]], names: Sequence[str]) -> np.ndarray:
    """Returns the number of the inner fold of every track, int [n_tracks].

    Args:
        splits: the split of every track; its number where there are several.
        groups: artists and album of every track, which decide where there is one split.
        names: ids of the tracks, which decide for a track without any.
    """
    if len(set(splits)) > 1:
        return np.unique(splits, return_inverse=True)[1]
    # An augmented copy goes with its track.
    keys = [min(group, default=name.partition("+copy")[0]) for group, name in zip(groups, names, strict=True)]
    return np.array([zlib.crc32(key.encode()) % _INNER_FOLDS for key in keys])


def _linear_layers(head: keras.Model) -> tuple[Any, Any]:
    found = [layer for layer in head.layers if not isinstance(layer, layers.InputLayer | layers.Dropout)]
    if [type(layer) for layer in found] != [layers.BatchNormalization, layers.Dense]:
        raise ConfigError(
            "training.optimizer=lbfgs is for a linear head: model.name=descriptors, or mlp or musicnn_mlp with"
            f" model.hidden=0. Received: a head of {', '.join(layer.name for layer in found)}"
        )
    return found[0], found[1]


class _Solution(NamedTuple):
    """Weights [n_dims, n_labels] and bias [n_labels] of standardised features."""

    weights: np.ndarray
    bias: np.ndarray


def _statistics(x: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and deviation of every feature, [n_dims]."""
    return x.mean(0), np.sqrt(x.var(0) + epsilon)


def _solve(x: np.ndarray, y: np.ndarray, kind: Kind, strengths: Sequence[float]) -> list[_Solution]:
    """Returns the solution for every strength, each found from the one before.

    Args:
        x: standardised features [n_tracks, n_dims].
        y: targets [n_tracks, n_labels].
        kind: whether a track has one label.
        strengths: the strongest first.
    """
    from scipy.optimize import minimize

    # The weights lie in the space of the tracks; where that has fewer dimensions, they are found there.
    axes = np.linalg.svd(x, full_matrices=False)[2] if len(x) < x.shape[1] else np.eye(x.shape[1])
    x = x @ axes.T
    n_dims, n_labels = x.shape[1], y.shape[1]
    point, found = np.zeros((n_dims + 1) * n_labels), []
    for strength in strengths:

        def objective(flat: np.ndarray, strength: float = strength) -> tuple[float, np.ndarray]:
            weights, bias = flat[:-n_labels].reshape(n_dims, n_labels), flat[-n_labels:]
            losses, slope = _loss(x @ weights + bias, y, kind)
            slope /= len(x)
            total = losses.mean() + 0.5 * strength * (weights**2).sum()
            return float(total), np.concatenate([(x.T @ slope + strength * weights).ravel(), slope.sum(0)])

        point = minimize(objective, point, jac=True, method="L-BFGS-B", options={"maxiter": _MOST_STEPS}).x
        found.append(_Solution(axes.T @ point[:-n_labels].reshape(n_dims, n_labels), point[-n_labels:].copy()))
    return found


def _loss(logits: np.ndarray, targets: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Returns the log loss of every row, of several tags their sum, and its slope by the logits."""
    from scipy.special import expit, log_softmax

    if kind == "single":
        log_scores = log_softmax(logits, axis=1)
        return -(targets * log_scores).sum(1), np.exp(log_scores) - targets
    return (np.logaddexp(0.0, logits) - targets * logits).sum(1), expit(logits) - targets
