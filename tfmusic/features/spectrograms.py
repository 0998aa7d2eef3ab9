"""Features of a stream of samples, computed frame by frame: STFT, mel, log-mel, tempogram, raw samples.

Every feature here takes blocks of mono samples and returns float32 [n_bins, n_frames]. n samples have
n_frames = 1 + n // hop_length. Frame i is centred on sample i * hop_length, with zeros before the first and after the
last sample, as in librosa with center=True and pad_mode="constant". The exception is `raw`: ceil(n / hop_length).
"""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from tfmusic.features.filterbanks import mel_filterbank

_VALUES_AT_ONCE = 1 << 21  # 16 MiB of spectra
MIN_POWER = 1e-10  # before a logarithm

_TEMPOGRAM_MELS = 128
_TEMPOGRAM_DB_RANGE = 80.0  # below the loudest value of the track
_TEMPOGRAM_FRAMES_AT_ONCE = 1024


class CentredWindows:
    """Slices windows of `n_fft` samples (an even number) from a stream that comes in blocks."""

    def __init__(self, n_fft: int, hop_length: int) -> None:
        self._n_fft, self._hop_length = n_fft, hop_length
        self._windows_at_once = max(_VALUES_AT_ONCE // n_fft, 1)
        self._buffer = np.zeros(n_fft // 2, np.float32)
        self._n_to_skip = 0  # coming samples that are in no window: the hop may be longer than a window

    def push(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """Yields views [n_windows, n_fft] of the windows that the block completes."""
        begin = min(self._n_to_skip, len(block))
        self._n_to_skip -= begin
        buffer = np.concatenate([self._buffer, block[begin:]])
        if len(buffer) >= self._n_fft:
            windows = np.lib.stride_tricks.sliding_window_view(buffer, self._n_fft)[:: self._hop_length]
            for first in range(0, len(windows), self._windows_at_once):
                yield windows[first : first + self._windows_at_once]
            n_used = len(windows) * self._hop_length
            self._n_to_skip += max(n_used - len(buffer), 0)
            buffer = buffer[n_used:]
        self._buffer = buffer

    def finish(self) -> Iterator[np.ndarray]:
        """Yields the windows that reach beyond the end."""
        yield from self.push(np.zeros(self._n_fft // 2, np.float32))


def hann(length: int) -> np.ndarray:
    """Returns the periodic Hann window, float64 [length]."""
    return np.asarray(0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(length) / length))


def power_spectra(blocks: Iterable[np.ndarray], n_fft: int, hop_length: int) -> Iterator[np.ndarray]:
    """Yields |STFT|^2, float64 [n_windows, n_fft // 2 + 1], under a periodic Hann window."""
    from scipy.fft import rfft

    window = hann(n_fft)
    for windows in _centred_windows(blocks, n_fft, hop_length):
        # float64: in float32 the rounding of loud bins would hide those 90 dB below them.
        spectra = rfft(windows * window, axis=1, overwrite_x=True)
        yield spectra.real**2 + spectra.imag**2


def collect(parts: Iterable[np.ndarray], feature_fn: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Returns the features [n_bins, n_windows] that a function makes of every part, joined along time, float32."""
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which `features.read` refuses
        features = [feature_fn(part).astype(np.float32) for part in parts]
    return np.ascontiguousarray(np.concatenate(features, axis=1))


def divide_by_maximum(values: np.ndarray) -> np.ndarray:
    """Returns every frame of [n_bins, n_frames] divided by its maximum; a silent frame stays 0."""
    maximum = values.max(axis=0)
    return np.asarray(values / np.where(maximum > np.finfo(np.float32).tiny, maximum, 1.0), values.dtype)


def stft(blocks: Iterator[np.ndarray], *, sample_rate_hz: int, n_fft: int, hop_length: int, n_bins: int) -> np.ndarray:
    """Returns |STFT|^2, float32 [n_fft // 2 + 1, n_frames]."""
    return collect(power_spectra(blocks, n_fft, hop_length), lambda power: power.T)


def mel(blocks: Iterator[np.ndarray], *, sample_rate_hz: int, n_fft: int, hop_length: int, n_bins: int) -> np.ndarray:
    """Returns linear mel power, float32 [n_bins, n_frames].

    Equal to `librosa.feature.melspectrogram` of version 0.11 with its defaults, to 1e-5 dB.
    """
    filters = _sparse_filters(n_bins, sample_rate_hz, n_fft)
    return collect(power_spectra(blocks, n_fft, hop_length), lambda power: filters @ power.T)


def log_mel(
    blocks: Iterator[np.ndarray], *, sample_rate_hz: int, n_fft: int, hop_length: int, n_bins: int
) -> np.ndarray:
    """Returns mel power in dB, 10 log10(power), at least -100, float32 [n_bins, n_frames]."""
    power = mel(blocks, sample_rate_hz=sample_rate_hz, n_fft=n_fft, hop_length=hop_length, n_bins=n_bins)
    return np.asarray(10.0 * np.log10(np.maximum(power, np.float32(MIN_POWER))))


def tempogram(
    blocks: Iterator[np.ndarray], *, sample_rate_hz: int, n_fft: int, hop_length: int, n_bins: int
) -> np.ndarray:
    """Returns the autocorrelation of the onset strength at lags of 0 to n_bins - 1 frames, float32 [n_bins, n_frames].

    The window around a frame is n_bins frames long. Every frame is divided by its maximum, the value at lag 0
    (Grosche, Mueller & Kurth 2010, Cyclic tempogram; `librosa.feature.tempogram`).
    """
    strength = onset_strength(
        blocks, sample_rate_hz=sample_rate_hz, n_fft=n_fft, hop_length=hop_length, n_bins=_TEMPOGRAM_MELS
    )
    padded = np.pad(strength, n_bins // 2, mode="linear_ramp")
    windows = np.lib.stride_tricks.sliding_window_view(padded, n_bins)[: len(strength)]
    starts = range(0, len(windows), _TEMPOGRAM_FRAMES_AT_ONCE)
    parts = [windows[first : first + _TEMPOGRAM_FRAMES_AT_ONCE] for first in starts]
    return collect(parts, lambda part: divide_by_maximum(_autocorrelation(part)))


def onset_strength(
    blocks: Iterator[np.ndarray], *, sample_rate_hz: int, n_fft: int, hop_length: int, n_bins: int
) -> np.ndarray:
    """Returns the mean increase of all mel bins since the previous frame, dB, float64 [n_frames].

    An increase appears half a window too early; the curve is delayed by as many frames.
    """
    db = log_mel(blocks, sample_rate_hz=sample_rate_hz, n_fft=n_fft, hop_length=hop_length, n_bins=n_bins)
    np.maximum(db, db.max() - _TEMPOGRAM_DB_RANGE, out=db)
    increase = np.maximum(np.diff(db, axis=1), 0.0).mean(axis=0, dtype=np.float64)
    return np.pad(increase, (1 + n_fft // (2 * hop_length), 0))[: db.shape[1]]


def raw(blocks: Iterator[np.ndarray], *, sample_rate_hz: int, hop_length: int, n_bins: int) -> np.ndarray:
    """Returns the samples themselves, float32 [hop_length, ceil(n_samples / hop_length)], one column after the other.

    Zeros fill the last column. A segment of f frames is f * hop_length samples.
    """
    return collect(_chunks(blocks, hop_length), lambda chunks: chunks.T)


def _centred_windows(blocks: Iterable[np.ndarray], n_fft: int, hop_length: int) -> Iterator[np.ndarray]:
    windows = CentredWindows(n_fft, hop_length)
    for block in blocks:
        yield from windows.push(block)
    yield from windows.finish()


@lru_cache(maxsize=4)
def _sparse_filters(n_bins: int, sample_rate_hz: int, n_fft: int) -> Any:
    from scipy.sparse import csr_array

    # 98 % of the filterbank is 0. And a sparse product adds in one order, so the bytes never change.
    return csr_array(mel_filterbank(n_bins, sample_rate_hz=sample_rate_hz, n_fft=n_fft))


def _autocorrelation(windows: np.ndarray) -> np.ndarray:
    """Returns the autocorrelation [length, n_windows] of rows [n_windows, length] under a Hann window, none below 0."""
    from scipy.fft import irfft, next_fast_len, rfft

    length = windows.shape[1]
    n_fft = next_fast_len(2 * length - 1, real=True)
    spectra = rfft(windows * hann(length), n_fft, axis=1)
    power = spectra.real**2 + spectra.imag**2
    return np.asarray(np.maximum(irfft(power, n_fft, axis=1)[:, :length].T, 0.0))


def _chunks(blocks: Iterator[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """Yields the samples as rows [n, length]; zeros fill the last one."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        joined = np.concatenate([rest, block])
        n_whole = len(joined) // length
        rest = joined[n_whole * length :]
        if n_whole:
            yield joined[: n_whole * length].reshape(n_whole, length)
    if len(rest):
        yield np.pad(rest, (0, length - len(rest)))[None]
