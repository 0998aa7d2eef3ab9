"""Power spectrograms with all their bins."""

from collections.abc import Iterator

import numpy as np

from tfmusic.features.frames import collect, power_spectra


def stft(blocks: Iterator[np.ndarray], *, sample_rate_hz: int, n_fft: int, hop_length: int, n_bins: int) -> np.ndarray:
    """Returns |STFT|^2, float32 [n_fft // 2 + 1, 1 + n_samples // hop_length], of blocks of samples."""
    return collect(power_spectra(blocks, n_fft, hop_length), lambda power: power.T)
