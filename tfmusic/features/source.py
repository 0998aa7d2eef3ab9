"""A track's feature from wherever it is kept: sound, a spectrogram file, or its part of an embedding file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.contract import POWER
from tfmusic.features import embeddings, npy
from tfmusic.features.audio import is_audio
from tfmusic.features.extracted import check_extracted
from tfmusic.features.perturb import Change


def read_feature(path: Path, track_id: str, feature: Mapping[str, Any], *, change: Change | None = None) -> np.ndarray:
    """Returns the feature of a track, float32 [n_bins, n_frames]; raises DataError where it cannot be used.

    `change` makes a changed copy of a sound file.
    """
    if is_audio(path):
        from tfmusic.features.sound import read_sound

        return _checked(read_sound(path, feature, change), str(path), feature)
    if feature["name"] == embeddings.NAME:
        return embeddings.read_embedding(path, track_id, int(feature["n_bins"]))
    check_extracted(path, feature)
    return _checked(npy.read_cells(path, int(feature["n_bins"])), str(path), feature)


def count_frames(path: Path, track_id: str, feature: Mapping[str, Any]) -> int:
    """Returns how many frames a track has, without computing its cells; raises as `read_feature`."""
    if is_audio(path):
        from tfmusic.features.sound import count_samples, frames_of

        return frames_of(count_samples(path, feature), feature)
    if feature["name"] == embeddings.NAME:
        return int(embeddings.read_embedding(path, track_id, int(feature["n_bins"])).shape[1])
    check_extracted(path, feature)
    return npy.count_mel_frames(path, int(feature["n_bins"]))


def _checked(values: np.ndarray, origin: str, feature: Mapping[str, Any]) -> np.ndarray:
    check = npy.check_power if feature["name"] in POWER else npy.check_finite
    check(values, origin)
    return values
