"""Frontends: the first layers of a model, from stored codes to the image that the network sees.

- no frontend: codes, normalised by the statistics of the records;
- `MusicnnFrontend`: another mel-spectrogram, computed in the graph as `features.filterbanks` computes it in numpy;
- `Pcen`: per-channel energy normalisation (Wang et al. 2017, arXiv 1607.05666).

The last two begin with linear power and contain one fixed matrix product, the layer `FRONTEND_LAYER`.
"""

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from tfmusic.core.scale import Scale
from tfmusic.models import ops

FRONTEND_LAYER = "frontend"  # the layer of the fixed matrix; it never learns

# PCEN: the paper's parameters, which librosa.pcen uses too; they are for samples of 16 bits.
PCEN_TIME_CONSTANT_S = 0.4  # of the running average of a bin
PCEN_GAIN, PCEN_BIAS, PCEN_POWER, PCEN_EPSILON = 0.98, 2.0, 0.5, 1e-6
PCEN_POWER_OF_16_BITS = 2.0**31


@dataclass(frozen=True)
class MusicnnFrontend:
    """From mel power to the mel-spectrogram that musicnn was trained on.

    Attributes:
        matrix: map between the filterbanks, [target_bins, n_bins], no value below 0.
        steps: target frames for each frame.
        factor: the target's scale is log10(factor * power + 1).
        scale: the scale of the stored codes.
    """

    matrix: np.ndarray
    steps: int
    factor: float
    scale: Scale

    def apply(self, codes: Any, dtype: str) -> Any:
        """Returns the target spectrogram [batch, steps (frames - 1) + 1, target_bins] of codes."""
        power = power_of(codes, dtype, self.scale)
        mapped = _fixed_matrix(len(self.matrix))(power)
        if self.steps > 1:
            # Each frame n times, then the mean of n neighbours: linear interpolation between frames.
            mapped = layers.UpSampling1D(self.steps, name="frontend_repeat")(mapped)
            mapped = layers.AveragePooling1D(
                self.steps, strides=1, dtype="float32", name="frontend_interpolate"
            )(mapped)  # fmt: skip
        values = ops.log(_affine(mapped, self.factor, 1.0, name="frontend_gain"))
        return _affine(values, 1.0 / math.log(10.0), name="frontend_log10")


@dataclass(frozen=True)
class Pcen:
    """From mel power to PCEN.

    Attributes:
        matrix: running average over the past of every frame, [frames, frames], rows sum to 1.
        scale: the scale of the stored codes.
    """

    matrix: np.ndarray
    scale: Scale

    def apply(self, codes: Any, dtype: str) -> Any:
        """Returns PCEN [batch, frames, n_bins] of codes."""
        power = _affine(power_of(codes, dtype, self.scale), PCEN_POWER_OF_16_BITS, name="pcen_loudness")
        turned = layers.Permute((2, 1), name="pcen_bins_first")(power)  # [batch, n_bins, frames]
        average = layers.Permute((2, 1), name="pcen_frames_first")(_fixed_matrix(len(self.matrix))(turned))
        logs = ops.log(_affine(average, 1.0, PCEN_EPSILON, name="pcen_average"))
        gain = _exponential(_affine(logs, -PCEN_GAIN, name="pcen_log_gain"), name="pcen_gain")
        ratio = layers.Multiply(dtype="float32", name="pcen_ratio")([power, gain])
        logs = ops.log(_affine(ratio, 1.0, PCEN_BIAS, name="pcen_bias"))
        root = _exponential(_affine(logs, PCEN_POWER, name="pcen_power"), name="pcen_root")
        return _affine(root, 1.0, -(PCEN_BIAS**PCEN_POWER), name="pcen")


Frontend = MusicnnFrontend | Pcen


def codes_to_image(
    shape: tuple[int, int],
    *,
    dtype: str,
    frontend: Frontend | None = None,
    mean: np.ndarray | None = None,
    variance: np.ndarray | None = None,
) -> tuple[Any, Any]:
    """Returns the input of codes [batch, frames, n_bins] and the image [batch, frames, bins, 1] for the network.

    The cast to float is here, on the device: until then a code is a byte. Call `set_frontend` on the finished model.

    Args:
        shape: frames and bins of the input.
        dtype: storage type of the codes.
        frontend: layers that compute the image; None to normalise the codes.
        mean: mean of the codes, one value a bin; None leaves codes as they are.
        variance: variance of the codes, one value a bin. A bin that never changes keeps variance 1, and becomes 0.
    """
    codes = keras.Input(shape, dtype=dtype, name="codes")
    values = _normalise(codes, mean, variance) if frontend is None else frontend.apply(codes, dtype)
    return codes, layers.Reshape((*values.shape[1:], 1), name="image")(values)


def set_frontend(model: keras.Model, matrix: np.ndarray) -> None:
    """Sets the fixed matrix of a model with a frontend."""
    model.get_layer(FRONTEND_LAYER).set_weights([np.asarray(matrix, np.float32).T])


def smoothing(frames: int, frames_per_s: float) -> np.ndarray:
    """Returns the running average of PCEN as a matrix [frames, frames]: exponential, it starts at the first frame."""
    constant = PCEN_TIME_CONSTANT_S * frames_per_s
    share = (math.sqrt(1.0 + 4.0 * constant**2) - 1.0) / (2.0 * constant**2)
    ages = np.arange(frames)[:, None] - np.arange(frames)
    matrix = np.where(ages >= 0, share * (1.0 - share) ** np.maximum(ages, 0), 0.0)
    matrix[:, 0] = (1.0 - share) ** np.arange(frames)
    return matrix


def power_of(codes: Any, dtype: str, scale: Scale) -> Any:
    """Returns linear power of codes, float32, same shape."""
    if scale.name == "identity":
        return _affine(codes, 1.0, name="frontend_power")
    per_code, offset = ((scale.high - scale.low) / 255.0, scale.low) if dtype == "uint8" else (1.0, 0.0)
    to_log = math.log(10.0) / (10.0 if scale.name == "db" else 1.0)
    logs = _affine(codes, per_code * to_log, offset * to_log, name="frontend_codes")
    power = _exponential(logs, name="frontend_power")
    if scale.name == "db":
        return power
    factor = {"log10_1p10": 10.0, "log10_1p10000": 10000.0}[scale.name]
    return _affine(power, 1.0 / factor, -1.0 / factor, name="frontend_minus_one")


def _normalise(codes: Any, mean: np.ndarray | None, variance: np.ndarray | None) -> Any:
    if mean is None or variance is None:
        return layers.Rescaling(1.0, name="values")(codes)
    positive = np.where(variance > 1e-8 * variance.max(), variance, 1.0)
    # float32 even under mixed precision: 8 bits of code minus their mean need more than bfloat16's 8 bits.
    return layers.Normalization(
        axis=-1, mean=mean.tolist(), variance=positive.tolist(), dtype="float32", name="normalise"
    )(codes)


def _fixed_matrix(n_outputs: int) -> Any:
    return layers.Dense(
        n_outputs,
        use_bias=False,
        trainable=False,
        kernel_initializer="zeros",
        dtype="float32",
        name=FRONTEND_LAYER,
    )


def _affine(values: Any, factor: float, offset: float = 0.0, *, name: str) -> Any:
    return layers.Rescaling(factor, offset=offset, dtype="float32", name=name)(values)


def _exponential(values: Any, *, name: str) -> Any:
    return layers.Activation("exponential", dtype="float32", name=name)(values)
