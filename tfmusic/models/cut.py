"""A model in two: the trunk up to its pooling, and the head after it."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

_CUT = "pool"  # the layer that a trunk ends with


def cut(model: keras.Model, outputs: Sequence[Any] = ()) -> tuple[keras.Model, keras.Model] | None:
    """Returns the part of a model up to its pooling and the part after it; None where it has no such place.

    The layers of both are the model's. The head takes the trunk's embedding [batch, n_dims], and after it what the
    model takes beside the spectrogram; it gives `outputs`, tensors of the model, or else its own output.
    """
    end = next((layer for layer in model.layers if layer.name == _CUT), None)
    if end is None:
        return None
    return keras.Model(model.inputs[0], end.output), _head(model, end, list(outputs) or [model.outputs[0]])


def is_same(one: keras.Model, other: keras.Model) -> bool:
    """Returns whether two models are the same layers with the same weights, bit for bit."""
    if one.get_config()["layers"] != other.get_config()["layers"]:
        return False
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(np.array_equal(mine, theirs) for mine, theirs in pairs)


def _head(model: keras.Model, end: keras.layers.Layer, outputs: list[Any]) -> keras.Model:
    """Returns what a model does after a layer, on inputs of its own.

    Keras would make a model from tensors within another as well, but then rewires inputs that both share.
    """
    known = {id(end.output): keras.Input(end.output.shape[1:], name="embedding")}
    known |= {id(some): keras.Input(some.shape[1:], name=f"{some.name}_beside") for some in model.inputs[1:]}
    inputs = list(known.values())
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        needed = layer.input if isinstance(layer.input, list | tuple) else [layer.input]
        if all(id(tensor) in known for tensor in needed) and id(layer.output) not in known:
            given = [known[id(tensor)] for tensor in needed]
            known[id(layer.output)] = layer(given if isinstance(layer.input, list | tuple) else given[0])
    answers = [known[id(output)] for output in outputs]
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], answers if len(answers) > 1 else answers[0])
