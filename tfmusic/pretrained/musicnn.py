"""The weights of the package musicnn 0.1.0 (Pons & Serra 2019, arXiv 1909.06654; ISC licence).

`pip download --no-deps musicnn==0.1.0` brings the wheel. It is read, never imported: the package switches TensorFlow
to graph mode and pins old dependencies. The two networks were trained on 3 s of 96 mels (16 kHz, n_fft 512, hop 256,
log10(10000 m + 1)): MSD_musicnn on the Million Song Dataset, MTT_musicnn on MagnaTagATune.
"""

import tempfile
import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfmusic.errors import RunError
from tfmusic.pretrained.store import HOW_TO_GET, NETWORKS
from tfmusic.pretrained.transplant import LayerWeights

_FILES = (".index", ".data-00000-of-00001")  # the checkpoint's prefix is empty
_CONV = {"timbral1": 0, "timbral2": 1, "temporal1": 2, "temporal2": 3, "temporal3": 4, "mid1": 5, "mid2": 6, "mid3": 7}


def musicnn_weights(path: Path, network: str = NETWORKS[0]) -> LayerWeights:
    """Returns the weights of a network, by the layer names of `models.musicnn`, its 50 outputs included.

    Args:
        path: the wheel, or a folder that holds `MSD_musicnn/` or its files.
        network: one of `NETWORKS`.

    Raises:
        RunError: nothing there, or no checkpoint of musicnn.
    """
    if path.is_dir():
        folders = (path / network, path / "musicnn" / network, path)
        return _read(next((folder for folder in folders if (folder / ".index").is_file()), path), path)
    with tempfile.TemporaryDirectory() as folder:
        _unpack(path, network, Path(folder))
        return _read(Path(folder), path)


def _unpack(wheel: Path, network: str, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in _FILES:
                (folder / name).write_bytes(archive.read(f"musicnn/{network}/{name}"))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(
            f"{wheel}: must be the wheel that {HOW_TO_GET} brings, or a folder with {network}/. Received: {error}"
        ) from error


def _read(folder: Path, named: Path) -> LayerWeights:
    # tf.train.load_checkpoint follows the file `checkpoint`, which holds an absolute path of the author's machine.
    try:
        reader = tf.compat.v1.train.NewCheckpointReader(f"{folder}/")
        return _by_layer(reader)
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise RunError(
            f"{named}: must hold a checkpoint of musicnn, as {HOW_TO_GET} brings it."
            f" Received: {(str(error) or repr(error)).splitlines()[0]}"
        ) from error


def _by_layer(reader: "tf.train.CheckpointReader") -> LayerWeights:
    weights = {"input_bn": _bn(reader, "batch_normalization")}
    for name, index in _CONV.items():
        weights[f"{name}_conv"] = _conv(reader, index, is_1d=name.startswith("mid"))
        weights[f"{name}_bn"] = _bn(reader, f"batch_normalization_{index + 1}")
    # The authors' pooled vector is max0, mean0, max1, mean1, ...; ours is all maxima, then all means.
    weights["pool_bn"] = [_apart(values) for values in _bn(reader, "batch_normalization_9")]
    weights["hidden"] = [_apart(reader.get_tensor("dense/kernel")), reader.get_tensor("dense/bias")]
    weights["hidden_bn"] = _bn(reader, "batch_normalization_10")
    weights["logits"] = [reader.get_tensor("dense_1/kernel"), reader.get_tensor("dense_1/bias")]
    return weights


def _conv(reader: "tf.train.CheckpointReader", index: int, *, is_1d: bool) -> list[np.ndarray]:
    name = f"conv2d_{index}" if index else "conv2d"
    kernel, bias = reader.get_tensor(f"{name}/kernel"), reader.get_tensor(f"{name}/bias")
    return [kernel[:, :, 0] if is_1d else kernel, bias]  # as high as its input: a convolution over time


def _bn(reader: "tf.train.CheckpointReader", name: str) -> list[np.ndarray]:
    return [reader.get_tensor(f"{name}/{part}") for part in ("gamma", "beta", "moving_mean", "moving_variance")]


def _apart(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[0::2], values[1::2]])
