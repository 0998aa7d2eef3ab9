"""The weights of the package musicnn 0.1.0 (Pons & Serra 2019, arXiv 1909.06654; ISC licence): fetch, store, read.

The wheel is read and never imported: the package switches TensorFlow to graph mode and pins old dependencies. Its two
networks were trained on 3 s of 96 mels (16 kHz, n_fft 512, hop 256, log10(10000 power + 1)): MSD_musicnn on the
Million Song Dataset, MTT_musicnn on MagnaTagATune.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tfmusic.core.files import replacing_folder, write_bytes
from tfmusic.errors import RunError

if TYPE_CHECKING:
    import tensorflow as tf

    from tfmusic.pretrained.transplant import LayerWeights

PACKAGE = "musicnn"
VERSION = "0.1.0"
HOW_TO_GET = f"pip download --no-deps --only-binary=:all: {PACKAGE}=={VERSION}"
_WHEEL_SHA256 = "f38a4890c648c1ddbb141c5d96d2b0a8cfcd36746002d896989f7b88beb65cfa"
LICENCE = "ISC licence, Jordi Pons 2019; trained networks of Pons & Serra 2019 (arXiv 1909.06654)"
NETWORKS = ("MSD_musicnn", "MTT_musicnn")
# Name and sha256 of the files in the wheel; the prefix of a checkpoint is empty.
FILES = {
    "MSD_musicnn/.index": "87f3e0f3550c8d3bafc840374003e5c8af5eeb5ecf6add61af09a7822d3282c8",
    "MSD_musicnn/.data-00000-of-00001": "8579734ee6388f799ed0def4bbd0d1fdcbeaf213ef2a9dc860917bd76a303de6",
    "MTT_musicnn/.index": "da2d7bb670b2b31e9bc441bb1bd75eca31b5b061f963cc1f9630c1aff3238f57",
    "MTT_musicnn/.data-00000-of-00001": "041f3935e981a65cea739842d30c188d3a7d2adf4410955c8668eb3de4a5acab",
}

# Our layer and the number of the convolution in the checkpoint.
_MOST_BYTES = 64 << 20  # 64 MiB, of an unpacked file
_CONV = {"timbral1": 0, "timbral2": 1, "temporal1": 2, "temporal2": 3, "temporal3": 4, "mid1": 5, "mid2": 6, "mid3": 7}


def stored_musicnn() -> Path:
    """Returns the folder of the stored networks.

    Raises:
        RunError: they have not been stored.
    """
    folder = weights_store() / f"{PACKAGE}-{VERSION}"
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder. `tfmusic weights musicnn` stores the weights of musicnn there")
    return folder


def store_musicnn(source: Path) -> Path:
    """Copies the networks from the wheel or an unpacked folder into the store; returns their folder.

    Raises:
        RunError: a file is missing, or is not the published one.
    """
    target = weights_store() / f"{PACKAGE}-{VERSION}"
    with replacing_folder(target) as partial:
        for name, expected in FILES.items():
            content = _read_file(source, name)
            sha256 = hashlib.sha256(content).hexdigest()
            if sha256 != expected:
                raise RunError(
                    f"{source}: {name} must be the file of {PACKAGE} {VERSION}, sha256 {expected}. Received: {sha256}"
                )
            write_bytes(partial / name, content)
    return target


def download_musicnn() -> Path:
    """Fetches the wheel with pip and stores its networks; nothing of the package is installed, built or imported.

    Raises:
        RunError: pip cannot fetch it, or it is not the published one.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "requirements.txt")
        wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{_WHEEL_SHA256}\n")
        options = [*HOW_TO_GET.split()[:-1], "--require-hashes", "--requirement", str(wanted)]
        # -P: a pip.py in the folder where the command was typed is not run.
        command = [sys.executable, "-P", "-m", *options, "--quiet", "--dest", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines() or ["no wheel was fetched"]
            reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
            raise RunError(f"{HOW_TO_GET}: {reason}. Fetch the wheel on another machine and pass its path")
        return store_musicnn(wheels[0])


def musicnn_weights(source: Path, network: str = NETWORKS[0]) -> "LayerWeights":
    """Returns the weights of a network, its 50 outputs included, by the layer names of `models.musicnn`.

    Args:
        source: the wheel, or a folder that contains the package, the networks, or the files of this network.
        network: one of `NETWORKS`.

    Raises:
        RunError: a file is missing or damaged.
    """
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            if name.startswith(network):
                Path(folder, Path(name).name).write_bytes(_read_file(source, name))
        # tf.train.load_checkpoint would follow the file `checkpoint`, which has an absolute path on the author's
        # machine.
        try:
            return _by_layer(tf.compat.v1.train.NewCheckpointReader(f"{folder}/"))
        except (tf.errors.OpError, ValueError, RuntimeError) as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            raise RunError(
                f"{source}: must contain a checkpoint of musicnn, as in the wheel of `{HOW_TO_GET}`. Received: {reason}"
            ) from error


def weights_store() -> Path:
    """Returns the folder of weights: $TFMUSIC_WEIGHTS, else tfmusic/ in the user's cache."""
    if folder := os.environ.get("TFMUSIC_WEIGHTS"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfmusic"


def _read_file(source: Path, name: str) -> bytes:
    """Returns a file of the wheel, or of a folder that contains the package, the networks, or one network."""
    try:
        if source.is_dir():
            paths = [source / PACKAGE / name, source / name, source / Path(name).name]
            return next((path for path in paths if path.is_file()), paths[1]).read_bytes()
        with zipfile.ZipFile(source) as archive:
            return archive.open(f"{PACKAGE}/{name}").read(_MOST_BYTES)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(
            f"{source}: must be the wheel of `{HOW_TO_GET}`, or a folder with {name}. Received: {error}"
        ) from error


def _by_layer(reader: "tf.train.CheckpointReader") -> "LayerWeights":
    weights = {"input_bn": _bn(reader, "batch_normalization")}
    for name, index in _CONV.items():
        weights[f"{name}_conv"] = _conv(reader, index, is_1d=name.startswith("mid"))
        weights[f"{name}_bn"] = _bn(reader, f"batch_normalization_{index + 1}")
    # The authors interleave the pooled vector, max0, mean0, max1, mean1, ...; ours is all maxima, then all means.
    weights["pool_bn"] = [_deinterleave(values) for values in _bn(reader, "batch_normalization_9")]
    weights["hidden"] = [_deinterleave(reader.get_tensor("dense/kernel")), reader.get_tensor("dense/bias")]
    weights["hidden_bn"] = _bn(reader, "batch_normalization_10")
    weights["logits"] = [reader.get_tensor("dense_1/kernel"), reader.get_tensor("dense_1/bias")]
    return weights


def _conv(reader: "tf.train.CheckpointReader", index: int, *, is_1d: bool) -> list[np.ndarray]:
    name = f"conv2d_{index}" if index else "conv2d"
    kernel, bias = reader.get_tensor(f"{name}/kernel"), reader.get_tensor(f"{name}/bias")
    return [kernel[:, :, 0] if is_1d else kernel, bias]  # a kernel as high as its input is a convolution over time


def _bn(reader: "tf.train.CheckpointReader", name: str) -> list[np.ndarray]:
    return [reader.get_tensor(f"{name}/{part}") for part in ("gamma", "beta", "moving_mean", "moving_variance")]


def _deinterleave(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[0::2], values[1::2]])
