"""Windows over a stream of samples, each centred on a multiple of the hop, and their spectra.

The law of frames: n samples have 1 + n // hop, the first centred on sample 0, with zeros beyond both ends: what
librosa does with center=True and pad_mode="constant".
"""

from collections.abc import Callable, Iterable, Iterator

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
