"""From features to logits: one pooling over all positions, dropout, one dense layer for each task."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import layers

Outputs = int | Mapping[str, int]  # number of labels, or of each task's labels by the name of the task

EMBEDDING = "pool"  # the layer that ends the backbone


def classify(features: Any, n_outputs: Outputs, *, pooling: str, dropout: float) -> Any:
    """Returns the logits of features [batch, time, bins, channels] or [batch, time, channels].

    With `pooling="last"` the features are [batch, channels]: a recurrent layer has pooled them.

    Raises:
        ValueError: no pooling of that name.
    """
    return logits(features if pooling == "last" else pool(features, pooling), n_outputs, dropout=dropout)


def logits(embedding: Any, n_outputs: Outputs, *, dropout: float) -> Any:
    """Returns logits [batch, n_outputs], float32, of vectors [batch, channels]; a dict of them for several tasks."""
    x = layers.Dropout(dropout, name="head_dropout")(embedding) if dropout else embedding
    if isinstance(n_outputs, int):
        return layers.Dense(n_outputs, dtype="float32", name="logits")(x)
    return {task: layers.Dense(count, dtype="float32", name=f"logits_{task}")(x) for task, count in n_outputs.items()}


def linear(embedding: Any, n_outputs: Outputs, *, dropout: float) -> Any:
    """Returns the logits of vectors [batch, channels] that a batch normalisation without weights standardises."""
    return logits(
        layers.BatchNormalization(center=False, scale=False, dtype="float32", name="standardise")(embedding),
        n_outputs,
        dropout=dropout,
    )


def pool(features: Any, pooling: str) -> Any:
    """Returns one vector [batch, channels] of all positions: their average, maximum or attention-weighted sum.

    Raises:
        ValueError: no pooling of that name.
    """
    channels = int(features.shape[-1])
    x = layers.Reshape((-1, channels), name="positions")(features)
    if pooling == "average" or (pooling == "attention" and x.shape[1] == 1):  # one position has all the weight
        return layers.GlobalAveragePooling1D(name=EMBEDDING)(x)
    if pooling == "max":
        return layers.GlobalMaxPooling1D(name=EMBEDDING)(x)
    if pooling == "attention":
        weights = layers.Softmax(axis=1, name="attention")(layers.Dense(1, name="attention_score")(x))
        return layers.Reshape((channels,), name=EMBEDDING)(layers.Dot(axes=1, name="attend")([x, weights]))
    raise ValueError(f"pooling must be average, max or attention. Received: {pooling!r}")


def add_metadata(codes: Any, audio_logits: Any, n_tokens: int, *, width: int) -> tuple[list[Any], Any]:
    """Returns the inputs [codes, metadata] and the sum of the logits of both, [batch, n_outputs].

    The tokens of a track are embedded and summed. These layers have no bias: a track without metadata gets the logits
    of its audio alone.
    """
    metadata = keras.Input((n_tokens,), dtype="float32", name="metadata")
    x = layers.Dense(width, use_bias=False, activation="relu", name="tokens")(metadata)
    x = layers.Dense(int(audio_logits.shape[-1]), use_bias=False, dtype="float32", name="metadata_logits")(x)
    return [codes, metadata], layers.Add(name="with_metadata", dtype="float32")([audio_logits, x])
