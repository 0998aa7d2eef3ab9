"""First layers that turn stored codes into per-channel energy normalisation (PCEN), window by window.

Every bin is divided by its own recent past, then compressed (Wang et al. 2017, arXiv 1607.05666): what stays the same
for long, such as the loudness of a recording and its equaliser, goes; onsets stay. Parameters as those of librosa.
"""

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from tfmusic.models import ops
from tfmusic.models.bridged import FIXED, power_of

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

    The map over time gets its values from `set_bridge`, as that of a bridge.
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
