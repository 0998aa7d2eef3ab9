"""Convolutions over time and a recurrent layer over what they leave."""

from typing import Any

from keras import layers

from tfmusic.models.blocks import bins_as_channels, conv_block_1d
from tfmusic.models.heads import Outputs, classify


def build(x: Any, n_outputs: Outputs, *, width: int = 128, pooling: str = "last", dropout: float = 0.3) -> Any:
    """Returns the logits of three convolutions over time and one GRU (Cho et al. 2014, arXiv 1406.1078).

    The light relative of `crnn`, of the kind used on CQT excerpts of FMA; no published count exists. Input
    [batch, frames, n_bins, 1]; at 128 bins and 4 outputs 346,884 parameters (moving averages included). A step of the
    GRU stands for 8 frames. Receptive field: the whole input. `pooling: last` takes the last recurrent state.
    """
    x = bins_as_channels(x)
    for i in (1, 2, 3):
        x = conv_block_1d(x, width, 5, 2, name=f"block{i}")
    x = layers.GRU(width, return_sequences=pooling != "last", name="gru")(x)
    return classify(x, n_outputs, pooling=pooling, dropout=dropout)
