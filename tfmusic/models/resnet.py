"""Residual networks of He et al. 2015 (arXiv 1512.03385) with bottleneck blocks, on one channel.

The layout is that of Keras Applications (convolutions with biases, a block's stride in its first 1x1 convolution),
and so are the layer names, so that those weights find their place. Difference: a block begins as the identity.
"""

from typing import Any

from keras import layers

from tfmusic.models.blocks import basic_block, conv_bn, subsample
from tfmusic.models.heads import Outputs, classify


def build_resnet50(
    x: Any, n_outputs: Outputs, *, width: int = 64, pooling: str = "average", dropout: float = 0.0
) -> Any:
    """Returns the logits of ResNet-50.

    Input [batch, frames, n_bins, 1]. With 1000 outputs 25,630,440 parameters (moving averages included): the 25,636,712
    of Keras Applications less the two input channels that a spectrogram lacks. Receptive field: 483 frames.
    """
    return _build_bottleneck(x, n_outputs, (3, 4, 6, 3), width=width, pooling=pooling, dropout=dropout)


def build_resnet101(
    x: Any, n_outputs: Outputs, *, width: int = 64, pooling: str = "average", dropout: float = 0.0
) -> Any:
    """Returns the logits of ResNet-101.

    Input [batch, frames, n_bins, 1]. With 1000 outputs 44,700,904 parameters (moving averages included): the 44,707,176
    of Keras Applications less the two input channels that a spectrogram lacks. Receptive field: 1,027 frames.
    """
    return _build_bottleneck(x, n_outputs, (3, 4, 23, 3), width=width, pooling=pooling, dropout=dropout)


def _build_bottleneck(
    x: Any, n_outputs: Outputs, depths: tuple[int, ...], *, width: int, pooling: str, dropout: float
) -> Any:
    x = layers.ZeroPadding2D(3, name="conv1_pad")(x)
    x = layers.ReLU(name="conv1_relu")(_conv_bn(x, width, 7, stride=2, name="conv1"))
    x = layers.MaxPooling2D(3, 2, name="pool1_pool")(layers.ZeroPadding2D(1, name="pool1_pad")(x))
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            x = _block(x, width * 2**stage, stride, is_first=block == 0, name=f"conv{stage + 2}_block{block + 1}")
    return classify(x, n_outputs, pooling=pooling, dropout=dropout)


def _block(x: Any, channels: int, stride: int, *, is_first: bool, name: str) -> Any:
    shortcut = _conv_bn(x, 4 * channels, 1, stride=stride, name=f"{name}_0") if is_first else x
    y = layers.ReLU(name=f"{name}_1_relu")(_conv_bn(x, channels, 1, stride=stride, name=f"{name}_1"))
    y = layers.ReLU(name=f"{name}_2_relu")(_conv_bn(y, channels, 3, padding="same", name=f"{name}_2"))
    y = _conv_bn(y, 4 * channels, 1, gamma="zeros", name=f"{name}_3")
    return layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([shortcut, y]))


def _conv_bn(
    x: Any, channels: int, kernel: int, *, stride: int = 1, padding: str = "valid", gamma: str = "ones", name: str
) -> Any:
    if kernel == 1:
        x, stride = subsample(x, stride, name=name), 1
    x = layers.Conv2D(
        channels, kernel, strides=stride, padding=padding, kernel_initializer="he_normal", name=f"{name}_conv"
    )(x)
    # The epsilon of Keras Applications, with which its weights were trained.
    return layers.BatchNormalization(momentum=0.9, epsilon=1.001e-5, gamma_initializer=gamma, name=f"{name}_bn")(x)


def build_resnet18(
    x: Any,
    n_outputs: Outputs,
    *,
    width: int = 64,
    pooling: str = "average",
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
) -> Any:
    """Returns the logits of ResNet-18.

    Input [batch, frames, n_bins, 1]. With 1000 outputs 11,683,240 trainable parameters: torchvision's 11,689,512 less
    the two input channels that a spectrogram lacks. Receptive field: 435 frames. `width` scales all channels;
    16 gives a network of .7 million that trains at some 400 segments of 5 s a second on 2 CPU cores.
    """
    return _build(x, n_outputs, (2, 2, 2, 2), width=width, pooling=pooling, dropout=dropout, skip=stochastic_depth)


def build_resnet34(
    x: Any,
    n_outputs: Outputs,
    *,
    width: int = 64,
    pooling: str = "average",
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
) -> Any:
    """Returns the logits of ResNet-34.

    Input [batch, frames, n_bins, 1]. With 1000 outputs 21,791,400 trainable parameters: torchvision's 21,797,672 less
    the two input channels that a spectrogram lacks. Receptive field: 899 frames.
    """
    return _build(x, n_outputs, (3, 4, 6, 3), width=width, pooling=pooling, dropout=dropout, skip=stochastic_depth)


def _build(
    x: Any, n_outputs: Outputs, depths: tuple[int, ...], *, width: int, pooling: str, dropout: float, skip: float
) -> Any:
    x = layers.ReLU(name="stem_relu")(conv_bn(x, width, 7, stride=2, name="stem"))
    # ReLU comes before: padding with zeros is padding with the smallest value, as the pool wants.
    x = layers.MaxPooling2D(3, 2, name="stem_pool")(layers.ZeroPadding2D(1, name="stem_pool_pad")(x))
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            skipped = skip * (sum(depths[:stage]) + block + 1) / sum(depths)
            name = f"stage{stage + 1}_block{block + 1}"
            x = basic_block(x, width * 2**stage, stride, skipped=skipped, name=name)
    return classify(x, n_outputs, pooling=pooling, dropout=dropout)
