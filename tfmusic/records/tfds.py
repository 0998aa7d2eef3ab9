"""The small files with which `tfds.builder_from_directory` reads a records folder."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tfmusic.records.manifest import Manifest, Split

_FEATURES = "tensorflow_datasets.core.features"
NAMES = ("dataset_info.json", "features.json", "label.labels.txt")


def write(manifest: Manifest, version: str) -> None:
    """Writes the files into the folder of a manifest."""
    for name, text in texts(manifest, version).items():
        (manifest.folder / name).write_text(text, encoding="utf-8")


def texts(manifest: Manifest, version: str) -> dict[str, str]:
    """Returns the text of each file by its name."""
    contract = manifest.contract
    shape = (manifest.segment_frames, contract.n_bins)
    info = _info(manifest.name, version, manifest.splits)
    features = _features(len(contract.labels), shape, contract.dtype)
    labels = "".join(f"{label}\n" for label in contract.labels)
    return dict(zip(NAMES, (_text(info), _text(features), labels), strict=True))


def _info(name: str, version: str, splits: Mapping[str, Split]) -> dict[str, Any]:
    return {
        "description": "Segments of spectrograms with labels, written by tfmusic; see manifest.json.",
        "fileFormat": "tfrecord",
        "moduleName": "tfmusic",
        "name": name,
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split_name,
                "numBytes": str(sum(shard.bytes for shard in split.shards)),
                "shardLengths": [str(shard.segments) for shard in split.shards],
            }
            for split_name, split in splits.items()
        ],
        "version": version,
    }


def _features(n_labels: int, shape: Sequence[int], dtype: str) -> dict[str, Any]:
    label = {
        "pythonClassName": f"{_FEATURES}.class_label_feature.ClassLabel",
        "classLabel": {"numClasses": str(n_labels)},
    }
    fields = {
        "label": _sequence(label),
        "mel": _tensor(dtype, "bytes", shape),
        "start": _tensor("int64", "none", ()),
        "tokens": _sequence(_tensor("int64", "none", ())),
        "track": _tensor("int64", "none", ()),
        "track_id": {"pythonClassName": f"{_FEATURES}.text_feature.Text", "text": {}},
        "valid": _tensor("int64", "none", ()),
    }
    return {
        "pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict",
        "featuresDict": {"features": fields},
    }


def _tensor(dtype: str, encoding: str, shape: Sequence[int]) -> dict[str, Any]:
    dimensions = {"dimensions": [str(size) for size in shape]} if shape else {}
    return {
        "pythonClassName": f"{_FEATURES}.tensor_feature.Tensor",
        "tensor": {"dtype": dtype, "encoding": encoding, "shape": dimensions},
    }


def _sequence(feature: dict[str, Any]) -> dict[str, Any]:
    return {
        "pythonClassName": f"{_FEATURES}.sequence_feature.Sequence",
        "sequence": {"feature": feature, "length": "-1"},
    }


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
