"""Weights by layer name straight from a .keras file, without building its model: Keras 2.15 and 3 store them alike."""

import io
import json
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tfmusic.pretrained.transplant import LayerWeights

_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])")


def archive_weights(path: Path) -> LayerWeights:
    """Returns the weights of every layer that has some; no code of the file is run, no other file is read.

    Raises:
        OSError, KeyError, ValueError: the file is none of Keras, or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        layers = json.loads(archive.read("config.json"))["config"]["layers"]
        store = io.BytesIO(archive.read("model.weights.h5"))
    found, counts = {}, Counter[str]()
    with h5py.File(store, "r") as file:
        for layer in layers:
            kind = _WORDS.sub("_", layer["class_name"]).lower()
            group = f"layers/{kind}_{counts[kind]}" if counts[kind] else f"layers/{kind}"
            counts[kind] += 1
            if weights := _read(file.get(group)):
                found[layer["config"]["name"]] = weights
    return found


def _read(group: Any) -> list[np.ndarray]:
    """Returns the arrays of a layer in their order; of a bidirectional one forward before backward."""
    arrays: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:  # links to other files are not followed
        if isinstance(item, h5py.Dataset):
            if item.external:
                raise ValueError("weights must lie in the file itself")
            arrays[name] = np.asarray(item)

    if group is not None:
        group.visititems(visit)
    order = sorted(arrays, key=lambda name: ("backward" in name, [int(n) for n in re.findall(r"\d+$", name)]))
    return [arrays[name] for name in order]
