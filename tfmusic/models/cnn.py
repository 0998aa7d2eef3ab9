"""Plain networks, without shortcuts or recurrence: a perceptron on embeddings and two convolutional networks."""

from typing import Any

from keras import layers

from tfmusic.models.blocks import bins_as_channels, conv_block_1d, max_pool
from tfmusic.models.heads import Outputs, linear, logits, pool

_CNN2D_POOLS = ((2, 2), (4, 2), (4, 2), (4, 4), (8, 4))  # (frames, bins); the AI Rush baseline has (bins, frames)


def build_mlp(
    x: Any,
    n_outputs: Outputs,
    *,
    width: int = 256,
    hidden: int | None = None,
    pooling: str = "average",
    dropout: float = 0.5,
) -> Any:
    """Returns the logits of one hidden layer on embeddings that are pooled over the frames.

    Input [batch, frames, n_dims, 1]. A frame is the embedding of one segment, made by `tfmusic embed`; a spectrogram
    works too, as its mean over time. `hidden` is the number of units, by default `width`; with 0 there is no hidden
    layer, and the embeddings are standardised. With the 1,506 dimensions of musicnn and 4 outputs 386,820 parameters.
    Receptive field: 1 frame. The frontend normalises embeddings by the statistics of the records.
    """
    x = pool(bins_as_channels(x), pooling)
    if hidden == 0:
        return linear(x, n_outputs, dropout=dropout)
    return logits(layers.Dense(hidden or width, activation="relu", name="hidden")(x), n_outputs, dropout=dropout)


def build_cnn1d(x: Any, n_outputs: Outputs, *, width: int = 32, pooling: str = "average", dropout: float = 0.5) -> Any:
    """Returns the logits of the spectrogram network of Dieleman & Schrauwen 2014 (ICASSP, End-to-end learning).

    The bins are the channels of two convolutions over time, each with 32 filters of 8 frames and a pool of 4 frames;
    100 hidden units follow. Input [batch, frames, n_bins, 1]; at 128 bins and 4 outputs 44,920 parameters (moving
    averages included). Receptive field: 51 frames. Differences from the paper: batch normalisation; the head pools
    over the remaining frames instead of flattening them, so the number of parameters does not depend on the length.
    """
    x = bins_as_channels(x)
    for i in (1, 2):
        x = conv_block_1d(x, width, 8, 4, name=f"block{i}")
    x = layers.Dense(100, activation="relu", name="hidden")(pool(x, pooling))
    return logits(x, n_outputs, dropout=dropout)


def build_cnn2d(x: Any, n_outputs: Outputs, *, width: int = 64, pooling: str = "average", dropout: float = 0.5) -> Any:
    """Returns the logits of the AI Rush baseline (2024): five 2-D convolutions and two dense layers.

    Each convolution has batch normalisation, ReLU and pooling. Input [batch, frames, n_bins, 1]; at the baseline's
    1200 x 128 and 4 outputs 6,536,836 trainable parameters, as in the original, and one position is left for the head.
    Receptive field: 1,366 frames. Differences: pools shrink where a shorter input leaves less than their size, and
    the head pools over the remaining frames.
    """
    for i, size in enumerate(_CNN2D_POOLS):
        name = f"block{i + 1}"
        x = layers.Conv2D(width * 2**i, 3, padding="same", name=f"{name}_conv")(x)
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
        x = layers.ReLU(name=f"{name}_relu")(max_pool(x, size, name=f"{name}_pool"))
    x = layers.Dense(4 * width, activation="relu", name="hidden")(pool(x, pooling))
    return logits(x, n_outputs, dropout=dropout)
