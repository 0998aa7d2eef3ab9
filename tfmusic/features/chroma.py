"""Chroma: the energy of the 12 pitch classes, from C upwards, over all octaves; tuned to A4 = 440 Hz.

Every frame is divided by its maximum, so values are 0 to 1. The filters of `chroma_stft` are those of Ellis 2007
(Chroma feature analysis and synthesis). Both features agree with librosa 0.11 at tuning=0; librosa's default estimates
the tuning.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from tfmusic.core.feature import CHROMA_CQT_OCTAVES
from tfmusic.features.cqt import power_at_pitches
from tfmusic.features.spectrograms import collect, divide_by_maximum, power_spectra

_N_CHROMA = 12
_LOWEST_A_HZ = 27.5
_CENTRE_OCTAVES, _SPREAD_OCTAVES = 5.0, 2.0  # above the lowest A; of the weight over the octaves
_BINS_PER_SEMITONE = 3


def chroma_stft(
    blocks: Iterator[np.ndarray], *, sample_rate_hz: int, n_fft: int, hop_length: int, n_bins: int
) -> np.ndarray:
    """Returns chroma of power spectra, float32 [12, 1 + n_samples // hop_length]."""
    filters = chroma_filters(sample_rate_hz, n_fft)
    spectra = power_spectra(blocks, n_fft, hop_length)
    # einsum adds in one order, whatever the number of threads.
    return collect(spectra, lambda power: divide_by_maximum(np.einsum("cf,tf->ct", filters, power)))


def chroma_cqt(blocks: Iterator[np.ndarray], *, sample_rate_hz: int, hop_length: int, n_bins: int) -> np.ndarray:
    """Returns chroma of CQT magnitudes over 7 octaves, 36 bins each, float32 [12, 1 + n_samples // hop_length]."""
    per_octave = _N_CHROMA * _BINS_PER_SEMITONE
    n_cqt_bins = CHROMA_CQT_OCTAVES * per_octave
    power = power_at_pitches(blocks, sample_rate_hz, hop_length, n_bins=n_cqt_bins, bins_per_octave=per_octave)
    octave = np.sqrt(power).reshape(CHROMA_CQT_OCTAVES, per_octave, -1).sum(0)
    # A semitone is the bin at its pitch and the bins on both sides of it.
    octave = np.roll(octave, _BINS_PER_SEMITONE // 2, axis=0)
    return divide_by_maximum(octave.reshape(_N_CHROMA, _BINS_PER_SEMITONE, -1).sum(1))


@lru_cache(maxsize=4)
def chroma_filters(sample_rate_hz: int, n_fft: int) -> np.ndarray:
    """Returns the weight of every FFT bin for every pitch class, float64 [12, n_fft // 2 + 1].

    A Gaussian around each pitch class, as wide as the FFT bin in semitones and at least one. The weights of a bin have
    the norm 1, times a Gaussian over the octaves.
    """
    hz = np.arange(1, n_fft) * (sample_rate_hz / n_fft)
    semitones = _N_CHROMA * np.log2(hz / _LOWEST_A_HZ)
    semitones = np.concatenate([[semitones[0] - 1.5 * _N_CHROMA], semitones])  # 0 Hz has no pitch: far below
    widths = np.append(np.maximum(np.diff(semitones), 1.0), 1.0)
    distance = semitones[None, :] - np.arange(_N_CHROMA)[:, None]
    nearest = (distance + _N_CHROMA / 2) % _N_CHROMA - _N_CHROMA / 2
    weights = np.exp(-0.5 * (2.0 * nearest / widths) ** 2)
    weights /= np.sqrt((weights**2).sum(0))
    weights *= np.exp(-0.5 * ((semitones / _N_CHROMA - _CENTRE_OCTAVES) / _SPREAD_OCTAVES) ** 2)
    return np.asarray(np.roll(weights, -3, axis=0)[:, : n_fft // 2 + 1])  # C first, not A
