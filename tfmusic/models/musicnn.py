"""The musically motivated network of Pons & Serra 2019 (musicnn, arXiv 1909.06654)."""

from typing import Any

from keras import layers

from tfmusic.core.feature import Feature
from tfmusic.models.heads import EMBEDDING, Outputs, logits, pool

# The authors' input: 3 s of mel power, as log10(10000 * power + 1).
FEATURE = Feature(name="mel", sample_rate_hz=16000, n_fft=512, hop_length=256, n_bins=96)
FRAMES = 187
SCALE_FACTOR = 10000.0

_TIMBRAL_HEIGHTS = (0.4, 0.7)  # share of the bins
_TEMPORAL_LENGTHS = (128, 64, 32)  # frames


def build(x: Any, n_outputs: Outputs, *, width: int = 64, pooling: str = "max_mean", dropout: float = 0.5) -> Any:
    """Returns the logits of timbral and temporal filters, three residual layers over time and two dense layers.

    Input [batch, frames, n_bins, 1]; at the authors' 187 x 96 and 50 outputs 787,159 trainable parameters, as in their
    MSD and MTT checkpoints, which `tfmusic.pretrained` reads. Receptive field: 146 frames. `width` is the number of
    channels of the three residual layers; there are 3.2 times as many timbral filters and .8 times as many temporal
    ones at each of their sizes. `pooling: max_mean`, the authors', concatenates maximum and mean.
    """
    x = layers.BatchNormalization(name="pool_bn")(_pool(_features(x, width), pooling))
    if dropout:
        x = layers.Dropout(dropout, name="pool_dropout")(x)
    x = layers.Dense(int(3.125 * width), activation="relu", name="hidden")(x)
    return logits(layers.BatchNormalization(name="hidden_bn")(x), n_outputs, dropout=dropout)


def build_mlp(
    x: Any,
    n_outputs: Outputs,
    *,
    width: int = 64,
    hidden: int = 512,
    pooling: str = "max_mean",
    dropout: float = 0.5,
) -> Any:
    """Returns the logits of a perceptron with one hidden layer on the embedding of musicnn's backbone.

    For other labels than the authors': their weights end at the embedding, and the batch normalisation after it learns
    the statistics of the new music. Input [batch, frames, n_bins, 1]; at 187 x 96 and 4 outputs 1,248,945 trainable
    parameters. Receptive field: 146 frames.
    """
    x = layers.BatchNormalization(name="mlp_bn")(_pool(_features(x, width), pooling))
    if hidden:
        x = layers.Dense(hidden, activation="relu", name="mlp_hidden")(x)
    return logits(x, n_outputs, dropout=dropout)


def _features(x: Any, width: int) -> Any:
    """Returns [batch, frames, channels]: the outputs of the filters and of the three layers, concatenated."""
    x = layers.BatchNormalization(name="input_bn")(x)
    timbral = [
        _timbral(x, int(3.1875 * width), share, name=f"timbral{i}") for i, share in enumerate(_TIMBRAL_HEIGHTS, 1)
    ]
    temporal = [
        _temporal(x, max(int(0.796875 * width), 1), length, name=f"temporal{i}")
        for i, length in enumerate(_TEMPORAL_LENGTHS, 1)
    ]
    front = layers.Concatenate(name="front")([*timbral, *temporal])
    outputs = [front, _conv_bn_1d(front, width, name="mid1")]
    for i in (2, 3):
        x = outputs[-1]
        outputs.append(layers.Add(name=f"mid{i}_add")([_conv_bn_1d(x, width, name=f"mid{i}"), x]))
    return layers.Concatenate(name="features")(outputs)


def _timbral(x: Any, channels: int, share: float, *, name: str) -> Any:
    """Returns [batch, frames, channels]: filters of 7 frames and many bins; their maximum over the bins."""
    x = layers.ZeroPadding2D((3, 0), name=f"{name}_pad")(x)
    return _conv_bn_max(x, channels, (7, max(int(share * int(x.shape[2])), 1)), padding="valid", name=name)


def _temporal(x: Any, channels: int, length: int, *, name: str) -> Any:
    """Returns [batch, frames, channels]: filters of many frames and one bin; their maximum over the bins."""
    return _conv_bn_max(x, channels, (length, 1), padding="same", name=name)


def _conv_bn_max(x: Any, channels: int, kernel: tuple[int, int], *, padding: str, name: str) -> Any:
    x = layers.Conv2D(channels, kernel, padding=padding, activation="relu", name=f"{name}_conv")(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    x = layers.MaxPooling2D((1, int(x.shape[2])), name=f"{name}_max")(x)
    return layers.Reshape((int(x.shape[1]), channels), name=f"{name}_steps")(x)


def _conv_bn_1d(x: Any, channels: int, *, name: str) -> Any:
    x = layers.Conv1D(channels, 7, padding="same", activation="relu", name=f"{name}_conv")(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)


def _pool(x: Any, pooling: str) -> Any:
    if pooling != "max_mean":
        return pool(x, pooling)
    both = [layers.GlobalMaxPooling1D(name="pool_max")(x), layers.GlobalAveragePooling1D(name="pool_mean")(x)]
    return layers.Concatenate(name=EMBEDDING)(both)
