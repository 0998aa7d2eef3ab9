"""Pieces that several networks share."""

from typing import Any

import numpy as np
from keras import Input, layers


def normalised_input(
    shape: tuple[int, int], *, dtype: str, mean: np.ndarray | None, variance: np.ndarray | None
) -> tuple[Any, Any]:
    """Returns the input of codes [batch, frames, n_bins] and its normalised image [batch, frames, n_bins, 1].

    The cast to float happens here, on the device: until then a cell is a byte. A bin that never changes keeps
    variance 1, so that it becomes 0 rather than infinite.
    """
    inputs = Input(shape, dtype=dtype, name="codes")
    if mean is None or variance is None:
        values = layers.Rescaling(1.0, name="values")(inputs)
    else:
        spread = np.where(variance > 1e-8 * variance.max(), variance, 1.0)
        # float32 even under mixed precision: 8 bits of code minus their mean need more than bfloat16's 8 bits.
        values = layers.Normalization(
            axis=-1, mean=mean.tolist(), variance=spread.tolist(), dtype="float32", name="normalise"
        )(inputs)
    return inputs, layers.Reshape((*shape, 1), name="image")(values)


def conv_bn(x: Any, channels: int, kernel: int, *, stride: int = 1, gamma: str = "ones", name: str) -> Any:
    """Returns a convolution without bias and its batch normalisation; padding is symmetric at every stride."""
    if kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    x = layers.Conv2D(
        channels, kernel, strides=stride, use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
    )(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, gamma_initializer=gamma, name=f"{name}_bn")(x)


def max_pool(x: Any, size: tuple[int, int], *, name: str) -> Any:
    """Returns the maximum over blocks of (frames, bins), cut down to what is left where that is less."""
    fitting = tuple(min(pool, int(left)) for pool, left in zip(size, x.shape[1:3], strict=True))
    return layers.MaxPooling2D(fitting, name=name)(x)
