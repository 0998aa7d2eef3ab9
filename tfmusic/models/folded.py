"""Batch normalisation folded into the convolutions before it: the same function, for inference, with less work."""

from typing import Any

import keras
import numpy as np
from keras import layers

from tfmusic.models.ops import IS_KERAS_3

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D)


def fold(model: keras.Model) -> keras.Model:
    """Returns a model of the same logits to rounding, in which each convolution does its normalisation's work.

    That is at rest, gamma (conv(x) + b - mean) / sqrt(variance + epsilon) + beta: a convolution with other weights.
    Normalisations that follow anything else stay as they are, and so do those in half precision, where rounding would
    show. The weights are copies; the model given is not changed. Keras 2 cannot do it and gets the model back.
    """
    if not IS_KERAS_3:
        return model
    pairs = {conv.name: norm for conv, norm in _foldable(model)}
    gone = {norm.name for norm in pairs.values()}

    def clone(layer: Any) -> Any:
        if isinstance(layer, keras.Model):  # a member of an ensemble
            return fold(layer)
        config = layer.get_config()
        if layer.name in gone:
            return layers.Identity(name=layer.name, dtype=config["dtype"])
        if layer.name in pairs:
            config["use_bias"] = True
        return layer.__class__.from_config(config)

    def call(layer: Any, *inputs: Any, **arguments: Any) -> Any:
        return layer(*inputs) if layer.name in gone else layer(*inputs, **arguments)

    folded = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer in model.layers:
        if layer.name in pairs:
            folded.get_layer(layer.name).set_weights(_folded_weights(layer, pairs[layer.name]))
        elif layer.name not in gone and layer.weights and not isinstance(layer, keras.Model):
            folded.get_layer(layer.name).set_weights(layer.get_weights())
    return folded


def _foldable(model: keras.Model) -> list[tuple[Any, Any]]:
    """Returns convolutions with the normalisation that alone reads them, channel by channel."""
    found = []
    for conv in model.layers:
        is_plain = isinstance(conv, _CONVOLUTIONS) and conv.activation is keras.activations.linear
        if not is_plain or conv.compute_dtype != "float32":
            continue
        readers = [node.operation for node in conv._outbound_nodes]
        if len(readers) == 1 and isinstance(readers[0], layers.BatchNormalization) and _is_last(readers[0].axis, conv):
            found.append((conv, readers[0]))
    return found


def _is_last(axis: Any, conv: Any) -> bool:
    axes = axis if isinstance(axis, list | tuple) else [axis]
    return list(axes) in ([-1], [len(conv.output.shape) - 1])


def _folded_weights(conv: Any, norm: Any) -> list[np.ndarray]:
    values = {weight.name: np.asarray(weight, np.float64) for weight in norm.weights}
    factor = values.get("gamma", 1.0) / np.sqrt(values["moving_variance"] + norm.epsilon)
    kernel, bias = np.asarray(conv.kernel, np.float64), np.asarray(conv.bias, np.float64) if conv.use_bias else 0.0
    return [kernel * factor, (bias - values["moving_mean"]) * factor + values.get("beta", 0.0)]
