"""Pieces that several networks share.

Where a maximum pool follows an activation that never falls (ReLU, ELU), networks here pool first: the same numbers,
and an activation of a quarter of the cells or fewer.
"""

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


def conv_bn(
    x: Any, channels: int, kernel: int, *, stride: int | tuple[int, int] = 1, gamma: str = "ones", name: str
) -> Any:
    """Returns a convolution without bias and its batch normalisation; padding is symmetric at every stride."""
    if kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    else:
        x, stride = subsample(x, stride, name=name), 1
    x = layers.Conv2D(
        channels, kernel, strides=stride, use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
    )(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, gamma_initializer=gamma, name=f"{name}_bn")(x)


def subsample(x: Any, stride: int | tuple[int, int], *, name: str) -> Any:
    """Returns every stride-th frame and bin: what a 1x1 convolution of that stride sees.

    TensorFlow 2.21 on CPU writes beyond its memory in the gradient of a strided 1x1 convolution: 4 to 8
    channels on 350 x 4 cells, batch 1, crashed 5 processes of 5. Thinning out first gives the same numbers.
    """
    return x if stride in (1, (1, 1)) else layers.MaxPooling2D(1, stride, name=f"{name}_subsample")(x)


def basic_block(x: Any, channels: int, stride: int | tuple[int, int], *, skipped: float = 0.0, name: str) -> Any:
    """Returns the residual block of two 3x3 convolutions (He et al. 2015).

    In training `skipped` is the share of examples that take the shortcut alone.
    """
    shortcut = x
    if stride not in (1, (1, 1)) or int(x.shape[-1]) != channels:
        shortcut = conv_bn(x, channels, 1, stride=stride, name=f"{name}_shortcut")
    y = layers.ReLU(name=f"{name}_relu1")(conv_bn(x, channels, 3, stride=stride, name=f"{name}_a"))
    # A block begins as the identity (Goyal et al. 2017, arXiv 1706.02677): deep stacks then start at sane logits.
    y = conv_bn(y, channels, 3, gamma="zeros", name=f"{name}_b")
    if skipped:
        y = layers.Dropout(skipped, noise_shape=(None, 1, 1, 1), name=f"{name}_skip")(y)
    return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([y, shortcut]))


def max_pool(x: Any, size: tuple[int, int], *, name: str) -> Any:
    """Returns the maximum over blocks of (frames, bins), cut down to what is left where that is less."""
    fitting = tuple(min(pool, int(left)) for pool, left in zip(size, x.shape[1:3], strict=True))
    return layers.MaxPooling2D(fitting, name=name)(x)


def bins_as_channels(x: Any) -> Any:
    """Returns the steps [batch, frames, n_bins x channels] of an image [batch, frames, n_bins, channels]."""
    return layers.Reshape((int(x.shape[1]), int(x.shape[2]) * int(x.shape[3])), name="steps")(x)


def conv_block_1d(x: Any, channels: int, kernel: int, pool: int, *, name: str) -> Any:
    """Returns a convolution over time with batch normalisation, ReLU and max-pooling of steps [batch, time, any]."""
    x = layers.Conv1D(channels, kernel, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    x = layers.MaxPooling1D(min(pool, int(x.shape[1])), name=f"{name}_pool")(x)
    return layers.ReLU(name=f"{name}_relu")(x)
