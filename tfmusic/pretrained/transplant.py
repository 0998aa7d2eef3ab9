"""Weights by layer name: from a model or a .keras file, and into a model whose layers have the same names."""

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from tfmusic.core.keras_file import check_hdf5, read_keras_file
from tfmusic.errors import RunError
from tfmusic.models.surgery import load_saved, other_keras

LayerWeights = Mapping[str, Sequence[np.ndarray]]

NEW_HEAD = "a new head"

_HEAD = ("logits", "tokens", "metadata_logits")  # and logits_TASK; the metadata tokens of every model are its own
_WORD_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True)
class Transplant:
    """Which layers of a model have the weights of a source.

    Attributes:
        loaded: names of the layers that have the source's weights: the backbone.
        skipped: the other layers with weights, and the reason for each.
    """

    loaded: tuple[str, ...]
    skipped: Mapping[str, str]

    def describe(self) -> str:
        """Returns one line with the number of layers, and one line for every reason with its layers."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            reasons.setdefault(reason, []).append(name)
        lines = [f"{len(self.loaded)} layers loaded, {len(self.skipped)} not"]
        lines += [f"  not loaded, {reason}: {', '.join(names)}" for reason, names in reasons.items()]
        return "\n".join(lines)


def transplant(model: keras.Model, source: LayerWeights, *, with_head: bool = False) -> Transplant:
    """Sets the weights of every layer that the source has under the same name and in the same shapes.

    Args:
        model: the model to change.
        source: weights by layer name.
        with_head: whether to load the last layers too, which belong to the source's labels.
    """
    loaded, skipped = [], {}
    for layer in model.layers:
        if not layer.weights:
            continue
        reason = _reason_to_skip(layer, source, with_head=with_head)
        if reason is None:
            layer.set_weights(list(source[layer.name]))
            loaded.append(layer.name)
        else:
            skipped[layer.name] = reason
    return Transplant(tuple(loaded), skipped)


def layer_weights(model: keras.Model) -> LayerWeights:
    """Returns the weights of every layer that has some."""
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


def keras_file_weights(path: Path) -> LayerWeights:
    """Returns the weights of a .keras file of Keras 3 or 2.15 by layer name.

    Raises:
        RunError: the file is missing or damaged, or contains code of its own.
    """
    try:
        return layer_weights(load_saved(path))
    except RunError:
        if other_keras(path) is None:
            raise
        try:
            return archive_weights(path)
        except Exception:  # damaged: raise what load_saved says
            pass
        raise


def archive_weights(path: Path) -> LayerWeights:
    """Returns the weights of a .keras file by layer name without building its model.

    Keras 2.15 and 3 store weights alike, although neither reads the other's models. Runs no code of the file and reads
    no other file.

    Raises:
        OSError, KeyError, ValueError: the file is no Keras model, or damaged.
    """
    config, content = read_keras_file(path)
    check_hdf5(content)
    layers = config["config"]["layers"]
    weights, counts = {}, Counter[str]()
    with h5py.File(io.BytesIO(content), "r") as file:
        for layer in layers:
            kind = _WORD_BOUNDARY.sub("_", layer["class_name"]).lower()
            group = f"layers/{kind}_{counts[kind]}" if counts[kind] else f"layers/{kind}"
            counts[kind] += 1
            if arrays := _read_group(file.get(group)):
                weights[layer["config"]["name"]] = arrays
    return weights


def _read_group(group: Any) -> list[np.ndarray]:
    """Returns the arrays of a layer in their order; of a bidirectional layer forward before backward."""
    arrays: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = np.asarray(item)

    if group is not None:
        group.visititems(visit)
    order = sorted(arrays, key=lambda name: ("backward" in name, [int(n) for n in re.findall(r"\d+$", name)]))
    return [arrays[name] for name in order]


def _reason_to_skip(layer: keras.layers.Layer, source: LayerWeights, *, with_head: bool) -> str | None:
    if layer.name.startswith(_HEAD) and not with_head:
        return NEW_HEAD
    if layer.name not in source:
        return "no layer of that name in the source"
    shapes = [value.shape for value in source[layer.name]]
    wanted = [tuple(weight.shape) for weight in layer.weights]
    if shapes != wanted:
        if isinstance(layer, keras.layers.GRU) and shapes[:2] == wanted[:2]:  # the bias tells them apart
            kind = str(len(shapes[2]) == 2).lower()
            return f"a GRU of the other kind in the source: set model.reset_after={kind}"
        return "another shape in the source"
    return None
