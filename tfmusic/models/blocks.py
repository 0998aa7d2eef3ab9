"""Blocks of layers that several networks share.

Max-pooling comes before ReLU and ELU: these never fall, so the result is the same, and the activation is computed on a
quarter of the values or fewer.
"""

from collections.abc import Sequence
from typing import Any

from keras import layers

Stride = int | tuple[int, int]  # of both axes, or of (frames, bins)


def conv_bn(
    x: Any,
    channels: int,
    kernel: int,
    *,
    stride: Stride = 1,
    use_bias: bool = False,
    gamma: str = "ones",
    epsilon: float = 1e-5,
    name: str,
) -> Any:
    """Returns a convolution and its batch normalisation; the padding is symmetric at every stride."""
    if kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    else:
        x, stride = subsample(x, stride, name=name), 1
    x = layers.Conv2D(
        channels, kernel, strides=stride, use_bias=use_bias, kernel_initializer="he_normal", name=f"{name}_conv"
    )(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=epsilon, gamma_initializer=gamma, name=f"{name}_bn")(x)


def subsample(x: Any, stride: Stride, *, name: str) -> Any:
    """Returns every stride-th frame and bin: what a 1x1 convolution of that stride sees.

    TensorFlow 2.21 on CPU writes outside its memory in the gradient of a strided 1x1 convolution: with 4 to 8
    channels on 350 x 4 positions, batch 1, 5 processes of 5 crashed. Subsampling first gives the same result.
    """
    return x if stride in (1, (1, 1)) else layers.MaxPooling2D(1, stride, name=f"{name}_subsample")(x)


def residual_stages(
    x: Any,
    depths: Sequence[int],
    strides: Sequence[Stride],
    *,
    width: int,
    stochastic_depth: float = 0.0,
    squeeze: int = 0,
    pools: Sequence[tuple[int, int]] = (),
) -> Any:
    """Returns stages of basic blocks; each stage doubles the channels, and its first block has the stage's stride.

    With `pools`, a max-pool of (frames, bins) ends each stage.

    The last block is skipped for a share `stochastic_depth` of the training examples, earlier blocks for less in
    proportion (Huang et al. 2016, arXiv 1603.09382).
    """
    n_blocks = 0
    for stage, (depth, stage_stride) in enumerate(zip(depths, strides, strict=True)):
        for block in range(depth):
            n_blocks += 1
            x = basic_block(
                x,
                width * 2**stage,
                stage_stride if block == 0 else 1,
                skip_rate=stochastic_depth * n_blocks / sum(depths),
                squeeze=squeeze,
                name=f"stage{stage + 1}_block{block + 1}",
            )
        if pools:
            x = max_pool(x, pools[stage], name=f"stage{stage + 1}_pool")
    return x


def basic_block(x: Any, channels: int, stride: Stride, *, skip_rate: float = 0.0, squeeze: int = 0, name: str) -> Any:
    """Returns the residual block of two 3x3 convolutions (He et al. 2015, arXiv 1512.03385).

    In training a share `skip_rate` of the examples takes the shortcut alone. `squeeze` is the reduction of
    squeeze-and-excitation, 0 for none.
    """
    shortcut = x
    if stride not in (1, (1, 1)) or int(x.shape[-1]) != channels:
        shortcut = conv_bn(x, channels, 1, stride=stride, name=f"{name}_shortcut")
    y = layers.ReLU(name=f"{name}_relu1")(conv_bn(x, channels, 3, stride=stride, name=f"{name}_a"))
    # A block begins as the identity (Goyal et al. 2017, arXiv 1706.02677), so deep networks start with small logits.
    y = conv_bn(y, channels, 3, gamma="zeros", name=f"{name}_b")
    if squeeze:
        y = squeeze_and_excite(y, squeeze, name=name)
    if skip_rate:
        y = layers.Dropout(skip_rate, noise_shape=(None, 1, 1, 1), name=f"{name}_skip")(y)
    return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([y, shortcut]))


def squeeze_and_excite(x: Any, reduction: int, *, name: str) -> Any:
    """Returns x with channels scaled by what the means of all say: squeeze-and-excitation (arXiv 1709.01507)."""
    channels = int(x.shape[-1])
    means = layers.GlobalAveragePooling2D(name=f"{name}_squeeze")(x)
    reduced = layers.Dense(max(channels // reduction, 1), activation="relu", name=f"{name}_reduce")(means)
    scale = layers.Dense(channels, activation="sigmoid", name=f"{name}_excite")(reduced)
    scale = layers.Reshape((1, 1, channels), name=f"{name}_per_channel")(scale)
    return layers.Multiply(name=f"{name}_scale")([x, scale])


def max_pool(x: Any, size: tuple[int, int], *, name: str) -> Any:
    """Returns the maximum over blocks of (frames, bins); a block is never larger than the input."""
    fitting = tuple(min(pool, int(length)) for pool, length in zip(size, x.shape[1:3], strict=True))
    return layers.MaxPooling2D(fitting, name=name)(x)


def bins_as_channels(x: Any) -> Any:
    """Returns the steps [batch, frames, n_bins x channels] of an image [batch, frames, n_bins, channels]."""
    return layers.Reshape((int(x.shape[1]), int(x.shape[2]) * int(x.shape[3])), name="steps")(x)


def conv_block_1d(x: Any, channels: int, kernel: int, pool: int, *, name: str) -> Any:
    """Returns a convolution over time with batch normalisation, max-pooling and ReLU, of steps [batch, time, any]."""
    x = layers.Conv1D(channels, kernel, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    x = layers.MaxPooling1D(min(pool, int(x.shape[1])), name=f"{name}_pool")(x)
    return layers.ReLU(name=f"{name}_relu")(x)
