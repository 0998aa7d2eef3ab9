"""Convolutions over time alone, with the bins as channels."""

from typing import Any

from keras import layers

from tfmusic.models.blocks import bins_as_channels, conv_block_1d
from tfmusic.models.heads import Outputs, logits, pool


def build(x: Any, n_outputs: Outputs, *, width: int = 32, pooling: str = "average", dropout: float = 0.5) -> Any:
    """Returns the logits of the spectrogram network of Dieleman & Schrauwen 2014 (ICASSP, End-to-end learning).

    Two convolutions of 32 filters of 8 frames, each with a pool of 4 frames, and 100 hidden units. Input
    [batch, frames, n_bins, 1]; at 128 bins and 4 outputs 44,920 parameters (moving averages included).
    Receptive field: 51 frames. Differences: batch normalisation; what is left in time is pooled by the head, not
    flattened, so that the parameters do not depend on the length.
    """
    x = bins_as_channels(x)
    for i in (1, 2):
        x = conv_block_1d(x, width, 8, 4, name=f"block{i}")
    x = layers.Dense(100, activation="relu", name="hidden")(pool(x, pooling))
    return logits(x, n_outputs, dropout=dropout)
