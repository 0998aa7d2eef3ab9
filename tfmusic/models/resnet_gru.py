"""A residual front end and a recurrent layer over what it leaves of time."""

from typing import Any

from keras import layers

from tfmusic.models.blocks import basic_block, bins_as_channels, conv_bn
from tfmusic.models.heads import Outputs, classify

_DEPTHS = (3, 4, 6, 3)
_STRIDES = ((1, 1), (1, 2), (2, 2), (2, 2))  # frames, bins


def build(x: Any, n_outputs: Outputs, *, width: int = 64, pooling: str = "last", dropout: float = 0.3) -> Any:
    """Returns the logits of the blocks of ResNet-34 (He et al. 2015, arXiv 1512.03385) and one GRU.

    What the AI Rush entrants called CRNN; only its parts are known, so no published count exists. Input
    [batch, frames, n_bins, 1]; at 128 bins and 4 outputs 21,953,860 parameters (moving averages included). A step of
    the GRU stands for 8 frames, where ResNet-34 would leave 32, and its bins (4 of 128) join the channels through one
    1x1 convolution. Receptive field: the whole input. `pooling: last` takes the last recurrent state.
    """
    x = conv_bn(x, width, 7, stride=2, name="stem")
    x = layers.MaxPooling2D((1, min(2, int(x.shape[2]))), name="stem_pool")(x)
    x = layers.ReLU(name="stem_relu")(x)
    for stage, (depth, first) in enumerate(zip(_DEPTHS, _STRIDES, strict=True)):
        for block in range(depth):
            stride = first if block == 0 else (1, 1)
            x = basic_block(x, width * 2**stage, stride, name=f"stage{stage + 1}_block{block + 1}")
    x = layers.ReLU(name="squeeze_relu")(conv_bn(x, 2 * width, 1, name="squeeze"))
    x = bins_as_channels(x)
    x = layers.GRU(4 * width, return_sequences=pooling != "last", name="gru")(x)
    return classify(x, n_outputs, pooling=pooling, dropout=dropout)
