"""Functional Keras models on segments: stored codes in, logits out; built-in layers and `keras` imports only.

A builder takes the image `x` [batch, frames, n_bins, 1], `n_outputs` and options, and returns logits; `build_model`
adds the first layers, which turn stored codes into that image, and is what the rest of tfmusic calls.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfmusic.models import cnn2d, crnn, resnet
from tfmusic.models.blocks import normalised_input

BUILDERS: dict[str, Callable[..., Any]] = {
    "cnn2d": cnn2d.build,
    "crnn": crnn.build,
    "resnet18": resnet.build_resnet18,
    "resnet34": resnet.build_resnet34,
}


def build_model(
    name: str,
    *,
    frames: int,
    n_bins: int,
    n_outputs: int,
    dtype: str = "uint8",
    mean: np.ndarray | None = None,
    variance: np.ndarray | None = None,
    width: int | None = None,
    pooling: str | None = None,
    dropout: float = 0.0,
) -> keras.Model:
    """Returns a model from stored codes [batch, frames, n_bins] to logits [batch, n_outputs], float32.

    Args:
        name: a key of `BUILDERS`.
        frames: length of the input, frames.
        n_bins: height of the input, bins.
        n_outputs: number of labels.
        dtype: storage type of the codes.
        mean: mean of the codes, one value a bin; None leaves codes as they are.
        variance: variance of the codes, one value a bin.
        width: channels of the first block; None takes the paper's.
        pooling: `average`, `max` or `attention` over what the trunk leaves of time and bins; None takes the paper's.
        dropout: share of features dropped before the last layer.

    Raises:
        KeyError: no builder of that name.
    """
    inputs, values = normalised_input((frames, n_bins), dtype=dtype, mean=mean, variance=variance)
    options = {"width": width, "pooling": pooling}
    chosen = {key: value for key, value in options.items() if value is not None}
    logits = BUILDERS[name](values, n_outputs, dropout=dropout, **chosen)
    return keras.Model(inputs, logits, name=name)
