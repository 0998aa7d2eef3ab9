"""A track's feature from wherever it is kept: a spectrogram of its own file, or its part of an embedding file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.features import embeddings, npy


def read_feature(path: Path, track_id: str, feature: Mapping[str, Any]) -> np.ndarray:
    """Returns the feature of a track, float32 [n_bins, n_frames]; raises DataError where it cannot be used."""
    if feature["name"] == embeddings.NAME:
        return embeddings.read_embedding(path, track_id, int(feature["n_bins"]))
    return npy.read_mel(path, int(feature["n_bins"]))


def count_frames(path: Path, track_id: str, feature: Mapping[str, Any]) -> int:
    """Returns how many frames a track has, without reading a spectrogram's cells; raises as `read_feature`."""
    if feature["name"] == embeddings.NAME:
        return int(embeddings.read_embedding(path, track_id, int(feature["n_bins"])).shape[1])
    return int(npy.open_mel(path, int(feature["n_bins"])).shape[1])
