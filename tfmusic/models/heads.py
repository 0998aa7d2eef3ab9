"""From features to logits: one pooling over all positions, dropout, one dense layer."""

from typing import Any

from keras import layers


def classify(features: Any, n_outputs: int, *, pooling: str, dropout: float) -> Any:
    """Returns logits [batch, n_outputs], float32, of features [batch, time, bins, channels] or [batch, time, channels].

    `pooling: last` is for features [batch, channels] that a recurrent layer has already pooled.

    Raises:
        ValueError: no pooling of that name.
    """
    x = features if pooling == "last" else pool(features, pooling)
    if dropout:
        x = layers.Dropout(dropout, name="head_dropout")(x)
    return layers.Dense(n_outputs, dtype="float32", name="logits")(x)


def pool(features: Any, pooling: str) -> Any:
    """Returns one vector [batch, channels] of all positions: their average, maximum, or attention-weighted sum."""
    channels = int(features.shape[-1])
    x = layers.Reshape((-1, channels), name="positions")(features)
    if pooling == "average" or (pooling == "attention" and x.shape[1] == 1):  # one position has all the weight
        return layers.GlobalAveragePooling1D(name="pool")(x)
    if pooling == "max":
        return layers.GlobalMaxPooling1D(name="pool")(x)
    if pooling == "attention":
        weights = layers.Softmax(axis=1, name="attention")(layers.Dense(1, name="attention_score")(x))
        return layers.Reshape((channels,), name="pool")(layers.Dot(axes=1, name="attend")([x, weights]))
    raise ValueError(f"pooling must be average, max or attention. Received: {pooling!r}")
