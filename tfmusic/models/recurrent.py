"""Networks with recurrent layers over the frames that convolutions leave.

`pooling: last`, the default of each, takes the last recurrent state; the other poolings use the states of all steps.
"""

from typing import Any

from keras import layers

from tfmusic.models.blocks import bins_as_channels, conv_block_1d, conv_bn, max_pool, residual_stages
from tfmusic.models.heads import Outputs, classify

_CRNN_CHANNELS = (1, 2, 2, 2)  # times width
_CRNN_POOLS = ((2, 2), (3, 3), (4, 4), (4, 4))  # (frames, bins)
_CRNN_TIME_STRIDE = 2 * 3 * 4 * 4

_RESNET34_DEPTHS = (3, 4, 6, 3)
_RESNET_GRU_STRIDES = ((1, 1), (1, 2), (2, 2), (2, 2))  # (frames, bins)
_FINALIST_POOLS = ((2, 2), (2, 2), (4, 2), (4, 4), (4, 4))  # (frames, bins), after the stem and each stage


def build_crnn(
    x: Any,
    n_outputs: Outputs,
    *,
    width: int = 64,
    pooling: str = "last",
    dropout: float = 0.3,
    reset_after: bool = False,
) -> Any:
    """Returns the logits of the convolutional recurrent network of Choi et al. 2016 (arXiv 1609.04243).

    Four convolutions and two GRUs. Input [batch, frames, n_bins, 1]; at the paper's 1366 frames of 96 bins and 50
    outputs 395,186 parameters (moving averages included), and the GRUs see 15 steps. Receptive field: the whole input.
    Time is padded on both sides to the next multiple of 96 frames (1366 + 2 x 37 = 1440). Bins that the four pools
    leave over join the channels. `reset_after=True` is the GRU that cuDNN computes, with a second bias for each gate.
    """
    missing = -int(x.shape[1]) % _CRNN_TIME_STRIDE
    x = layers.ZeroPadding2D(((missing // 2, missing - missing // 2), (0, 0)), name="pad_time")(x)
    # Batch normalisation over the bins: the paper's normalisation of the input.
    x = layers.BatchNormalization(axis=2, name="bins_bn")(x)
    for i, (factor, size) in enumerate(zip(_CRNN_CHANNELS, _CRNN_POOLS, strict=True)):
        name = f"block{i + 1}"
        x = layers.Conv2D(width * factor, 3, padding="same", name=f"{name}_conv")(x)
        x = layers.BatchNormalization(name=f"{name}_bn")(x)
        x = layers.ELU(name=f"{name}_elu")(max_pool(x, size, name=f"{name}_pool"))
        x = layers.Dropout(0.1, name=f"{name}_dropout")(x)
    x = bins_as_channels(x)
    # reset_after=False is the GRU of the paper's time, and gives its parameter count.
    for name, returns_steps in (("gru1", True), ("gru2", pooling != "last")):
        x = layers.GRU(max(width // 2, 1), return_sequences=returns_steps, reset_after=reset_after, name=name)(x)
    return classify(x, n_outputs, pooling=pooling, dropout=dropout)


def build_convgru1d(
    x: Any, n_outputs: Outputs, *, width: int = 128, pooling: str = "last", dropout: float = 0.3
) -> Any:
    """Returns the logits of three convolutions over time and one GRU (Cho et al. 2014, arXiv 1406.1078).

    A lighter network than `crnn`, of the kind used on CQT excerpts of FMA; no parameter count has been published.
    Input [batch, frames, n_bins, 1]; at 128 bins and 4 outputs 346,884 parameters (moving averages included). A step
    of the GRU stands for 8 frames. Receptive field: the whole input.
    """
    x = bins_as_channels(x)
    for i in (1, 2, 3):
        x = conv_block_1d(x, width, 5, 2, name=f"block{i}")
    x = layers.GRU(width, return_sequences=pooling != "last", name="gru")(x)
    return classify(x, n_outputs, pooling=pooling, dropout=dropout)


def build_resnet_gru(
    x: Any,
    n_outputs: Outputs,
    *,
    width: int = 64,
    pooling: str = "last",
    dropout: float = 0.3,
    squeeze: int = 0,
    downsampling: str = "strides",
) -> Any:
    """Returns the logits of the blocks of ResNet-34 (He et al. 2015, arXiv 1512.03385) and one GRU.

    The AI Rush entrants called it CRNN; only its parts are known, and no parameter count has been published. Input
    [batch, frames, n_bins, 1]; at 128 bins and 4 outputs 21,953,860 parameters (moving averages included). A step of
    the GRU stands for 8 frames, where ResNet-34 would leave 32. The remaining bins (4 of 128) join the channels
    through one 1x1 convolution. Receptive field: the whole input.

    `downsampling="pools"`, `squeeze=4` and `width=16` are the network of an AI Rush finalist: squeeze-and-excitation, a
    stem without stride, max-pools that leave 1 of 128 bins and a step of 256 frames, and a GRU of 8 x width. At 128
    bins and 4 outputs 1,478,000 parameters.
    """
    if downsampling == "pools":
        x = max_pool(conv_bn(x, width, 7, name="stem"), _FINALIST_POOLS[0], name="stem_pool")
        x = layers.ReLU(name="stem_relu")(x)
        x = residual_stages(x, _RESNET34_DEPTHS, (1, 1, 1, 1), width=width, squeeze=squeeze, pools=_FINALIST_POOLS[1:])
        x = bins_as_channels(x)
        x = layers.GRU(8 * width, return_sequences=pooling != "last", name="gru")(x)
        return classify(x, n_outputs, pooling=pooling, dropout=dropout)
    x = conv_bn(x, width, 7, stride=2, name="stem")
    x = layers.MaxPooling2D((1, min(2, int(x.shape[2]))), name="stem_pool")(x)
    x = layers.ReLU(name="stem_relu")(x)
    x = residual_stages(x, _RESNET34_DEPTHS, _RESNET_GRU_STRIDES, width=width, squeeze=squeeze)
    x = layers.ReLU(name="squeeze_relu")(conv_bn(x, 2 * width, 1, name="squeeze"))
    x = bins_as_channels(x)
    x = layers.GRU(4 * width, return_sequences=pooling != "last", name="gru")(x)
    return classify(x, n_outputs, pooling=pooling, dropout=dropout)
