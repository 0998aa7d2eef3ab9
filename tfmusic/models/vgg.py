"""The convolutions of the VGG networks (Simonyan & Zisserman 2014, arXiv 1409.1556), on one channel.

Difference from the paper: the shared head replaces its three dense layers, which have 120 million parameters and fix
the size of the input. Layers have the names of Keras Applications, so that its ImageNet weights fit.
"""

from typing import Any

from keras import layers

from tfmusic.models.blocks import max_pool
from tfmusic.models.heads import Outputs, classify

_CHANNELS = (1, 2, 4, 8, 8)  # times width


def build_vgg13(x: Any, n_outputs: Outputs, *, width: int = 64, pooling: str = "average", dropout: float = 0.5) -> Any:
    """Returns the logits of VGG-13: ten 3x3 convolutions, five 2x2 pools.

    Input [batch, frames, n_bins, 1]. 9,403,840 parameters before the head: torchvision's `features` of 9,404,992 less
    the two input channels that a spectrogram lacks. Receptive field: 156 frames.
    """
    return _build(x, n_outputs, (2, 2, 2, 2, 2), width=width, pooling=pooling, dropout=dropout)


def build_vgg16(x: Any, n_outputs: Outputs, *, width: int = 64, pooling: str = "average", dropout: float = 0.5) -> Any:
    """Returns the logits of VGG-16: thirteen 3x3 convolutions, five 2x2 pools.

    Input [batch, frames, n_bins, 1]. 14,713,536 parameters before the head: the 14,714,688 of Keras Applications less
    the two input channels that a spectrogram lacks. Receptive field: 212 frames.
    """
    return _build(x, n_outputs, (2, 2, 3, 3, 3), width=width, pooling=pooling, dropout=dropout)


def build_vgg19(x: Any, n_outputs: Outputs, *, width: int = 64, pooling: str = "average", dropout: float = 0.5) -> Any:
    """Returns the logits of VGG-19: sixteen 3x3 convolutions, five 2x2 pools.

    Input [batch, frames, n_bins, 1]. 20,023,232 parameters before the head: the 20,024,384 of Keras Applications less
    the two input channels that a spectrogram lacks. Receptive field: 268 frames.
    """
    return _build(x, n_outputs, (2, 2, 4, 4, 4), width=width, pooling=pooling, dropout=dropout)


def _build(x: Any, n_outputs: Outputs, depths: tuple[int, ...], *, width: int, pooling: str, dropout: float) -> Any:
    for block, (depth, factor) in enumerate(zip(depths, _CHANNELS, strict=True), start=1):
        for conv in range(1, depth + 1):
            x = layers.Conv2D(
                width * factor,
                3,
                padding="same",
                activation="relu",
                kernel_initializer="he_normal",  # without batch normalisation the initial scale matters
                name=f"block{block}_conv{conv}",
            )(x)
        x = max_pool(x, (2, 2), name=f"block{block}_pool")
    return classify(x, n_outputs, pooling=pooling, dropout=dropout)
