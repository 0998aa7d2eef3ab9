"""Trained models from their files."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from tfmusic.errors import RunError
from tfmusic.models.ops import IS_KERAS_3


def load_saved(path: Path) -> keras.Model:
    """Returns the model of a .keras file, not compiled.

    Raises:
        RunError: the file is missing or damaged, or the model would run code of its own.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such file; it must be a Keras model of tfmusic")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises errors of any kind on a damaged archive
        theirs = _saved_by(path)
        if theirs and theirs.split(".")[0] != keras.__version__.split(".")[0]:
            raise RunError(
                f"{path}: saved by Keras {theirs}, which Keras {keras.__version__} cannot read: use it on its own"
                " stack, or export it there (a SavedModel answers anywhere), or train on from its weights here with"
                " model.init_from"
            ) from error
        raise RunError(
            f"{path}: must be a Keras model of tfmusic: {(str(error) or repr(error)).splitlines()[0][:300]}"
        ) from error


def _saved_by(path: Path) -> str | None:
    """Returns the version of Keras that wrote a .keras file, or None of a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(archive.read("metadata.json"))["keras_version"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile):
        return None


_CUT = "pool"  # the layer that a backbone ends with


def cut(model: keras.Model, outputs: Sequence[Any] = ()) -> tuple[keras.Model, keras.Model] | None:
    """Returns the part of a model up to its pooling and the part after it; None where it has no such place.

    The layers of both are the model's. The head takes the backbone's embedding [batch, n_dims], and after it what the
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


_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D)


def fuse_batch_norm(model: keras.Model) -> keras.Model:
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
            return fuse_batch_norm(layer)
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
            folded.get_layer(layer.name).set_weights(_fused_weights(layer, pairs[layer.name]))
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


def _fused_weights(conv: Any, norm: Any) -> list[np.ndarray]:
    values = {weight.name: np.asarray(weight, np.float64) for weight in norm.weights}
    factor = values.get("gamma", 1.0) / np.sqrt(values["moving_variance"] + norm.epsilon)
    kernel, bias = np.asarray(conv.kernel, np.float64), np.asarray(conv.bias, np.float64) if conv.use_bias else 0.0
    return [kernel * factor, (bias - values["moving_mean"]) * factor + values.get("beta", 0.0)]
