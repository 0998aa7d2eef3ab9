"""Reads or computes the feature of a track: from an audio file, a spectrogram file, or an embedding file."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tfmusic.core.feature import EMBEDDING, POWER, Feature
from tfmusic.errors import DataError
from tfmusic.features import audio, embeddings, npy
from tfmusic.features.audio import is_audio
from tfmusic.features.chroma import chroma_cqt, chroma_stft
from tfmusic.features.cqt import cqt
from tfmusic.features.npy import check_extracted
from tfmusic.features.offline_augment import Change, apply_change
from tfmusic.features.spectrograms import log_mel, mel, raw, stft, tempogram


def read_feature(path: Path, track_id: str, feature: Feature, *, change: Change | None = None) -> np.ndarray:
    """Returns the feature of a track, float32 [n_bins, n_frames], or of an augmented copy of an audio file.

    Raises:
        DataError: the file is missing or damaged, has another feature, or values that are not finite.
    """
    if is_audio(path):
        return _checked(_compute_from_audio(path, feature, change), str(path), feature)
    if feature.name == EMBEDDING:
        return embeddings.read_embedding(path, track_id, feature.n_bins)
    check_extracted(path, feature)
    return _checked(npy.read_values(path, feature.n_bins), str(path), feature)


def count_frames(path: Path, track_id: str, feature: Feature) -> int:
    """Returns the number of frames of a track without computing its feature; raises as `read_feature`."""
    if is_audio(path):
        return frames_of(count_samples(path, feature), feature)
    if feature.name == EMBEDDING:
        return int(embeddings.read_embedding(path, track_id, feature.n_bins).shape[1])
    check_extracted(path, feature)
    return npy.count_mel_frames(path, feature.n_bins)


def _compute_from_audio(path: Path, feature: Feature, change: Change | None) -> np.ndarray:
    n_samples = 0

    def counted_blocks() -> Iterator[np.ndarray]:
        nonlocal n_samples
        for block in audio.read_blocks(path, _sample_rate(path, feature)):
            n_samples += len(block)
            yield block

    blocks = counted_blocks()
    if change is not None:  # needs the whole track
        blocks = iter([apply_change(np.concatenate(list(blocks)), change)])
    values = compute(blocks, feature)
    _check_long_enough(path, n_samples, feature)
    return values


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
    """Returns the feature, float32 [n_bins, n_frames], of blocks of mono samples at its sample rate."""
    return COMPUTE[feature.name](blocks, **feature.parameters())


def frames_of(n_samples: int, feature: Feature) -> int:
    """Returns the number of frames that `compute` returns: 1 + n // hop_length; for `raw` ceil(n / hop_length)."""
    return -(-n_samples // feature.hop_length) if feature.name == "raw" else 1 + n_samples // feature.hop_length


def count_samples(path: Path, feature: Feature) -> int:
    """Returns the number of samples of an audio file at the feature's sample rate.

    Raises:
        DataError: the file cannot be decoded or is shorter than one window, or the feature is an embedding.
    """
    n_samples = audio.count_samples(path, _sample_rate(path, feature))
    _check_long_enough(path, n_samples, feature)
    return n_samples


def _sample_rate(path: Path, feature: Feature) -> int:
    if feature.name not in COMPUTE:
        raise DataError(
            f"{path}: must be a file of tfmusic embed, as the feature is {feature}. Received: an audio file;"
            " run tfmusic embed on it"
        )
    return feature.sample_rate_hz


def _check_long_enough(path: Path, n_samples: int, feature: Feature) -> None:
    min_samples = feature.n_fft or feature.hop_length
    if n_samples < min_samples:
        raise DataError(
            f"{path}: must have at least {min_samples} samples at {feature.sample_rate_hz} Hz. Received: {n_samples}"
        )
