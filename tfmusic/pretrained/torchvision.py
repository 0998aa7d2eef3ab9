"""ImageNet weights of torchvision for `resnet18`, `resnet34` and the VGG networks, from .safetensors files.

These networks are torchvision's, layer by layer. Theirs see three channels of standard deviation 1: the first kernel is
summed over them, which gives the same result as three equal channels.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tfmusic.errors import ConfigError, RunError, UsageError, one_line
from tfmusic.models import build_model
from tfmusic.pretrained.transplant import LayerWeights

TORCHVISION = ("resnet18", "resnet34", "vgg13", "vgg16", "vgg19")

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_BLOCK_PARTS = {
    "a_conv": "conv1", "a_bn": "bn1", "b_conv": "conv2", "b_bn": "bn2",
    "shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1",
}  # fmt: skip


def check_torchvision(name: str) -> None:
    """Raises ConfigError if a network has not torchvision's layers."""
    if name not in TORCHVISION:
        raise ConfigError(
            f"model.weights: .safetensors files of torchvision are for {', '.join(TORCHVISION)}."
            f" Received: model.name={name}"
        )


def torchvision_weights(name: str, path: Path) -> LayerWeights:
    """Returns the weights of a network by layer name, its first kernel [k, k, 1, channels]; nothing in a file is run.

    Raises:
        UsageError: the package safetensors is not installed.
        RunError: the file is damaged, or lacks a tensor of this network or has it in another shape.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise UsageError(f"{path}: needs an extra: pip install 'tfmusic[safetensors]'") from error
    model = build_model(name, frames=32, n_bins=32, n_outputs=1)
    backbone = {layer.name: layer.weights for layer in model.layers if layer.weights and layer.name != "logits"}
    found: dict[str, list[np.ndarray]] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            known = set(file.keys())
            for layer, torch_name in _torch_names(backbone).items():
                parts = _BATCH_NORM if len(backbone[layer]) == 4 else _BATCH_NORM[: len(backbone[layer])]
                found[layer] = []
                for part, weight in zip(parts, backbone[layer], strict=True):
                    key = f"{torch_name}.{part}"
                    if key not in known:
                        raise RunError(f"{path}: must be the state of torchvision's {name}. Received: no tensor {key}")
                    value = _as_keras(file.get_tensor(key), is_first=not found[layer] and len(found) == 1)
                    if value.shape != tuple(weight.shape):
                        shape = list(file.get_slice(key).get_shape())
                        raise RunError(f"{path}: {key} must be that of torchvision's {name}. Received: shape {shape}")
                    found[layer].append(value)
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path}: must be a .safetensors file of torchvision's {name}. Received: {one_line(str(error))}"
        ) from error
    return found


def _as_keras(values: np.ndarray, *, is_first: bool) -> np.ndarray:
    """Returns a vector as it is, and a kernel [out, in, k, k] as [k, k, in, out]."""
    values = np.asarray(values, np.float32)
    kernel = np.transpose(values, (2, 3, 1, 0)) if values.ndim == 4 else values
    return kernel.sum(2, keepdims=True) if is_first and kernel.ndim == 4 and kernel.shape[2] == 3 else kernel


def _torch_names(layers: Iterable[str]) -> dict[str, str]:
    """Returns torchvision's names of layers; a VGG numbers its convolutions, ReLUs and pools in one row."""
    names = {"stem_conv": "conv1", "stem_bn": "bn1"}
    place, last_block = 0, "1"
    for layer in layers:
        if match := re.fullmatch(r"stage(\d)_block(\d+)_(\w+)", layer):
            names[layer] = f"layer{match[1]}.{int(match[2]) - 1}.{_BLOCK_PARTS[match[3]]}"
        elif match := re.fullmatch(r"block(\d)_conv\d", layer):
            place += match[1] != last_block
            names[layer], last_block = f"features.{place}", match[1]
            place += 2
    return {layer: names[layer] for layer in layers}
