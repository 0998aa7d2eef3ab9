"""First layers that turn stored codes into the spectrogram that another network was trained on.

They do in the graph what `features.bridge` does in numpy: codes back to linear power, the map of the filterbanks,
frames in between, and the logarithm that the network wants.
"""

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from tfmusic.models import ops

FIXED = "bridge"  # the layer of the map; it is a change of units and never learns


@dataclass(frozen=True)
class Bridge:
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


def bridged_input(shape: tuple[int, int], *, dtype: str, bridge: Bridge) -> tuple[Any, Any]:
    """Returns the input of codes [batch, frames, n_bins] and the target's image.

    The image is [batch, steps (frames - 1) + 1, target_bins, 1]. `set_bridge` gives the finished model its map.
    """
    inputs = keras.Input(shape, dtype=dtype, name="codes")
    power = power_of(inputs, dtype, bridge.scale)
    mapped = layers.Dense(
        len(bridge.matrix), use_bias=False, trainable=False, kernel_initializer="zeros", dtype="float32", name=FIXED
    )(power)
    if bridge.steps > 1:
        # Each frame n times, then the mean of n neighbours: the straight line from frame to frame.
        mapped = layers.UpSampling1D(bridge.steps, name="bridge_repeat")(mapped)
        mapped = layers.AveragePooling1D(bridge.steps, strides=1, dtype="float32", name="bridge_between")(mapped)
    values = ops.log(layers.Rescaling(bridge.factor, offset=1.0, dtype="float32", name="bridge_gain")(mapped))
    values = layers.Rescaling(1.0 / math.log(10.0), dtype="float32", name="bridge_log10")(values)
    return inputs, layers.Reshape((*values.shape[1:], 1), name="image")(values)


def set_bridge(model: keras.Model, matrix: np.ndarray) -> None:
    """Gives its map to a model that begins with one."""
    model.get_layer(FIXED).set_weights([np.asarray(matrix, np.float32).T])


def power_of(codes: Any, dtype: str, scale: tuple[str, float, float]) -> Any:
    """Returns linear power of codes, float32."""
    name, low, high = scale
    if name == "identity":
        return layers.Rescaling(1.0, dtype="float32", name="bridge_power")(codes)
    per_code, offset = ((high - low) / 255.0, low) if dtype == "uint8" else (1.0, 0.0)
    to_log = math.log(10.0) / (10.0 if name == "db" else 1.0)
    logs = layers.Rescaling(per_code * to_log, offset=offset * to_log, dtype="float32", name="bridge_codes")(codes)
    power = layers.Activation("exponential", dtype="float32", name="bridge_power")(logs)
    if name == "db":
        return power
    inner = {"log10_1p10": 10.0, "log10_1p10000": 10000.0}[name]
    return layers.Rescaling(1.0 / inner, offset=-1.0 / inner, dtype="float32", name="bridge_less_one")(power)
