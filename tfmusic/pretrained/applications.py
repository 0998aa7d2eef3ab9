"""ImageNet weights of Keras Applications, for spectrograms of one channel.

The first kernel is summed over its three input channels, which gives the same result as three equal channels. It is
also multiplied by the standard deviation of the training images, as a normalised spectrogram has standard deviation 1.
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfmusic.core.keras_file import check_hdf5
from tfmusic.errors import ConfigError, RunError
from tfmusic.pretrained.transplant import LayerWeights, layer_weights

ARCHITECTURES = {"vgg16": "VGG16", "vgg19": "VGG19", "resnet50": "ResNet50", "resnet101": "ResNet101"}

# Standard deviation of ImageNet's pixels, 0 to 255: the mean of .229, .224 and .225 times 255. The networks above were
# trained on pixels minus their mean, not divided by anything.
PIXEL_SPREAD = 57.6

IMAGENET_WIDTH = 64  # channels of the first block of each

_FIRST = {"vgg16": "block1_conv1", "vgg19": "block1_conv1", "resnet50": "conv1_conv", "resnet101": "conv1_conv"}


def imagenet_weights(name: str, path: Path | None = None) -> LayerWeights:
    """Returns the weights of a network by layer name, its first kernel [k, k, 1, channels].

    Args:
        name: a key of `ARCHITECTURES`.
        path: a weights file of Keras Applications, with or without top; None for the file in Keras's cache, which
            Keras fetches if necessary.

    Raises:
        ConfigError: Keras Applications has no such network.
        RunError: the file cannot be fetched or is not of this network.
    """
    check_architecture(name)
    weights = {key: list(values) for key, values in (_fetched(name) if path is None else _read(name, path)).items()}
    kernel = weights[_FIRST[name]][0]
    weights[_FIRST[name]][0] = PIXEL_SPREAD * np.sum(kernel, axis=2, keepdims=True)
    return weights


def check_architecture(name: str) -> None:
    """Raises ConfigError if Keras Applications has no network of that name."""
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"model.weights: ImageNet weights exist for {', '.join(ARCHITECTURES)}. Received: model.name={name}"
        )


def _network(name: str, **options: Any) -> keras.Model:
    return getattr(keras.applications, ARCHITECTURES[name])(**options)


def _fetched(name: str) -> LayerWeights:
    try:
        return layer_weights(_network(name, include_top=False, weights="imagenet"))
    except Exception as error:  # Keras raises a bare Exception without a network
        file = f"{name}_weights_tf_dim_ordering_tf_kernels_notop.h5"
        raise RunError(
            f"model.weights=imagenet: the file {file} of Keras Applications cannot be fetched"
            f" ({str(error).splitlines()[0] if str(error) else repr(error)}); put it into ~/.keras/models/,"
            " or pass its path as model.weights"
        ) from error


def _read(name: str, path: Path) -> LayerWeights:
    if not path.is_file():
        raise RunError(f"{path}: no such file; model.weights must be a weights file of {ARCHITECTURES[name]}")
    problems = list[str]()
    try:
        check_hdf5(path)
    except ValueError as error:
        raise RunError(
            f"{path}: must be a weights file of Keras Applications' {ARCHITECTURES[name]}. Received: {error}"
        ) from error
    for include_top in (False, True):
        network = _network(name, include_top=include_top, weights=None)
        try:
            network.load_weights(path)
        except Exception as error:  # HDF5 and Keras raise errors of any kind on damaged files
            problems.append((str(error) or repr(error)).splitlines()[0])
        else:
            return layer_weights(network)
    raise RunError(
        f"{path}: must be a weights file of Keras Applications' {ARCHITECTURES[name]}. Received: {problems[0]}"
    )
