"""Audio as it is, in frames, for networks that begin at the waveform."""

from collections.abc import Iterator

import numpy as np

from tfmusic.features.frames import collect


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
