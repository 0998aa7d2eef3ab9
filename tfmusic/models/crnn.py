"""The convolutional recurrent network of Choi et al. 2016 (arXiv 1609.04243)."""

from typing import Any

from keras import layers

from tfmusic.models.blocks import bins_as_channels, max_pool
from tfmusic.models.heads import Outputs, classify

_CHANNELS = (1, 2, 2, 2)  # times width
_POOLS = ((2, 2), (3, 3), (4, 4), (4, 4))  # frames, bins
_TIME_STRIDE = 2 * 3 * 4 * 4


def build(x: Any, n_outputs: Outputs, *, width: int = 64, pooling: str = "last", dropout: float = 0.3) -> Any:
    """Returns the logits of four convolutions and two recurrent layers over what they leave of time.

    Input [batch, frames, n_bins, 1]; at the paper's 1366 frames of 96 bins and 50 outputs it has 395,186 parameters
    (moving averages included) and 15 steps reach the recurrent layers. Receptive field: the whole input.
    Time is padded on both sides to the next multiple of 96 frames (1366 + 2 x 37 = 1440). `pooling: last`, the
    paper's, takes the last recurrent state; the others pool over all. Bins that four pools do not use up join the
    channels.
    """
    frames = int(x.shape[1])
    missing = -frames % _TIME_STRIDE
    x = layers.ZeroPadding2D(((missing // 2, missing - missing // 2), (0, 0)), name="pad_time")(x)
    # Batch normalisation over the bins: the paper's normalisation of the input.
    x = layers.BatchNormalization(axis=2, name="bins_bn")(x)
    for i, (factor, size) in enumerate(zip(_CHANNELS, _POOLS, strict=True)):
        name = f"block{i + 1}"
        x = layers.Conv2D(width * factor, 3, padding="same", name=f"{name}_conv")(x)
        x = layers.BatchNormalization(name=f"{name}_bn")(x)
        x = layers.ELU(name=f"{name}_elu")(max_pool(x, size, name=f"{name}_pool"))
        x = layers.Dropout(0.1, name=f"{name}_dropout")(x)
    x = bins_as_channels(x)
    # reset_after=False is the GRU of the paper's time, and its parameter count.
    x = layers.GRU(max(width // 2, 1), return_sequences=True, reset_after=False, name="gru1")(x)
    x = layers.GRU(max(width // 2, 1), return_sequences=pooling != "last", reset_after=False, name="gru2")(x)
    return classify(x, n_outputs, pooling=pooling, dropout=dropout)
