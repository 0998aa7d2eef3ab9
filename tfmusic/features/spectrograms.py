"""Windows over a stream of samples, each centred on a multiple of the hop, and their spectra.

The law of frames: n samples have 1 + n // hop, the first centred on sample 0, with zeros beyond both ends: what
librosa does with center=True and pad_mode="constant".
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

_VALUES_AT_ONCE = 1 << 21  # 16 MiB of spectra


class CentredWindows:
    """Cuts windows of `n_fft` samples (an even number) from a stream that comes in blocks."""

    def __init__(self, n_fft: int, hop_length: int) -> None:
        self._n_fft, self._hop_length = n_fft, hop_length
        self._most = max(_VALUES_AT_ONCE // n_fft, 1)
        self._buffer = np.zeros(n_fft // 2, np.float32)
        self._n_skipped = 0  # samples to come that no window holds: the hop may be longer than a window

    def push(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """Yields views [some, n_fft] of the windows that the block completes."""
        begin = min(self._n_skipped, len(block))
        self._n_skipped -= begin
        buffer = np.concatenate([self._buffer, block[begin:]])
        if len(buffer) >= self._n_fft:
            windows = np.lib.stride_tricks.sliding_window_view(buffer, self._n_fft)[:: self._hop_length]
            for first in range(0, len(windows), self._most):
                yield windows[first : first + self._most]
            used = len(windows) * self._hop_length
            self._n_skipped += max(used - len(buffer), 0)
            buffer = buffer[used:]
        self._buffer = buffer

    def finish(self) -> Iterator[np.ndarray]:
        """Yields the windows that reach beyond the end."""
        yield from self.push(np.zeros(self._n_fft // 2, np.float32))


def power_spectra(blocks: Iterable[np.ndarray], n_fft: int, hop_length: int) -> Iterator[np.ndarray]:
    """Yields |STFT|^2, float64 [some, n_fft // 2 + 1], under a periodic Hann window."""
    from scipy.fft import rfft

    window = hann(n_fft)
    for windows in centred_windows(blocks, n_fft, hop_length):
        # float64: in float32 the rounding of loud bins would hide those 90 dB below them.
        found = rfft(windows * window, axis=1, overwrite_x=True)
        yield found.real**2 + found.imag**2


def centred_windows(blocks: Iterable[np.ndarray], n_fft: int, hop_length: int) -> Iterator[np.ndarray]:
    """Yields views [some, n_fft] of all windows of a stream."""
    cutter = CentredWindows(n_fft, hop_length)
    for block in blocks:
        yield from cutter.push(block)
    yield from cutter.finish()


def hann(length: int) -> np.ndarray:
    """Returns the periodic Hann window, float64 [length]."""
    return np.asarray(0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(length) / length))


def collect(parts: Iterable[np.ndarray], make_fn: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Returns what a function makes of each [some, a], that is [b, some], joined along time: float32 [b, n_frames]."""
    with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, which the reader refuses
        made = [make_fn(part).astype(np.float32) for part in parts]
    return np.ascontiguousarray(np.concatenate(made, axis=1))


def stft(blocks: Iterator[np.ndarray], *, sample_rate_hz: int, n_fft: int, hop_length: int, n_bins: int) -> np.ndarray:
    """Returns |STFT|^2, float32 [n_fft // 2 + 1, 1 + n_samples // hop_length], of blocks of samples."""
    return collect(power_spectra(blocks, n_fft, hop_length), lambda power: power.T)


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


def raw(blocks: Iterator[np.ndarray], *, sample_rate_hz: int, hop_length: int, n_bins: int) -> np.ndarray:
    """Returns the samples [hop_length, ceil(n_samples / hop_length)], float32, one frame after the other.

    The last frame is filled up with zeros. A segment of f frames, laid end to end, is f hop_length samples.
    """
    return collect(_frames(blocks, hop_length), lambda frames: frames.T)


def _frames(blocks: Iterator[np.ndarray], length: int) -> Iterator[np.ndarray]:
    rest = np.zeros(0, np.float32)
    for block in blocks:
        joined = np.concatenate([rest, block])
        n_whole = len(joined) // length
        rest = joined[n_whole * length :]
        if n_whole:
            yield joined[: n_whole * length].reshape(n_whole, length)
    if len(rest):
        yield np.pad(rest, (0, length - len(rest)))[None]
