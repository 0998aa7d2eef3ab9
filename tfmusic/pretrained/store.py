"""Weights by layer name straight from a .keras file, without building its model: Keras 2.15 and 3 store them alike."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tfmusic.core.files import put_in_place
from tfmusic.errors import RunError
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
            if weights := _read_member(file.get(group)):
                found[layer["config"]["name"]] = weights
    return found


def _read_member(group: Any) -> list[np.ndarray]:
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


PACKAGE = "musicnn"
VERSION = "0.1.0"
HOW_TO_GET = f"pip download --no-deps {PACKAGE}=={VERSION}"
LICENCE = "ISC licence, Jordi Pons 2019; trained networks of Pons & Serra 2019 (arXiv 1909.06654)"
# The checkpoints' two files (their prefix is empty), and the sha256 of each as the wheel has them.
FILES = {
    "MSD_musicnn/.index": "87f3e0f3550c8d3bafc840374003e5c8af5eeb5ecf6add61af09a7822d3282c8",
    "MSD_musicnn/.data-00000-of-00001": "8579734ee6388f799ed0def4bbd0d1fdcbeaf213ef2a9dc860917bd76a303de6",
    "MTT_musicnn/.index": "da2d7bb670b2b31e9bc441bb1bd75eca31b5b061f963cc1f9630c1aff3238f57",
    "MTT_musicnn/.data-00000-of-00001": "041f3935e981a65cea739842d30c188d3a7d2adf4410955c8668eb3de4a5acab",
}
NETWORKS = ("MSD_musicnn", "MTT_musicnn")


def store() -> Path:
    """Returns the folder of weights: $TFMUSIC_WEIGHTS, else tfmusic/ in the user's cache."""
    own = os.environ.get("TFMUSIC_WEIGHTS")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(cache) / "tfmusic"


def stored_musicnn() -> Path:
    """Returns the folder of musicnn's networks.

    Raises:
        RunError: they are not there.
    """
    folder = store() / f"{PACKAGE}-{VERSION}"
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder. `tfmusic weights musicnn` puts musicnn's weights there")
    return folder


def store_musicnn(source: Path) -> Path:
    """Copies musicnn's networks from the wheel or an unpacked folder into the store; returns their folder.

    Raises:
        RunError: a file is missing, or is not the published one.
    """
    target = store() / f"{PACKAGE}-{VERSION}"
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, wanted in FILES.items():
            content = _read(source, name)
            found = hashlib.sha256(content).hexdigest()
            if found != wanted:
                raise RunError(
                    f"{source}: {name} must be that of {PACKAGE} {VERSION}, sha256 {wanted}. Received: {found}"
                )
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        put_in_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def download_musicnn() -> Path:
    """Fetches the wheel with pip and stores its networks; the package itself is neither installed nor imported.

    Raises:
        RunError: pip could not fetch it, or it is not the published one.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", *HOW_TO_GET.split(), "--quiet", "--dest", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            why = (done.stderr.strip().splitlines() or ["nothing came"])[-1]
            raise RunError(f"{' '.join(command[2:7])}: {why}. Fetch the wheel elsewhere and pass its path")
        return store_musicnn(wheels[0])


def _read(source: Path, name: str) -> bytes:
    """Returns a file of the wheel, or of a folder that holds the networks or the package."""
    try:
        if source.is_dir():
            inside = source / PACKAGE / name
            return (inside if inside.is_file() else source / name).read_bytes()
        with zipfile.ZipFile(source) as archive:
            return archive.read(f"{PACKAGE}/{name}")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(
            f"{source}: must be the wheel that {HOW_TO_GET} brings, or a folder with {name}. Received: {error}"
        ) from error
