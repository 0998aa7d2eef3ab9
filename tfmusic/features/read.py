"""A track's feature from wherever it is kept: sound, a spectrogram file, or its part of an embedding file."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tfmusic.core.feature import EMBEDDING, POWER, Feature
from tfmusic.errors import DataError
from tfmusic.features import audio, embeddings, npy
from tfmusic.features.audio import is_audio
from tfmusic.features.chroma import chroma_cqt, chroma_stft
from tfmusic.features.cqt import cqt
from tfmusic.features.extracted import check_extracted
from tfmusic.features.offline_augment import Change, apply_change
from tfmusic.features.spectrograms import log_mel, mel, raw, stft, tempogram


def read_feature(path: Path, track_id: str, feature: Feature, *, change: Change | None = None) -> np.ndarray:
    """Returns the feature of a track, float32 [n_bins, n_frames]; raises DataError where it cannot be used.

    `change` makes a changed copy of a sound file.
    """
    if is_audio(path):
        return _checked(read_sound(path, feature, change), str(path), feature)
    if feature.name == EMBEDDING:
        return embeddings.read_embedding(path, track_id, feature.n_bins)
    check_extracted(path, feature)
    return _checked(npy.read_values(path, feature.n_bins), str(path), feature)


def count_frames(path: Path, track_id: str, feature: Feature) -> int:
    """Returns how many frames a track has, without computing its cells; raises as `read_feature`."""
    if is_audio(path):
        return frames_of(count_samples(path, feature), feature)
    if feature.name == EMBEDDING:
        return int(embeddings.read_embedding(path, track_id, feature.n_bins).shape[1])
    check_extracted(path, feature)
    return npy.count_mel_frames(path, feature.n_bins)


def _checked(values: np.ndarray, origin: str, feature: Feature) -> np.ndarray:
    check = npy.check_power if feature.name in POWER else npy.check_finite
    check(values, origin)
    return values


COMPUTE: dict[str, Callable[..., np.ndarray]] = {
    "mel": mel,
    "log-mel": log_mel,
    "stft": stft,
    "cqt": cqt,
    "chroma_stft": chroma_stft,
    "chroma_cqt": chroma_cqt,
    "tempogram": tempogram,
    "raw": raw,
}


def compute(blocks: Iterator[np.ndarray], feature: Feature) -> np.ndarray:
    """Returns a feature, float32 [n_bins, n_frames], of blocks of mono samples at its sample rate."""
    return COMPUTE[feature.name](blocks, **feature.parameters())


def frames_of(n_samples: int, feature: Feature) -> int:
    """Returns the number of frames that `compute` makes: 1 + n // hop_length; of `raw` n / hop_length rounded up."""
    return -(-n_samples // feature.hop_length) if feature.name == "raw" else 1 + n_samples // feature.hop_length


def read_sound(path: Path, feature: Feature, change: Change | None = None) -> np.ndarray:
    """Returns the feature of a sound file, float32 [n_bins, n_frames]; of a changed copy of it where one is asked for.

    Raises:
        DataError: the file cannot be decoded or is shorter than one window, or nothing computes this feature.
    """
    rate_hz = _sample_rate(path, feature)
    counted = _Counted(audio.read_blocks(path, rate_hz))
    blocks: Iterator[np.ndarray] = counted
    if change is not None:  # which needs the whole of it
        blocks = iter([apply_change(np.concatenate(list(counted)), change)])
    values = compute(blocks, feature)
    _check_long_enough(path, counted.n_samples, feature)
    return values


def count_samples(path: Path, feature: Feature) -> int:
    """Returns the length of a sound file at the feature's sample rate, for `frames_of`; raises as `read_sound`."""
    n_samples = audio.count_samples(path, _sample_rate(path, feature))
    _check_long_enough(path, n_samples, feature)
    return n_samples


def _sample_rate(path: Path, feature: Feature) -> int:
    if feature.name not in COMPUTE:
        raise DataError(
            f"{path}: must be a file of tfmusic embed, as the feature is {feature}. Received: a sound file;"
            " run tfmusic embed on it"
        )
    return feature.sample_rate_hz


def _check_long_enough(path: Path, n_samples: int, feature: Feature) -> None:
    shortest = feature.n_fft or feature.hop_length
    if n_samples < shortest:
        raise DataError(
            f"{path}: must be at least {shortest} samples at {feature.sample_rate_hz} Hz long. Received: {n_samples}"
        )


class _Counted:
    """Blocks as they come, counted."""

    def __init__(self, blocks: Iterator[np.ndarray]) -> None:
        self._blocks, self.n_samples = blocks, 0

    def __iter__(self) -> "_Counted":
        return self

    def __next__(self) -> np.ndarray:
        block = next(self._blocks)
        self.n_samples += len(block)
        return block
