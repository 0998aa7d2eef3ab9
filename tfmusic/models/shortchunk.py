"""The short-chunk networks of Won et al. 2020 (arXiv 2006.00751): small filters, small pools, seconds of input."""

from typing import Any

from keras import layers

from tfmusic.models.blocks import max_pool
from tfmusic.models.heads import Outputs, logits, pool

_CHANNELS = (1, 1, 2, 2, 2, 2, 4)  # times width


def build_shortchunk(
    x: Any, n_outputs: Outputs, *, width: int = 128, pooling: str = "max", dropout: float = 0.5
) -> Any:
    """Returns the logits of seven 3x3 convolutions, each halving time and bins, and two dense layers.

    Input [batch, frames, n_bins, 1], in the paper 231 frames (3.7 s) of 128 bins; with 50 outputs 3,687,348 trainable
    parameters, as in the authors' network. Receptive field: 382 frames. Difference: pools shrink where a smaller input
    leaves less than their size.
    """
    x = _bn(x, "input_bn")
    for i, factor in enumerate(_CHANNELS, start=1):
        x = max_pool(_conv_bn(x, width * factor, name=f"block{i}"), (2, 2), name=f"block{i}_pool")
        x = layers.ReLU(name=f"block{i}_relu")(x)
    return _dense(x, n_outputs, width=width, pooling=pooling, dropout=dropout)


def build_shortchunk_res(
    x: Any, n_outputs: Outputs, *, width: int = 128, pooling: str = "max", dropout: float = 0.5
) -> Any:
    """Returns the logits of seven residual blocks of stride 2 and two dense layers.

    Input [batch, frames, n_bins, 1], in the paper 231 frames (3.7 s) of 128 bins; with 50 outputs 12,104,244 trainable
    parameters, as in the authors' network. The shortcuts are 3x3 convolutions as well. Receptive field: 763 frames.
    """
    x = _bn(x, "input_bn")
    for i, factor in enumerate(_CHANNELS, start=1):
        name = f"block{i}"
        shortcut = _conv_bn(x, width * factor, stride=2, name=f"{name}_shortcut")
        x = layers.ReLU(name=f"{name}_relu1")(_conv_bn(x, width * factor, stride=2, name=f"{name}_a"))
        x = layers.Add(name=f"{name}_add")([_conv_bn(x, width * factor, name=f"{name}_b"), shortcut])
        x = layers.ReLU(name=f"{name}_relu2")(x)
    return _dense(x, n_outputs, width=width, pooling=pooling, dropout=dropout)


def _conv_bn(x: Any, channels: int, *, stride: int = 1, name: str) -> Any:
    x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
    return _bn(layers.Conv2D(channels, 3, strides=stride, name=f"{name}_conv")(x), f"{name}_bn")


def _bn(x: Any, name: str) -> Any:
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)


def _dense(x: Any, n_outputs: Outputs, *, width: int, pooling: str, dropout: float) -> Any:
    x = layers.Dense(4 * width, name="hidden")(pool(x, pooling))
    return logits(layers.ReLU(name="hidden_relu")(_bn(x, "hidden_bn")), n_outputs, dropout=dropout)
