"""The 2-D CNN of the AI Rush baseline."""

from typing import Any

from keras import layers

from tfmusic.models.blocks import max_pool
from tfmusic.models.heads import Outputs, logits, pool

# (frames, bins) of the five pools; the baseline writes them as (bins, frames).
_POOLS = ((2, 2), (4, 2), (4, 2), (4, 4), (8, 4))


def build(x: Any, n_outputs: Outputs, *, width: int = 64, pooling: str = "average", dropout: float = 0.5) -> Any:
    """Returns the logits of five convolutions, each with batch normalisation, ReLU and pooling, and two dense layers.

    Input [batch, frames, n_bins, 1]; at the baseline's 1200 x 128 and 4 outputs it has 6,536,836 trainable
    parameters, as the baseline has, and one position is left for the head. Receptive field: 1,366 frames.
    Differences: pools shrink to what is left on shorter inputs, and what is left in time is pooled by the head.
    """
    for i, size in enumerate(_POOLS):
        name = f"block{i + 1}"
        x = layers.Conv2D(width * 2**i, 3, padding="same", name=f"{name}_conv")(x)
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
        x = layers.ReLU(name=f"{name}_relu")(max_pool(x, size, name=f"{name}_pool"))
    x = pool(x, pooling)
    x = layers.Dense(4 * width, activation="relu", name="hidden")(x)
    return logits(x, n_outputs, dropout=dropout)
