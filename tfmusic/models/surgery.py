"""Trained models: load one from its file, split it at the embedding, fuse its batch normalisations."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from tfmusic.core.keras_file import check_keras_file
from tfmusic.errors import RunError
from tfmusic.models.heads import EMBEDDING
from tfmusic.models.ops import IS_KERAS_3


def save(model: keras.Model, path: Path) -> None:
    """Writes a model as a .keras file, also in other threads than the first, in which Keras 2 would write HDF5."""
    model.save(path, **({} if IS_KERAS_3 else {"save_format": "keras_v3"}))


def load_saved(path: Path) -> keras.Model:
    """Returns the model of a .keras file, not compiled.

    Raises:
        RunError: the file is missing, damaged or of another major version of Keras, or contains code of its own.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such file; expected a Keras model of tfmusic")
    try:
        check_keras_file(path)
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises errors of any kind on a damaged archive
        if version := other_keras(path):
            raise RunError(
                f"{path}: Keras {version} saved it, and Keras {keras.__version__} cannot read it. Use the model with"
                f" Keras {version}, or export it there as a SavedModel, or train on from its weights here with"
                " model.init_from"
            ) from error
        reason = (str(error) or repr(error)).splitlines()[0][:300]
        raise RunError(f"{path}: must be a Keras model of tfmusic. Received: {reason}") from error


def other_keras(path: Path) -> str | None:
    """Returns the version of Keras that saved a .keras file if its major version is not ours; else None."""
    try:
        with zipfile.ZipFile(path) as archive:
            version = str(json.loads(archive.open("metadata.json").read(1 << 20))["keras_version"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile):
        return None
    return None if version.split(".")[0] == keras.__version__.split(".")[0] else version


def split_at_embedding(model: keras.Model, outputs: Sequence[Any] = ()) -> tuple[keras.Model, keras.Model] | None:
    """Returns backbone and head of a model, with the model's own layers; None for a model without the layer `pool`.

    The backbone goes from codes to the embedding [batch, n_dims]. The head takes the embedding and the model's other
    inputs, such as metadata.

    Args:
        model: the model.
        outputs: tensors of the model that the head returns; empty for the model's own output.
    """
    embedding = next((layer.output for layer in model.layers if layer.name == EMBEDDING), None)
    if embedding is None:
        return None
    return keras.Model(model.inputs[0], embedding), _head(model, embedding, list(outputs) or [model.outputs[0]])


def equal_models(a: keras.Model, b: keras.Model) -> bool:
    """Returns whether two models have the same layers and, bit for bit, the same weights."""
    if a.get_config()["layers"] != b.get_config()["layers"]:
        return False
    return all(np.array_equal(w, v) for w, v in zip(a.get_weights(), b.get_weights(), strict=True))


def _head(model: keras.Model, embedding: Any, outputs: list[Any]) -> keras.Model:
    """Returns the part of a model after its embedding, on inputs of its own.

    keras.Model(embedding, outputs) makes such a model too, but then rewires the inputs that both models share.
    """
    replaced = {id(embedding): keras.Input(embedding.shape[1:], name="embedding")}
    replaced |= {id(x): keras.Input(x.shape[1:], name=f"{x.name}_input") for x in model.inputs[1:]}
    inputs = list(replaced.values())
    for layer in model.layers:
        takes_list = isinstance(layer.input, list | tuple)
        sources = [id(x) for x in (layer.input if takes_list else [layer.input])]
        is_input = isinstance(layer, layers.InputLayer)
        if is_input or id(layer.output) in replaced or not all(source in replaced for source in sources):
            continue
        arguments = [replaced[source] for source in sources]
        replaced[id(layer.output)] = layer(arguments if takes_list else arguments[0])
    head_outputs = [replaced[id(output)] for output in outputs]
    return keras.Model(
        inputs if len(inputs) > 1 else inputs[0], head_outputs if len(head_outputs) > 1 else head_outputs[0]
    )


def fuse_batch_norm(model: keras.Model) -> keras.Model:
    """Returns a model with the same logits to rounding, whose convolutions include their batch normalisation.

    In prediction, gamma (conv(x) + b - mean) / sqrt(variance + epsilon) + beta is a convolution with other weights.
    A normalisation after any other layer stays, and so does one in half precision, where the rounding would show.
    The weights are copies; the model given is not changed. Keras 2 cannot clone a model this way: there the model
    itself is returned.
    """
    if not IS_KERAS_3:
        return model
    norm_of = {conv.name: norm for conv, norm in _fusible_pairs(model)}
    fused_norms = {norm.name for norm in norm_of.values()}

    def clone(layer: Any) -> Any:
        if isinstance(layer, keras.Model):  # a member of an ensemble
            return fuse_batch_norm(layer)
        config = layer.get_config()
        if layer.name in fused_norms:
            return layers.Identity(name=layer.name, dtype=config["dtype"])
        if layer.name in norm_of:
            config["use_bias"] = True
        return layer.__class__.from_config(config)

    def call(layer: Any, *inputs: Any, **arguments: Any) -> Any:
        return layer(*inputs) if layer.name in fused_norms else layer(*inputs, **arguments)

    fused = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer in model.layers:
        if layer.name in norm_of:
            fused.get_layer(layer.name).set_weights(_fused_weights(layer, norm_of[layer.name]))
        elif layer.name not in fused_norms and layer.weights and not isinstance(layer, keras.Model):
            fused.get_layer(layer.name).set_weights(layer.get_weights())
    return fused


def _fusible_pairs(model: keras.Model) -> list[tuple[Any, Any]]:
    """Returns pairs of a linear float32 convolution and the only layer that reads it, a normalisation by channel."""
    pairs = []
    for conv in model.layers:
        is_linear = isinstance(conv, layers.Conv1D | layers.Conv2D) and conv.activation is keras.activations.linear
        if not is_linear or conv.compute_dtype != "float32":
            continue
        readers = [node.operation for node in conv._outbound_nodes]
        if len(readers) == 1 and isinstance(readers[0], layers.BatchNormalization) and _is_last(readers[0].axis, conv):
            pairs.append((conv, readers[0]))
    return pairs


def _is_last(axis: Any, conv: Any) -> bool:
    axes = axis if isinstance(axis, list | tuple) else [axis]
    return list(axes) in ([-1], [len(conv.output.shape) - 1])


def _fused_weights(conv: Any, norm: Any) -> list[np.ndarray]:
    """Returns kernel and bias of the convolution that does the work of both layers."""
    values = {weight.name: np.asarray(weight, np.float64) for weight in norm.weights}
    factor = values.get("gamma", 1.0) / np.sqrt(values["moving_variance"] + norm.epsilon)
    kernel, bias = np.asarray(conv.kernel, np.float64), np.asarray(conv.bias, np.float64) if conv.use_bias else 0.0
    return [kernel * factor, (bias - values["moving_mean"]) * factor + values.get("beta", 0.0)]
