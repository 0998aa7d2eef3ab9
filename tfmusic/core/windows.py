"""Windows of a track: which are stored and which are scored, their batches, and their outputs by track; numpy only."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

Choice = Literal["first", "random", "even"]


def segment_starts(n_frames: int, *, frames: int, hop_frames: int) -> np.ndarray:
    """Returns the first frame of every window, int64, ascending; every frame of the track is in some window.

    Windows begin at 0, hop, 2 hop, ... while they fit; one more is aligned to the end where frames are left over.
    A track of at most `frames` frames has the one window 0. So for n > frames there are
    1 + ceil((n - frames) / hop) windows.
    """
    last = max(n_frames - frames, 0)
    starts = np.arange(0, last + 1, hop_frames, dtype=np.int64)
    return starts if starts[-1] == last else np.append(starts, np.int64(last))


@dataclass(frozen=True)
class Segments:
    """Which segments of a track are stored where not all are; a model learns from them and scores them alone.

    A track that has no more than `count` segments keeps all. `random` depends on the seed and on how many segments the
    track has, not on its name: so an export, which knows no names, chooses the same ones.

    Attributes:
        choice: the first, some at random, or evenly spaced ones, of which one alone is the middle.
        count: how many.
        frames: length of a segment.
        hop_frames: distance of the segments.
        seed: of `random`.
    """

    choice: Choice
    count: int
    frames: int
    hop_frames: int
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError where a field has no sense."""
        sizes = (self.count, self.frames, self.hop_frames)
        are_sizes = all(type(size) is int and 0 < size < 1 << 30 for size in sizes) and type(self.seed) is int
        if self.choice not in get_args(Choice) or not are_sizes:
            raise ValueError(f"no valid segments: {str(self)[:120]}")

    def starts(self, n_frames: int) -> np.ndarray:
        """Returns the first frames of the segments of a track that are stored, int64, ascending."""
        starts: np.ndarray = segment_starts(n_frames, frames=self.frames, hop_frames=self.hop_frames)
        n = len(starts)
        if n <= self.count or self.choice == "first":
            return starts[: self.count]
        if self.choice == "random":
            places = np.sort(np.argsort(priority(np.arange(n), n, self.seed))[: self.count])
        else:
            places = even_places(np.arange(self.count), n, self.count)
        return np.asarray(starts[places])

    def stretches(self, n_frames: int) -> list[tuple[int, int]]:
        """Returns the stretches that the stored segments cover, as first frames and ends, in order."""
        starts = self.starts(n_frames)
        begins = np.flatnonzero(np.append(True, starts[1:] > starts[:-1] + self.frames))
        lasts = np.append(begins[1:], len(starts)) - 1
        ends = np.minimum(starts[lasts] + self.frames, n_frames)
        return list(zip(starts[begins].tolist(), ends.tolist(), strict=True))


def even_places(number: Any, n_segments: Any, count: int) -> Any:
    """Returns the places of evenly spaced segments, rounded half to even, of which one alone is the middle.

    In whole numbers, so that a graph has the same: `number` is 0 to count - 1, an array or a tensor.
    """
    if count == 1:
        return number + (n_segments - 1) // 2
    last, gaps = number * (n_segments - 1), count - 1
    below = last // gaps
    return below + (2 * (last - below * gaps) + gaps - 1 + below % 2) // (2 * gaps)


def priority(place: Any, n_segments: Any, seed: int) -> Any:
    """Returns a number for each place, int64 arrays or tensors; the places in the order of these are shuffled.

    The mixing steps of a hash of 32 bits; no two places of a track have the same number.
    """
    mixed = (place + n_segments * 0x9E3779B1 + (seed % 2**31) * 0x85EBCA6B) % 2**32
    for _ in range(2):
        mixed = (mixed ^ (mixed // 2**16)) * 0x45D9F3B % 2**32
    return mixed ^ (mixed // 2**16)


def window_starts(n_frames: int, *, frames: int, hop_frames: int, segments: Segments | None = None) -> np.ndarray:
    """Returns the first frame of every window that scores a track, int64, ascending; of some segments, their windows.

    Segments that touch or overlap are one stretch of music, with windows over their borders too.
    """
    stretches = segments.stretches(n_frames) if segments else [(0, n_frames)]
    parts = [begin + segment_starts(end - begin, frames=frames, hop_frames=hop_frames) for begin, end in stretches]
    return np.concatenate(parts)


def tile_to(codes: np.ndarray, frames: int) -> np.ndarray:
    """Returns the track [n_frames, n_bins] repeated from its beginning to at least `frames` frames."""
    n_frames = len(codes)
    if n_frames >= frames:
        return codes
    return codes[np.arange(frames) % n_frames]


def slice_windows(
    codes: np.ndarray, *, frames: int, hop_frames: int, segments: Segments | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the windows [n_windows, frames, n_bins] that score a track and their first frames [n_windows]."""
    starts = window_starts(len(codes), frames=frames, hop_frames=hop_frames, segments=segments)
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
    tracks: Iterable[TrackCodes],
    *,
    frames: int,
    hop_frames: int,
    batch_sizes: tuple[int, ...],
    segments: Segments | None = None,
) -> Iterator[WindowBatch]:
    """Yields every window of every track once, in order.

    A batch has the largest of the sizes; the last one has the smallest that holds what is left, filled up with its
    last window, marked -1. So nothing is dropped, nothing counts twice, and a model is compiled for these sizes alone.

    Args:
        tracks: the tracks, in memory one at a time.
        frames: length of a window.
        hop_frames: distance of the windows.
        batch_sizes: ascending.
        segments: which segments of a track are scored; None for all of it.
    """
    waiting: list[tuple[int, np.ndarray, np.ndarray | None]] = []
    for row, codes, metadata in tracks:
        windows, _ = slice_windows(codes, frames=frames, hop_frames=hop_frames, segments=segments)
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
