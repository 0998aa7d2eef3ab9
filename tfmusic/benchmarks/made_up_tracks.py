"""Tracks of different lengths in memory, for the benches that answer for whole tracks."""

from collections.abc import Callable, Iterator
from itertools import cycle

import numpy as np

from tfmusic.benchmarks.clock import Clock, Part
from tfmusic.core.windows import segment_starts

N_BINS, N_TRACKS = 128, 24
SHORTEST, LONGEST = 600, 9000  # frames: 20 s to 5 minutes


def tracks(seed: int = 0) -> list[np.ndarray]:
    """Returns linear power [n_bins, n_frames], no two of one length."""
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(np.linspace(SHORTEST, LONGEST, N_TRACKS).astype(int))
    return [np.exp(rng.normal(0.0, 3.0, (N_BINS, length))).astype(np.float32) for length in lengths]


def answering(answer: Callable[[np.ndarray], object], frames: int, hop_frames: int, *, warm_tracks: int = 3) -> Part:
    """Returns a part that counts the windows of the tracks that are answered, one track after the other.

    Some answers before the first measurement compile and prepare the network for their sizes of batches.
    """
    endless: Iterator[np.ndarray] = cycle(tracks())
    for _ in range(warm_tracks):
        answer(next(endless))

    def run(clock: Clock, seconds: float) -> float:
        n_windows = 0
        with clock:
            while clock.elapsed_s < seconds:
                mel = next(endless)
                answer(mel)
                n_windows += len(segment_starts(mel.shape[1], frames=frames, hop_frames=hop_frames))
        return float(n_windows)

    return run
