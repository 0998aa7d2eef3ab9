"""Residual networks of He et al. 2015 (arXiv 1512.03385), on one channel; every block begins as the identity.

ResNet-18 and 34 have basic blocks, as in torchvision. ResNet-50 and 101 have bottleneck blocks in the layout of Keras
Applications (convolutions with biases, a block's stride in its first 1x1 convolution) and with its layer names, so
that its ImageNet weights fit.
"""

from functools import partial
from typing import Any

from keras import layers

from tfmusic.models.blocks import conv_bn, residual_stages
from tfmusic.models.heads import Outputs, classify

_STRIDES = (1, 2, 2, 2)
_conv_bn = partial(conv_bn, use_bias=True, epsilon=1.001e-5)  # the epsilon that Keras Applications trained with


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
    width 16 has .7 million parameters and trains on about 400 segments of 5 s a second on 2 CPU cores.
    """
    x = _basic_stages(x, (2, 2, 2, 2), width, stochastic_depth)
    return classify(x, n_outputs, pooling=pooling, dropout=dropout)


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
    x = _basic_stages(x, (3, 4, 6, 3), width, stochastic_depth)
    return classify(x, n_outputs, pooling=pooling, dropout=dropout)


def build_resnet50(
    x: Any, n_outputs: Outputs, *, width: int = 64, pooling: str = "average", dropout: float = 0.0
) -> Any:
    """Returns the logits of ResNet-50.

    Input [batch, frames, n_bins, 1]. With 1000 outputs 25,630,440 parameters (moving averages included): the 25,636,712
    of Keras Applications less the two input channels that a spectrogram lacks. Receptive field: 483 frames.
    """
    return classify(_bottleneck_stages(x, (3, 4, 6, 3), width), n_outputs, pooling=pooling, dropout=dropout)


def build_resnet101(
    x: Any, n_outputs: Outputs, *, width: int = 64, pooling: str = "average", dropout: float = 0.0
) -> Any:
    """Returns the logits of ResNet-101.

    Input [batch, frames, n_bins, 1]. With 1000 outputs 44,700,904 parameters (moving averages included): the 44,707,176
    of Keras Applications less the two input channels that a spectrogram lacks. Receptive field: 1,027 frames.
    """
    return classify(_bottleneck_stages(x, (3, 4, 23, 3), width), n_outputs, pooling=pooling, dropout=dropout)


def _basic_stages(x: Any, depths: tuple[int, ...], width: int, stochastic_depth: float) -> Any:
    x = layers.ReLU(name="stem_relu")(conv_bn(x, width, 7, stride=2, name="stem"))
    x = _max_pool_3x3(x, name="stem")
    return residual_stages(x, depths, _STRIDES, width=width, stochastic_depth=stochastic_depth)


def _bottleneck_stages(x: Any, depths: tuple[int, ...], width: int) -> Any:
    x = layers.ReLU(name="conv1_relu")(_conv_bn(x, width, 7, stride=2, name="conv1"))
    x = _max_pool_3x3(x, name="pool1")
    for stage, (depth, stride) in enumerate(zip(depths, _STRIDES, strict=True)):
        x = _bottleneck(x, width * 2**stage, stride, is_first=True, name=f"conv{stage + 2}_block1")
        for block in range(2, depth + 1):
            x = _bottleneck(x, width * 2**stage, 1, is_first=False, name=f"conv{stage + 2}_block{block}")
    return x


def _bottleneck(x: Any, channels: int, stride: int, *, is_first: bool, name: str) -> Any:
    """Returns the residual block of a 1x1, a 3x3 and a 1x1 convolution, which quadruples the channels."""
    shortcut = _conv_bn(x, 4 * channels, 1, stride=stride, name=f"{name}_0") if is_first else x
    y = layers.ReLU(name=f"{name}_1_relu")(_conv_bn(x, channels, 1, stride=stride, name=f"{name}_1"))
    y = layers.ReLU(name=f"{name}_2_relu")(_conv_bn(y, channels, 3, name=f"{name}_2"))
    y = _conv_bn(y, 4 * channels, 1, gamma="zeros", name=f"{name}_3")
    return layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([shortcut, y]))


def _max_pool_3x3(x: Any, *, name: str) -> Any:
    # The input has passed a ReLU, so zeros are as small as any value and the padding never wins.
    return layers.MaxPooling2D(3, 2, name=f"{name}_pool")(layers.ZeroPadding2D(1, name=f"{name}_pool_pad")(x))
