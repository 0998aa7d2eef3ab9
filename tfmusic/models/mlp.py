"""A multi-layer perceptron on embeddings."""

from typing import Any

from keras import layers

from tfmusic.models.blocks import bins_as_channels
from tfmusic.models.heads import Outputs, logits, pool


def build(x: Any, n_outputs: Outputs, *, width: int = 256, pooling: str = "average", dropout: float = 0.5) -> Any:
    """Returns the logits of one hidden layer on embeddings, pooled over the frames where there are several.

    Input [batch, frames, n_dims, 1], where a frame is the embedding of one segment that `tfmusic embed` has made;
    a spectrogram works too, as its mean over time. With the 1,506 dimensions of musicnn and 4 outputs 386,820
    parameters. Receptive field: 1 frame. Embeddings come normalised by the records' statistics.
    """
    x = pool(bins_as_channels(x), pooling)
    return logits(layers.Dense(width, activation="relu", name="hidden")(x), n_outputs, dropout=dropout)
