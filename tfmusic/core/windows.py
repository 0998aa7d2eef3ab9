"""Windows of a track: which are stored and which are scored, their batches, and their outputs by track; numpy only."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

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


TrackCodes = tuple[int, np.ndarray, np.ndarray | None]  # row, codes [n_frames, n_bins], metadata [n_tokens] or None


@dataclass(frozen=True)
class WindowBatch:
    """Windows of whole tracks.

    Attributes:
        codes: [batch, frames, n_bins].
        track: row of each window's track, -1 for padding, [batch].
        metadata: [batch, n_tokens] for models with metadata, else None.
    """

    codes: np.ndarray
    track: np.ndarray
    metadata: np.ndarray | None = None

    @property
    def inputs(self) -> Any:
        """What the model takes: the codes, or a list of the codes and the metadata."""
        return self.codes if self.metadata is None else [self.codes, self.metadata]


def batch_windows(
    tracks: Iterable[TrackCodes], *, frames: int, hop_frames: int, batch_sizes: tuple[int, ...]
) -> Iterator[WindowBatch]:
    """Yields every window of every track once, in order.

    A batch has the largest of the sizes; the last one has the smallest that holds what is left, filled up with its
    last window, marked -1. So nothing is dropped, nothing counts twice, and a model is compiled for these sizes alone.

    Args:
        tracks: the tracks, in memory one at a time.
        frames: length of a window.
        hop_frames: distance of the windows.
        batch_sizes: ascending.
    """
    waiting: list[tuple[int, np.ndarray, np.ndarray | None]] = []
    for row, codes, metadata in tracks:
        windows, _ = slice_windows(codes, frames=frames, hop_frames=hop_frames)
        waiting.extend((row, window, metadata) for window in windows)
        while len(waiting) >= batch_sizes[-1]:
            yield _batch(waiting[: batch_sizes[-1]])
            del waiting[: batch_sizes[-1]]
    if waiting:
        _, window, metadata = waiting[-1]
        size = next(size for size in batch_sizes if size >= len(waiting))
        yield _batch(waiting + [(-1, window, metadata)] * (size - len(waiting)))


def _batch(windows: list[tuple[int, np.ndarray, np.ndarray | None]]) -> WindowBatch:
    rows, codes, metadata = zip(*windows, strict=True)
    return WindowBatch(np.stack(codes), np.array(rows), None if metadata[0] is None else np.stack(metadata))


def outputs_by_track(
    batches: Iterable[WindowBatch], model_fn: Callable[[Any], Any]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields row and outputs [n_windows, n_outputs], float32, of one track after the other.

    Memory holds the outputs of one track, and one batch.

    Args:
        batches: as `batch_windows` yields them.
        model_fn: the inputs of a batch to outputs [batch, n_outputs].
    """
    current, parts = -1, list[np.ndarray]()
    for batch in batches:
        outputs = np.asarray(model_fn(batch.inputs), np.float32)
        for row in dict.fromkeys(batch.track[batch.track >= 0].tolist()):
            if parts and row != current:
                yield current, np.concatenate(parts)
                parts = []
            current = row
            parts.append(outputs[batch.track == row])
    if parts:
        yield current, np.concatenate(parts)
