"""Descriptors: statistics of a spectrogram over a window, as they were used before networks learned features.

- of every band: mean, deviation, skewness and kurtosis of the level, its maximum and minimum, and the size of its
  steps and of its rises (Tzanetakis & Cook 2002, Musical genre classification of audio signals);
- of 20 cepstral coefficients: mean, covariance and steps (Mandel & Ellis 2005, Song-level features);
- the modulation spectrum of the bands and of their onsets (Lidy & Rauber 2005, rhythm patterns).

Panda et al. 2020 (Audio features for music emotion recognition) compare such sets.

Nothing in them learns: the fixed matrices are set by `set_fixed`, and what is trained is the linear layer behind.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from tfmusic.models import ops
from tfmusic.models.heads import EMBEDDING, Outputs, linear

_RHYTHM_BANDS, _CEPSTRA = 16, 20
_MODULATIONS = 12  # bands of the modulation spectrum
_HIGHEST = 0.32  # of the frame rate: 10 Hz at 32 ms a frame
_EPSILON = 1e-3  # before a logarithm, in squared steps of 10 dB


def build(x: Any, n_outputs: Outputs, *, width: int = 32, dropout: float = 0.0) -> Any:
    """Returns the logits of a linear layer on the descriptors of an image.

    Input [batch, frames, n_bins, 1], values of a level, such as dB; at 313 x 128 and 4 outputs 137,116 parameters, of
    which the 3,604 of the linear layer learn. `width` is the number of bands. Receptive field: the whole input, which
    should have 5 s or more.
    """
    n_bins = int(x.shape[2])
    level = layers.Reshape((int(x.shape[1]), n_bins), name="level")(x)
    if level.shape[1] == 1:  # there is no step then
        level = layers.UpSampling1D(2, name="level_twice")(level)
    bands = _averaged(level, min(width, n_bins), name="bands")
    rises, steps = _rises_and_steps(bands, name="bands")
    cepstra = _fixed(min(_CEPSTRA, n_bins), name="fixed_cepstra")(level)
    parts = [
        *_moments(bands, name="bands"),
        layers.GlobalMaxPooling1D(name="bands_highest")(bands),
        layers.GlobalMaxPooling1D(name="bands_lowest")(_scaled(bands, -1.0, name="bands_negative")),
        _log_mean_square(steps, name="bands_steps"),
        _log(layers.GlobalAveragePooling1D(name="bands_rise")(rises), name="bands_rise_log"),
        layers.GlobalAveragePooling1D(name="cepstra_mean")(cepstra),
        _covariance(cepstra, name="cepstra"),
        _log_mean_square(_rises_and_steps(cepstra, name="cepstra")[1], name="cepstra_steps"),
        _modulation(_averaged(level, min(_RHYTHM_BANDS, n_bins), name="rhythm"), name="rhythm"),
        _modulation(_mean_of_bands(rises), name="onsets"),
    ]
    return linear(layers.Concatenate(name=EMBEDDING)(parts), n_outputs, dropout=dropout)


def set_fixed(model: keras.Model) -> None:
    """Sets the fixed matrices of a model; without effect on one that has none."""
    for layer in model.layers:
        matrix = _MATRICES.get(layer.name.partition("_of_")[0])
        if matrix is not None:
            layer.set_weights([matrix(*(int(size) for size in layer.kernel.shape)).astype(np.float32)])


def _cosines(n_bins: int, n_outputs: int) -> np.ndarray:
    """Returns the discrete cosine transform of a mean over bins, [n_bins, n_outputs]."""
    phase = np.pi / n_bins * np.outer(np.arange(n_bins) + 0.5, np.arange(n_outputs))
    return np.asarray(np.cos(phase) / np.sqrt(n_bins))


def _waves(frames: int, n_outputs: int) -> np.ndarray:
    """Returns cosines and sines of 1, 2, ... periods in the window under a Hann window, [frames, n_outputs]."""
    phase = 2.0 * np.pi / frames * np.outer(np.arange(frames), np.arange(1, n_outputs // 2 + 1))
    waves = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
    return np.asarray(np.hanning(frames)[:, None] * waves / np.sqrt(frames))


def _modulation_bands(n_inputs: int, n_outputs: int) -> np.ndarray:
    """Returns the mean powers of cosines and sines in bands, wider the higher they are, [n_inputs, n_outputs]."""
    n_waves = n_inputs // 2
    edges = np.unique(np.round(np.geomspace(1, n_waves + 1, n_outputs + 1)))
    edges = np.concatenate([edges, np.full(n_outputs + 1 - len(edges), n_waves + 1)])  # of few frames
    number = np.tile(np.arange(1, n_waves + 1), 2)[:, None]
    inside = (number >= edges[:-1]) & (number < edges[1:])
    return np.asarray(inside / np.maximum(inside.sum(0) / 2, 1))


_MATRICES: dict[str, Callable[[int, int], np.ndarray]] = {
    "fixed_cepstra": _cosines,
    "fixed_waves": _waves,
    "fixed_modulation": _modulation_bands,
}


def _fixed(n_outputs: int, *, name: str) -> Any:
    return layers.Dense(
        n_outputs, use_bias=False, trainable=False, kernel_initializer="zeros", dtype="float32", name=name
    )


def _averaged(level: Any, n_bands: int, *, name: str) -> Any:
    """Returns [batch, frames, n_bands or a few more]: the mean of as many neighbouring bins each."""
    frames, n_bins = int(level.shape[1]), int(level.shape[2])
    image = layers.Reshape((frames, n_bins, 1), name=f"{name}_image")(level)
    averaged = layers.AveragePooling2D((1, n_bins // n_bands), dtype="float32", name=f"{name}_average")(image)
    return layers.Reshape((frames, int(averaged.shape[2])), name=f"{name}_levels")(averaged)


def _mean_of_bands(x: Any) -> Any:
    turned = layers.Permute((2, 1), name="onsets_bins_first")(x)
    return layers.Reshape((int(x.shape[1]), 1), name="onsets_curve")(
        layers.GlobalAveragePooling1D(dtype="float32", name="onsets_average")(turned)
    )


def _moments(x: Any, *, name: str) -> list[Any]:
    """Returns mean, logarithm of the variance, skewness and kurtosis over the frames, [batch, bands] each."""
    mean = layers.GlobalAveragePooling1D(name=f"{name}_mean")(x)
    centred = _centred(x, mean, name=name)
    powers = [centred]
    for exponent in (2, 3, 4):
        powers.append(layers.Multiply(dtype="float32", name=f"{name}_power{exponent}")([powers[-1], centred]))
    second, third, fourth = (
        layers.GlobalAveragePooling1D(name=f"{name}_moment{i}")(power) for i, power in enumerate(powers[1:], 2)
    )
    spread = _log(second, name=f"{name}_spread")
    third = layers.Multiply(dtype="float32", name=f"{name}_skewness")(
        [third, _exponential(_scaled(spread, -1.5, name=f"{name}_spread3"), name=f"{name}_per_cube")]
    )
    fourth = layers.Multiply(dtype="float32", name=f"{name}_peaks")(
        [fourth, _exponential(_scaled(spread, -2.0, name=f"{name}_spread4"), name=f"{name}_per_fourth")]
    )
    return [mean, spread, third, _log(fourth, name=f"{name}_kurtosis")]


def _centred(x: Any, mean: Any, *, name: str) -> Any:
    row = layers.Reshape((1, int(x.shape[2])), name=f"{name}_mean_row")(_scaled(mean, -1.0, name=f"{name}_minus_mean"))
    return layers.Add(dtype="float32", name=f"{name}_centred")(
        [x, layers.UpSampling1D(int(x.shape[1]), name=f"{name}_mean_rows")(row)]
    )


def _rises_and_steps(x: Any, *, name: str) -> tuple[Any, Any]:
    """Returns what a frame is above the one before, at least 0, and the difference, [batch, frames - 1, bands] each."""
    after = layers.Cropping1D((1, 0), name=f"{name}_after")(x)
    before = _scaled(layers.Cropping1D((0, 1), name=f"{name}_before")(x), -1.0, name=f"{name}_minus_before")
    steps = layers.Add(dtype="float32", name=f"{name}_differences")([after, before])
    return layers.ReLU(dtype="float32", name=f"{name}_rises")(steps), steps


def _covariance(x: Any, *, name: str) -> Any:
    mean = layers.GlobalAveragePooling1D(name=f"{name}_centre")(x)
    centred = _centred(x, mean, name=name)
    products = layers.Dot(axes=1, dtype="float32", name=f"{name}_products")([centred, centred])
    flat = layers.Reshape((int(x.shape[2]) ** 2,), name=f"{name}_flat")(products)
    return _scaled(flat, 1.0 / int(x.shape[1]), name=f"{name}_covariance")


def _modulation(x: Any, *, name: str) -> Any:
    """Returns the logarithm of the modulation spectrum of every band, [batch, bands * _MODULATIONS]."""
    frames, n_bands = int(x.shape[1]), int(x.shape[2])
    mean = layers.GlobalAveragePooling1D(name=f"{name}_level")(x)
    turned = layers.Permute((2, 1), name=f"{name}_turned")(_centred(x, mean, name=name))
    waves = _fixed(2 * max(int(_HIGHEST * frames), 1), name=f"fixed_waves_of_{name}")(turned)
    power = layers.Multiply(dtype="float32", name=f"{name}_wave_power")([waves, waves])
    bands = _fixed(_MODULATIONS, name=f"fixed_modulation_of_{name}")(power)
    return layers.Reshape((n_bands * _MODULATIONS,), name=f"{name}_modulation")(_log(bands, name=f"{name}_log"))


def _log_mean_square(x: Any, *, name: str) -> Any:
    square = layers.Multiply(dtype="float32", name=f"{name}_square")([x, x])
    return _log(layers.GlobalAveragePooling1D(name=f"{name}_mean_square")(square), name=f"{name}_log")


def _log(x: Any, *, name: str) -> Any:
    return ops.log(layers.Rescaling(1.0, offset=_EPSILON, dtype="float32", name=name)(x))


def _scaled(x: Any, factor: float, *, name: str) -> Any:
    return layers.Rescaling(factor, dtype="float32", name=name)(x)


def _exponential(x: Any, *, name: str) -> Any:
    return layers.Activation("exponential", dtype="float32", name=name)(x)
