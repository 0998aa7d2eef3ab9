"""First layers that turn stored codes into the spectrogram that another network was trained on.

They do in the graph what `features.frontend` does in numpy: codes back to linear power, the map of the filterbanks,
frames in between, and the logarithm that the network wants.
"""

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from tfmusic.models import ops

FIXED = "frontend"  # the layer of the map; it is a change of units and never learns


@dataclass(frozen=True)
class MusicnnFrontend:
    """From one spectrogram to another.

    Attributes:
        matrix: map of the filterbanks, [target_bins, n_bins], none below 0.
        steps: target frames for each frame.
        factor: the target's scale is log10(factor m + 1).
        scale: name, low and high of the scale of the stored codes.
    """

    matrix: np.ndarray
    steps: int
    factor: float
    scale: tuple[str, float, float]


def musicnn_input(shape: tuple[int, int], *, dtype: str, frontend: MusicnnFrontend) -> tuple[Any, Any]:
    """Returns the input of codes [batch, frames, n_bins] and the target's image.

    The image is [batch, steps (frames - 1) + 1, target_bins, 1]. `set_frontend` gives the finished model its map.
    """
    inputs = keras.Input(shape, dtype=dtype, name="codes")
    power = power_of(inputs, dtype, frontend.scale)
    mapped = layers.Dense(
        len(frontend.matrix), use_bias=False, trainable=False, kernel_initializer="zeros", dtype="float32", name=FIXED
    )(power)
    if frontend.steps > 1:
        # Each frame n times, then the mean of n neighbours: the straight line from frame to frame.
        mapped = layers.UpSampling1D(frontend.steps, name="frontend_repeat")(mapped)
        mapped = layers.AveragePooling1D(frontend.steps, strides=1, dtype="float32", name="frontend_between")(mapped)
    values = ops.log(layers.Rescaling(frontend.factor, offset=1.0, dtype="float32", name="frontend_gain")(mapped))
    values = layers.Rescaling(1.0 / math.log(10.0), dtype="float32", name="frontend_log10")(values)
    return inputs, layers.Reshape((*values.shape[1:], 1), name="image")(values)


def set_frontend(model: keras.Model, matrix: np.ndarray) -> None:
    """Gives its map to a model that begins with one."""
    model.get_layer(FIXED).set_weights([np.asarray(matrix, np.float32).T])


def power_of(codes: Any, dtype: str, scale: tuple[str, float, float]) -> Any:
    """Returns linear power of codes, float32."""
    name, low, high = scale
    if name == "identity":
        return layers.Rescaling(1.0, dtype="float32", name="map_power")(codes)
    per_code, offset = ((high - low) / 255.0, low) if dtype == "uint8" else (1.0, 0.0)
    to_log = math.log(10.0) / (10.0 if name == "db" else 1.0)
    logs = layers.Rescaling(per_code * to_log, offset=offset * to_log, dtype="float32", name="frontend_codes")(codes)
    power = layers.Activation("exponential", dtype="float32", name="map_power")(logs)
    if name == "db":
        return power
    inner = {"log10_1p10": 10.0, "log10_1p10000": 10000.0}[name]
    return layers.Rescaling(1.0 / inner, offset=-1.0 / inner, dtype="float32", name="frontend_less_one")(power)


TIME_CONSTANT_S = 0.4  # of the average over a bin's past
GAIN, BIAS, ROOT, EPSILON = 0.98, 2.0, 0.5, 1e-6
LOUDNESS = 2.0**31  # of power: the parameters are for samples of 16 bits


@dataclass(frozen=True)
class Pcen:
    """From codes to PCEN.

    Attributes:
        matrix: the average over the past of every frame, [frames, frames], rows sum to 1.
        scale: name, low and high of the scale of the stored codes.
    """

    matrix: np.ndarray
    scale: tuple[str, float, float]


def smoothing(frames: int, frames_per_s: float) -> np.ndarray:
    """Returns the exponential average over the past as a matrix [frames, frames]; it begins with the first frame."""
    constant = TIME_CONSTANT_S * frames_per_s
    share = (math.sqrt(1.0 + 4.0 * constant**2) - 1.0) / (2.0 * constant**2)
    ages = np.arange(frames)[:, None] - np.arange(frames)
    matrix = np.where(ages >= 0, share * (1.0 - share) ** np.maximum(ages, 0), 0.0)
    matrix[:, 0] = (1.0 - share) ** np.arange(frames)
    return matrix


def pcen_input(shape: tuple[int, int], *, dtype: str, pcen: Pcen) -> tuple[Any, Any]:
    """Returns the input of codes [batch, frames, n_bins] and the image of PCEN [batch, frames, n_bins, 1].

    The map over time gets its values from `set_frontend`, as that of a frontend.
    """
    inputs = keras.Input(shape, dtype=dtype, name="codes")
    power = layers.Rescaling(LOUDNESS, dtype="float32", name="pcen_loudness")(power_of(inputs, dtype, pcen.scale))
    turned = layers.Permute((2, 1), name="pcen_bins_first")(power)
    past = layers.Dense(
        shape[0], use_bias=False, trainable=False, kernel_initializer="zeros", dtype="float32", name=FIXED
    )(turned)
    past = layers.Permute((2, 1), name="pcen_frames_first")(past)
    logs = ops.log(layers.Rescaling(1.0, offset=EPSILON, dtype="float32", name="pcen_past")(past))
    gain = _exponential(layers.Rescaling(-GAIN, dtype="float32", name="pcen_gain")(logs), "pcen_share")
    ratio = layers.Multiply(dtype="float32", name="pcen_ratio")([power, gain])
    logs = ops.log(layers.Rescaling(1.0, offset=BIAS, dtype="float32", name="pcen_bias")(ratio))
    root = _exponential(layers.Rescaling(ROOT, dtype="float32", name="pcen_root")(logs), "pcen_compressed")
    values = layers.Rescaling(1.0, offset=-(BIAS**ROOT), dtype="float32", name="pcen")(root)
    return inputs, layers.Reshape((*shape, 1), name="image")(values)


def _exponential(values: Any, name: str) -> Any:
    return layers.Activation("exponential", dtype="float32", name=name)(values)
