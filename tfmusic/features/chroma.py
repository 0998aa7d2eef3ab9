"""Chroma: how much of each of the 12 pitch classes sounds, from C upwards, whatever the octave; tuned to A4 = 440 Hz.

Every frame is divided by its largest value, so values are 0 to 1. The filters of `chroma_stft` are those of Ellis 2007
(Chroma feature analysis and synthesis); both agree with librosa 0.11 at tuning=0, which librosa else estimates.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from tfmusic.core.contract import CHROMA_CQT_OCTAVES
from tfmusic.features.cqt import power_at_pitches
from tfmusic.features.spectrograms import collect, hann, mel, power_spectra

_N_CHROMA = 12
_LOWEST_A_HZ = 27.5
_CENTRE_OCTAVES, _SPREAD_OCTAVES = 5.0, 2.0  # above the lowest A: where pitches count most, and how far around
_BINS_PER_SEMITONE = 3


def chroma_stft(
    blocks: Iterator[np.ndarray], *, sample_rate_hz: int, n_fft: int, hop_length: int, n_bins: int
) -> np.ndarray:
    """Returns chroma of power spectra, float32 [12, 1 + n_samples // hop_length]."""
    filters = chroma_filters(sample_rate_hz, n_fft)
    # einsum adds in one order, whatever the number of threads.
    return collect(
        power_spectra(blocks, n_fft, hop_length), lambda power: loudest_to_1(np.einsum("cf,tf->ct", filters, power))
    )


def chroma_cqt(blocks: Iterator[np.ndarray], *, sample_rate_hz: int, hop_length: int, n_bins: int) -> np.ndarray:
    """Returns chroma of CQT magnitudes over 7 octaves, 36 bins each, float32 [12, 1 + n_samples // hop_length]."""
    per_octave = _N_CHROMA * _BINS_PER_SEMITONE
    wanted = CHROMA_CQT_OCTAVES * per_octave
    power = power_at_pitches(blocks, sample_rate_hz, hop_length, n_bins=wanted, bins_per_octave=per_octave)
    octaves = np.sqrt(power).reshape(CHROMA_CQT_OCTAVES, per_octave, -1).sum(0)
    # A semitone is the bin on its pitch and the one on either side.
    around = np.roll(octaves, _BINS_PER_SEMITONE // 2, axis=0)
    return loudest_to_1(around.reshape(_N_CHROMA, _BINS_PER_SEMITONE, -1).sum(1))


def loudest_to_1(values: np.ndarray) -> np.ndarray:
    """Returns every frame of [n_bins, n_frames] divided by its largest value; a silent frame stays 0."""
    loudest = values.max(axis=0)
    return np.asarray(values / np.where(loudest > np.finfo(np.float32).tiny, loudest, 1.0), values.dtype)


@lru_cache(maxsize=4)
def chroma_filters(sample_rate_hz: int, n_fft: int) -> np.ndarray:
    """Returns what every FFT bin gives to every pitch class, float64 [12, n_fft // 2 + 1].

    A bell around each pitch class, as wide as the bin in semitones but one at least; each bin's gifts have the norm 1,
    weighted by a bell over the octaves.
    """
    hz = np.arange(1, n_fft) * (sample_rate_hz / n_fft)
    semitones = _N_CHROMA * np.log2(hz / _LOWEST_A_HZ)
    semitones = np.concatenate([[semitones[0] - 1.5 * _N_CHROMA], semitones])  # 0 Hz has no pitch: far below
    widths = np.append(np.maximum(np.diff(semitones), 1.0), 1.0)
    distance = semitones[None, :] - np.arange(_N_CHROMA)[:, None]
    nearest = (distance + _N_CHROMA / 2) % _N_CHROMA - _N_CHROMA / 2
    bells = np.exp(-0.5 * (2.0 * nearest / widths) ** 2)
    bells /= np.sqrt((bells**2).sum(0))
    bells *= np.exp(-0.5 * ((semitones / _N_CHROMA - _CENTRE_OCTAVES) / _SPREAD_OCTAVES) ** 2)
    return np.asarray(np.roll(bells, -3, axis=0)[:, : n_fft // 2 + 1])  # C first, not A


_ONSET_BINS = 128
_DB_RANGE = 80.0  # below the loudest cell of the track
_FRAMES_AT_ONCE = 1024


def tempogram(
    blocks: Iterator[np.ndarray], *, sample_rate_hz: int, n_fft: int, hop_length: int, n_bins: int
) -> np.ndarray:
    """Returns autocorrelation at lags of 0 to n_bins - 1 frames, float32 [n_bins, 1 + n_samples // hop_length].

    The window around a frame is n_bins frames long. Every frame is divided by its largest value, that at lag 0.
    """
    strength = onset_strength(
        blocks, sample_rate_hz=sample_rate_hz, n_fft=n_fft, hop_length=hop_length, n_bins=_ONSET_BINS
    )
    padded = np.pad(strength, n_bins // 2, mode="linear_ramp")
    windows = np.lib.stride_tricks.sliding_window_view(padded, n_bins)[: len(strength)]
    parts = [windows[first : first + _FRAMES_AT_ONCE] for first in range(0, len(windows), _FRAMES_AT_ONCE)]
    return collect(parts, lambda part: loudest_to_1(_autocorrelation(part)))


def onset_strength(
    blocks: Iterator[np.ndarray], *, sample_rate_hz: int, n_fft: int, hop_length: int, n_bins: int
) -> np.ndarray:
    """Returns the mean rise of all mel bins since the frame before, dB, float64 [1 + n_samples // hop_length].

    A rise shows when half the window has passed it, so that the curve is moved by as many frames.
    """
    power = mel(blocks, sample_rate_hz=sample_rate_hz, n_fft=n_fft, hop_length=hop_length, n_bins=n_bins)
    db = 10.0 * np.log10(np.maximum(power, np.float32(1e-10)))
    np.maximum(db, db.max() - _DB_RANGE, out=db)
    rise = np.maximum(np.diff(db, axis=1), 0.0).mean(axis=0, dtype=np.float64)
    return np.pad(rise, (1 + n_fft // (2 * hop_length), 0))[: db.shape[1]]


def _autocorrelation(windows: np.ndarray) -> np.ndarray:
    """Returns that of every row of [some, n_bins] under a Hann window, [n_bins, some], none below 0."""
    from scipy.fft import irfft, next_fast_len, rfft

    n_bins = windows.shape[1]
    n_fft = next_fast_len(2 * n_bins - 1, real=True)
    found = rfft(windows * hann(n_bins), n_fft, axis=1)
    return np.asarray(np.maximum(irfft(found.real**2 + found.imag**2, n_fft, axis=1)[:, :n_bins].T, 0.0))
