"""The tempogram: how alike the onsets around a frame are to themselves some frames later (Grosche et al. 2010).

As `librosa.feature.tempogram` 0.11: onset strength is the mean rise of a mel-spectrogram in dB from frame to frame.
"""

from collections.abc import Iterator

import numpy as np

from tfmusic.features.chroma import loudest_to_1
from tfmusic.features.frames import collect, hann
from tfmusic.features.mel import mel

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
