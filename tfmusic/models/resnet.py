"""Residual networks of He et al. 2015 (arXiv 1512.03385) with basic blocks, on one channel."""

from typing import Any

from keras import layers

from tfmusic.models.blocks import basic_block, conv_bn
from tfmusic.models.heads import Outputs, classify


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
