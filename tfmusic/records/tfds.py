"""The small files that make a records folder readable by `tfds.builder_from_directory`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfmusic.records.manifest import Split

_FEATURES = "tensorflow_datasets.core.features"


def write(
    folder: Path,
    *,
    name: str,
    version: str,
    splits: Mapping[str, Split],
    labels: Sequence[str],
    shape: Sequence[int],
    dtype: str,
) -> None:
    """Writes dataset_info.json, features.json and label.labels.txt."""
    _dump(_info(name, version, splits), folder / "dataset_info.json")
    _dump(_features(len(labels), shape, dtype), folder / "features.json")
    (folder / "label.labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


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


def _dump(value: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
