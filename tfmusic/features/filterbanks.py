"""Mel filterbanks: Slaney's, and the map from one mel-spectrogram to another of the same music.

A pretrained network needs the spectrogram that it was trained on, with its own bins, window and hop. `filterbank_map`
expresses each target filter as the nearest non-negative combination of the source's filters (least squares, on the
finer FFT). Frames in between are interpolated. Power is scaled by the squared ratio of the windows, since a window
twice as long collects four times the energy. What the longer window has smoothed in time stays smooth.
"""

from functools import lru_cache

import numpy as np

from tfmusic.core.feature import C1_HZ, Feature
from tfmusic.errors import DataError

# The mel scale of Slaney's Auditory Toolbox (1998): linear up to 1 kHz, then logarithmic, 27 mels from 1 to 6.4 kHz.
_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def mel_filterbank(n_bins: int, *, sample_rate_hz: int, n_fft: int) -> np.ndarray:
    """Returns triangular filters float64 [n_bins, n_fft // 2 + 1], each of area 1 Hz, up to half the sample rate.

    Equal to `librosa.filters.mel` of version 0.11 with its defaults, in float64.
    """
    edges_hz = _mel_to_hz(np.linspace(0.0, _hz_to_mel(np.array(sample_rate_hz / 2.0)), n_bins + 2))
    bins_hz = np.linspace(0.0, sample_rate_hz / 2.0, n_fft // 2 + 1)
    widths = np.diff(edges_hz)
    rising = (bins_hz - edges_hz[:-2, None]) / widths[:-1, None]
    falling = (edges_hz[2:, None] - bins_hz) / widths[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return np.asarray(triangles * (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None])


def bin_hz(feature: Feature) -> np.ndarray | None:
    """Returns the frequency at the centre of every bin, Hz [n_bins]; None where bins are no frequencies."""
    if feature.name in ("mel", "log-mel"):
        edges = np.linspace(0.0, _hz_to_mel(np.array(feature.sample_rate_hz / 2.0)), feature.n_bins + 2)
        return _mel_to_hz(edges[1:-1])
    if feature.name == "stft":
        return np.linspace(0.0, feature.sample_rate_hz / 2.0, feature.n_bins)
    if feature.name in ("cqt", "cqt_normalised"):
        return np.asarray(C1_HZ * 2.0 ** (np.arange(feature.n_bins) / 12))
    return None


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    above = _BREAK_MEL + np.log(np.maximum(hz, _BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    return np.where(hz < _BREAK_HZ, hz / _HZ_PER_MEL, above)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    above = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _BREAK_MEL) - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _HZ_PER_MEL, above)


def map_filterbank(mel: np.ndarray, source: Feature, target: Feature) -> np.ndarray:
    """Returns linear power [target n_bins, n] of linear power [source n_bins, n_frames].

    Args:
        mel: linear power.
        source: the feature of `mel`.
        target: the feature to return, with the same sample rate and a hop that divides the source's.

    Raises:
        DataError: the sample rates differ, or the hops do not divide.
    """
    if source == target:
        return mel
    steps = frames_for_each(source, target)
    return _interpolate_frames(filterbank_map(source, target) @ mel, steps)


def frames_for_each(source: Feature, target: Feature) -> int:
    """Returns the number of target frames for each source frame.

    Raises:
        DataError: the sample rates differ, or the hops do not divide.
    """
    steps, rest = divmod(source.hop_length, target.hop_length)
    if source.sample_rate_hz != target.sample_rate_hz or rest:
        raise DataError(
            f"feature must have sample_rate_hz={target.sample_rate_hz} and a hop_length that is a multiple of"
            f" {target.hop_length}. Received: {source}"
        )
    return steps


@lru_cache(maxsize=4)
def filterbank_map(source: Feature, target: Feature) -> np.ndarray:
    """Returns the matrix [target n_bins, source n_bins], float32, no value below 0, that maps source to target power.

    From 128 bins with n_fft 1024 to 96 with 512, the filters differ from the target's by .18 of their norm.
    """
    from scipy.optimize import nnls

    source_fft, target_fft = source.n_fft or 0, target.n_fft or 0  # mel-spectrograms always have one
    fine = max(source_fft, target_fft)
    source_filters, target_filters = (
        mel_filterbank(feature.n_bins, sample_rate_hz=feature.sample_rate_hz, n_fft=fine)
        for feature in (source, target)
    )
    rows = [nnls(source_filters.T, row)[0] for row in target_filters]
    return np.asarray((target_fft / source_fft) ** 2 * np.stack(rows), np.float32)


def _interpolate_frames(mel: np.ndarray, steps: int) -> np.ndarray:
    """Returns `steps` frames for each frame but the last, by linear interpolation."""
    n_frames = mel.shape[1]
    position = np.arange(steps * (n_frames - 1) + 1) / steps
    before = position.astype(np.int64)
    share = (position - before).astype(mel.dtype)
    return np.asarray((1 - share) * mel[:, before] + share * mel[:, np.minimum(before + 1, n_frames - 1)])
