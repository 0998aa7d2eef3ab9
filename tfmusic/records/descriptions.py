"""What other tools read of a records folder: the files of TensorFlow Datasets (`tfds.builder_from_directory`), and
`croissant.json`, the description that search engines and hubs take (MLCommons Croissant 1.0, 2024).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tfmusic.records.manifest import TRACKS_NAME, Manifest, Split

_FEATURES = "tensorflow_datasets.core.features"
NAMES = ("dataset_info.json", "features.json", "label.labels.txt")
CROISSANT_NAME = "croissant.json"  # records of earlier builds lack it

_TERMS = """citeAs column equivalentProperty extract field fileProperty fileObject fileSet format includes isLiveDataset
    jsonPath key md5 parentField path recordSet references regex repeated replace samplingRate separator source subField
    transform"""
_VOCABULARY = {  # the context of every Croissant 1.0 file
    "@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/", "dct": "http://purl.org/dc/terms/",
    "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
    "conformsTo": "dct:conformsTo", "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "data": {"@id": "cr:data", "@type": "@json"}, "examples": {"@id": "cr:examples", "@type": "@json"},
} | {term: f"cr:{term}" for term in _TERMS.split()}  # fmt: skip
_COLUMNS = {
    "track_id": ("sc:Text", "name of the track"),
    "split": ("sc:Text", "split or fold"),
    "labels": ("sc:Text", "its labels, a JSON list"),
    "n_frames": ("sc:Integer", "length, frames"),
    "artists": ("sc:Text", "keys of its artists, a JSON list"),
    "album": ("sc:Text", "key of its album"),
    "skipped": ("sc:Text", "why it is not in the shards; empty for those that are"),
}


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
    files = dict(zip(NAMES, (_text(info), _text(features), labels), strict=True))
    return files | {CROISSANT_NAME: _text(_croissant(manifest, version))}


def _croissant(manifest: Manifest, version: str) -> dict[str, Any]:
    """Returns the description of the shards and of tracks.csv, which Croissant's tools read as the table `tracks`."""
    contract = manifest.contract
    return {
        "@context": _VOCABULARY,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": manifest.name,
        "version": version,
        "description": (
            f"{sum(split.tracks for split in manifest.splits.values()):,} tracks with {len(contract.labels)} labels as"
            f" TFRecord shards of segments of {manifest.segment_frames} frames: {contract.feature}; written by tfmusic,"
            " see manifest.json."
        ),
        "distribution": [
            {
                "@type": "cr:FileObject", "@id": TRACKS_NAME, "name": TRACKS_NAME, "contentUrl": TRACKS_NAME,
                "encodingFormat": "text/csv", "sha256": manifest.tracks_sha256,
            },
            {
                "@type": "cr:FileSet", "@id": "shards", "name": "shards", "encodingFormat": "application/x-tfrecord",
                "includes": f"{manifest.name}-*.tfrecord-*",
            },
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet", "@id": "tracks", "name": "tracks", "key": {"@id": "tracks/track_id"},
                "field": [_column(name, *about) for name, about in _COLUMNS.items()],
            }
        ],
    }  # fmt: skip


def _column(name: str, data_type: str, description: str) -> dict[str, Any]:
    source = {"fileObject": {"@id": TRACKS_NAME}, "extract": {"column": name}}
    key = f"tracks/{name}"
    return {
        "@type": "cr:Field", "@id": key, "name": key, "description": description, "dataType": data_type,
        "source": source,
    }  # fmt: skip


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
