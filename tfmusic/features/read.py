"""Reads or computes the feature of a track: from an audio file, a spectrogram file, or an embedding file."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tfmusic.core.feature import EMBEDDING, POWER, Feature
from tfmusic.core.track import MIN_SHARE
from tfmusic.errors import DataError
from tfmusic.features import audio, embeddings, npy
from tfmusic.features.audio import is_audio
from tfmusic.features.cqt import chroma_cqt, chroma_stft, cqt
from tfmusic.features.filterbanks import map_filterbank
from tfmusic.features.npy import check_extracted
from tfmusic.features.offline_augment import Change, apply_change
from tfmusic.features.spectrograms import MIN_POWER, divide_by_maximum, log_mel, mel, raw, stft, tempogram

_AIRUSH, _MUSICNN = Feature.model_validate("airush"), Feature.model_validate("musicnn")


def read_feature(
    path: Path, track_id: str, feature: Feature, *, change: Change | None = None, min_share: float = MIN_SHARE
) -> np.ndarray:
    """Returns the feature of a track, float32 [n_bins, n_frames], or of an augmented copy of an audio file.

    An audio file must hold `min_share` of the samples that its headers state.

    Raises:
        DataError: the file is missing or damaged, has another feature, or values that are not finite.
    """
    if is_audio(path):
        return _checked(_compute_from_audio(path, feature, change, min_share), str(path), feature)
    if path.suffix == ".npz" and feature.name == EMBEDDING:
        return embeddings.read_embedding(path, track_id, feature.n_bins)
    check_extracted(path, feature)
    return _checked(power_of(npy.read_values(path, feature.n_bins), feature), str(path), feature)


def power_of(values: np.ndarray, feature: Feature) -> np.ndarray:
    """Returns the power of the values of an .npy file, same shape and dtype: themselves without a `log10_factor`."""
    if feature.log10_factor is None:
        return values
    with np.errstate(over="ignore"):  # infinite power is refused by the checks
        return np.asarray(10.0 ** (values / feature.log10_factor), values.dtype)


def file_values(power: np.ndarray, feature: Feature) -> np.ndarray:
    """Returns what an .npy file holds in place of power; silence is that of `MIN_POWER`."""
    if feature.log10_factor is None:
        return power
    scaled = feature.log10_factor * np.log10(np.maximum(power, power.dtype.type(MIN_POWER)))
    return np.asarray(scaled, power.dtype)


def inputs_of(feature: Feature) -> tuple[Feature, ...]:
    """Returns the features that a model of one takes: its own, and in place of musicnn's mel-spectrograms AI Rush's."""
    return (_MUSICNN, _AIRUSH) if feature == _MUSICNN else (feature,)


def read_input(path: Path, track_id: str, feature: Feature) -> np.ndarray:
    """Returns the feature of a track for a model; raises as `read_feature`.

    A `.npy` file may hold any of `inputs_of` the feature, which its number of bins tells; it is mapped to the feature.
    """
    if len(inputs_of(feature)) == 1 or is_audio(path):
        return read_feature(path, track_id, feature)
    return map_input(npy.read_any_mel(path, [given.n_bins for given in inputs_of(feature)]), feature)


def map_input(values: np.ndarray, feature: Feature) -> np.ndarray:
    """Returns the feature [n_bins, n_frames] of one of its `inputs_of`, known by its number of bins."""
    given = next(given for given in inputs_of(feature) if given.n_bins == len(values))
    return map_filterbank(values, given, feature)


def count_frames(path: Path, track_id: str, feature: Feature, min_share: float = MIN_SHARE) -> int:
    """Returns the number of frames of a track without computing its feature; raises as `read_feature`."""
    if is_audio(path):
        return frames_of(count_samples(path, feature, min_share), feature)
    if path.suffix == ".npz" and feature.name == EMBEDDING:
        return int(embeddings.read_embedding(path, track_id, feature.n_bins).shape[1])
    check_extracted(path, feature)
    return npy.count_mel_frames(path, feature.n_bins)


def _compute_from_audio(path: Path, feature: Feature, change: Change | None, min_share: float) -> np.ndarray:
    n_samples = 0

    def counted_blocks() -> Iterator[np.ndarray]:
        nonlocal n_samples
        for block in audio.read_blocks(path, _sample_rate(path, feature), min_share):
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
    "cqt_normalised": lambda blocks, **parameters: divide_by_maximum(cqt(blocks, **parameters)),
    "chroma_stft": chroma_stft,
    "chroma_cqt": chroma_cqt,
    "tempogram": tempogram,
    "raw": raw,
}


def compute(blocks: Iterator[np.ndarray], feature: Feature) -> np.ndarray:
    """Returns the feature, float32 [n_bins, n_frames], of blocks of mono samples at its sample rate."""
    return COMPUTE[feature.name](blocks, **feature.parameters())


def compute_from_samples(samples: np.ndarray, rate_hz: int, feature: Feature) -> np.ndarray:
    """Returns the feature, float32 [n_bins, n_frames], of mono samples [n_samples], full scale 1, at any rate.

    Raises:
        DataError: there are fewer samples than one window has, or the feature is an embedding.
    """
    origin = Path("waveform")  # what messages name
    blocks = list(audio.resampled(iter([(rate_hz, np.ascontiguousarray(samples))]), _sample_rate(origin, feature)))
    _check_long_enough(origin, sum(map(len, blocks)), feature)
    return compute(iter(blocks), feature)


def frames_of(n_samples: int, feature: Feature) -> int:
    """Returns the number of frames that `compute` returns: 1 + n // hop_length; for `raw` ceil(n / hop_length)."""
    return -(-n_samples // feature.hop_length) if feature.name == "raw" else 1 + n_samples // feature.hop_length


def count_samples(path: Path, feature: Feature, min_share: float = MIN_SHARE) -> int:
    """Returns the number of samples of an audio file at the feature's sample rate.

    Raises:
        DataError: the file cannot be decoded or is shorter than one window, or the feature is an embedding.
    """
    n_samples = audio.count_samples(path, _sample_rate(path, feature), min_share)
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
