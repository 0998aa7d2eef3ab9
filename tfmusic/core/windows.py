"""Which windows of a track are stored and which are scored."""

import numpy as np


def segment_starts(n_frames: int, *, frames: int, hop_frames: int) -> np.ndarray:
    """Returns the first frame of every window, int64, ascending; every frame of the track is in some window.

    Windows begin at 0, hop, 2 hop, ... while they fit; one more is aligned to the end where frames are left over.
    A track of at most `frames` frames has the one window 0. So for n > frames there are
    1 + ceil((n - frames) / hop) windows.
    """
    last = max(n_frames - frames, 0)
    starts = np.arange(0, last + 1, hop_frames, dtype=np.int64)
    return starts if starts[-1] == last else np.append(starts, np.int64(last))


def tile_to(codes: np.ndarray, frames: int) -> np.ndarray:
    """Returns the track [n_frames, n_bins] repeated from its beginning to at least `frames` frames."""
    n_frames = len(codes)
    if n_frames >= frames:
        return codes
    return codes[np.arange(frames) % n_frames]


def slice_windows(codes: np.ndarray, *, frames: int, hop_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the windows [n_windows, frames, n_bins] of a track and their first frames [n_windows]."""
    starts = segment_starts(len(codes), frames=frames, hop_frames=hop_frames)
    tiled = tile_to(codes, frames)
    return np.stack([tiled[start : start + frames] for start in starts]), starts
