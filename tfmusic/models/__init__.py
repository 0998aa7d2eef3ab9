"""Functional Keras models on segments: stored codes in, logits out; built-in layers and `keras` imports only.

A builder takes the image `x` [batch, frames, n_bins, 1], `n_outputs` and options, and returns logits; `build_model`
adds the first layers, which turn stored codes into that image, and is what the rest of tfmusic calls.
"""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from tfmusic.models import cnn, descriptors, musicnn, recurrent, resnet, shortchunk, vgg
from tfmusic.models.frontends import FRONTEND_LAYER, Frontend, codes_to_image, set_frontend
from tfmusic.models.heads import Outputs, add_metadata

BUILDERS: dict[str, Callable[..., Any]] = {
    "cnn1d": cnn.build_cnn1d,
    "cnn2d": cnn.build_cnn2d,
    "vgg13": vgg.build_vgg13,
    "vgg16": vgg.build_vgg16,
    "vgg19": vgg.build_vgg19,
    "resnet18": resnet.build_resnet18,
    "resnet34": resnet.build_resnet34,
    "resnet50": resnet.build_resnet50,
    "resnet101": resnet.build_resnet101,
    "crnn": recurrent.build_crnn,
    "resnet_gru": recurrent.build_resnet_gru,
    "convgru1d": recurrent.build_convgru1d,
    "shortchunk": shortchunk.build_shortchunk,
    "shortchunk_res": shortchunk.build_shortchunk_res,
    "musicnn": musicnn.build,
    "musicnn_mlp": musicnn.build_mlp,
    "mlp": cnn.build_mlp,
    "descriptors": descriptors.build,
}


def models_with(option: str) -> list[str]:
    """Returns the names of the models whose builders take an option."""
    return [name for name, builder in BUILDERS.items() if option in inspect.signature(builder).parameters]


def build_model(
    name: str,
    *,
    frames: int,
    n_bins: int,
    n_outputs: Outputs,
    dtype: str = "uint8",
    mean: np.ndarray | None = None,
    variance: np.ndarray | None = None,
    frontend: Frontend | None = None,
    n_tokens: int = 0,
    token_width: int = 32,
    **options: Any,
) -> keras.Model:
    """Returns a model from stored codes [batch, frames, n_bins] to logits [batch, n_outputs], float32.

    With `n_tokens` the input is a pair, codes and metadata tokens [batch, n_tokens], and the logits are the sum of both
    parts. The logits of several tasks are concatenated; the layer `logits_TASK` has those of one.

    Args:
        name: a key of `BUILDERS`.
        frames: length of the input, frames.
        n_bins: height of the input, bins.
        n_outputs: number of labels, or that of every task by name.
        dtype: storage type of the codes.
        mean: mean of the codes, one value a bin; None leaves codes as they are.
        variance: variance of the codes, one value a bin.
        frontend: maps codes to musicnn's spectrogram or to PCEN, in place of normalised codes.
        n_tokens: number of metadata tokens; 0 for none. For one task alone.
        token_width: size of their embedding.
        options: those of the builder: `width`, `pooling`, `dropout`, of some also others. One that is None or left out
            has the builder's default, the paper's value; only `dropout` is then 0.

    Raises:
        KeyError: there is no builder of that name.
        TypeError: the builder does not take an option.
    """
    inputs, image = codes_to_image((frames, n_bins), dtype=dtype, frontend=frontend, mean=mean, variance=variance)
    given = {key: value for key, value in options.items() if value is not None}
    logits = BUILDERS[name](image, n_outputs, **{"dropout": 0.0} | given)
    if isinstance(logits, dict):
        logits = layers.Concatenate(name="logits", dtype="float32")(list(logits.values()))
    if n_tokens:
        inputs, logits = add_metadata(inputs, logits, n_tokens, width=token_width)
    model = keras.Model(inputs, logits, name=name)
    descriptors.set_fixed(model)
    if frontend is not None:
        set_frontend(model, frontend.matrix)
    return model


build = build_model  # `tfmusic.models.build`, where the package says what is built


def is_fixed(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer is a fixed matrix of a frontend or of descriptors, which never learns."""
    return bool(layer.name == FRONTEND_LAYER or layer.name.startswith("fixed_"))


def for_prediction(model: keras.Model) -> keras.Model:
    """Returns the model, compiled to predict: XLA on a CPU costs TensorFlow more than it gives; JAX needs it."""
    model.compile(jit_compile=keras.backend.backend() == "jax")
    return model
