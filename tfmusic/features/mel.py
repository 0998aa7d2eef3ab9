"""The mel filterbank, and mel-spectrograms of sound."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from tfmusic.features.frames import collect, power_spectra

_FLOOR = 1e-10  # of power, before a logarithm

_HZ_PER_MEL = 200.0 / 3.0  # linear up to 1 kHz,
_BREAK_HZ = 1000.0
_LOG_STEP = np.log(6.4) / 27.0  # logarithmic above: 27 mels from 1 to 6.4 kHz


def mel_filterbank(n_bins: int, *, sample_rate_hz: int, n_fft: int) -> np.ndarray:
    """Returns triangular filters [n_bins, n_fft // 2 + 1], each of area 1 Hz, from 0 Hz to half the sample rate.

    The scale of Slaney's Auditory Toolbox (1998), which librosa uses unless told otherwise: the very numbers of its
    `filters.mel` (librosa 0.11, float64).
    """
    top = _hz_to_mel(np.array(sample_rate_hz / 2.0))
    edges_hz = _mel_to_hz(np.linspace(0.0, top, n_bins + 2))
    bins_hz = np.linspace(0.0, sample_rate_hz / 2.0, n_fft // 2 + 1)
    widths = np.diff(edges_hz)
    rising = (bins_hz - edges_hz[:-2, None]) / widths[:-1, None]
    falling = (edges_hz[2:, None] - bins_hz) / widths[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return np.asarray(triangles * (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None])


def mel(blocks: Iterator[np.ndarray], *, sample_rate_hz: int, n_fft: int, hop_length: int, n_bins: int) -> np.ndarray:
    """Returns linear power, float32 [n_bins, 1 + n_samples // hop_length], of blocks of samples.

    `librosa.feature.melspectrogram` of version 0.11 with its defaults, to 1e-5 dB.
    """
    filters = _sparse_filters(n_bins, sample_rate_hz, n_fft)
    return collect(power_spectra(blocks, n_fft, hop_length), lambda power: filters @ power.T)


def log_mel(
    blocks: Iterator[np.ndarray], *, sample_rate_hz: int, n_fft: int, hop_length: int, n_bins: int
) -> np.ndarray:
    """Returns 10 log10 of linear power in dB, at least -100, float32 [n_bins, 1 + n_samples // hop_length]."""
    power = mel(blocks, sample_rate_hz=sample_rate_hz, n_fft=n_fft, hop_length=hop_length, n_bins=n_bins)
    return np.asarray(10.0 * np.log10(np.maximum(power, np.float32(_FLOOR))))


@lru_cache(maxsize=4)
def _sparse_filters(n_bins: int, sample_rate_hz: int, n_fft: int) -> Any:
    from scipy.sparse import csr_array

    # Sparse, as 98 % of the filterbank is 0; and one thread adds in one order, so that the bytes never change.
    return csr_array(mel_filterbank(n_bins, sample_rate_hz=sample_rate_hz, n_fft=n_fft))


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    above = _BREAK_HZ / _HZ_PER_MEL + np.log(np.maximum(hz, _BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    return np.where(hz < _BREAK_HZ, hz / _HZ_PER_MEL, above)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    break_mel = _BREAK_HZ / _HZ_PER_MEL
    above = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mel, break_mel) - break_mel))
    return np.where(mel < break_mel, mel * _HZ_PER_MEL, above)
