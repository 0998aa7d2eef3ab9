"""Shards to segments and whole tracks, numpy only: for evaluation, for JAX and PyTorch users, for checks."""

import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfmusic.errors import RecordsError
from tfmusic.records.format import SegmentHeader, decode
from tfmusic.records.manifest import Manifest
from tfmusic.records.writer import checksum_of, frame_length, warn_of_slow_checksums

_HEAD_BYTES, _TAIL_BYTES = 12, 4
_MOST_FRAMES = 1 << 26  # of a track: three hours in hops of four samples


@dataclass(frozen=True)
class StoredTrack:
    """A track put together again from its segments; where not all are stored, a stretch of it without a gap.

    Attributes:
        row: row of tracks.csv.
        track_id: name of the track.
        label: ids of its labels.
        cells: stored cells [n_frames, n_bins], without tiling.
    """

    row: int
    track_id: str
    label: tuple[int, ...]
    cells: np.ndarray


def iterate(manifest: Manifest, split: str) -> Iterator[tuple[SegmentHeader, np.ndarray]]:
    """Yields header and cells [segment_frames, n_bins] of every segment of a split, in file order.

    Raises:
        RecordsError: a shard is missing, truncated or damaged; the message names it.
    """
    for path in manifest.shard_paths(split):
        yield from read_shard(path, manifest)


def read_shard(path: Path, manifest: Manifest) -> Iterator[tuple[SegmentHeader, np.ndarray]]:
    """Yields header and cells of every segment of one shard, in file order; raises as `iterate`."""
    shape = (manifest.segment_frames, manifest.contract.n_bins)
    for record in _records(path):
        try:
            header, cells = decode(record)
        except RecordsError as error:
            raise RecordsError(f"{path}: {error}") from error
        if len(cells) != shape[0] * shape[1] * np.dtype(manifest.contract.dtype).itemsize:
            raise RecordsError(f"{path}: a segment must have the shape {list(shape)}. Received: {len(cells)} bytes")
        if header.start + header.valid > _MOST_FRAMES or not 0 < header.valid <= shape[0]:
            raise RecordsError(f"{path}: track {header.track_id}: a segment of {header.valid} frames at {header.start}")
        if any(label >= len(manifest.contract.labels) for label in header.label):
            raise RecordsError(f"{path}: track {header.track_id}: no such label: {list(header.label)[:5]}")
        yield header, np.frombuffer(cells, manifest.contract.dtype).reshape(shape)


def iterate_tracks(manifest: Manifest, split: str) -> Iterator[StoredTrack]:
    """Yields every track of a split, whole; a shard holds whole tracks, so memory holds one shard at most.

    Where the records hold chosen segments only, a track comes as the stretches that they cover, one after another.

    Raises:
        RecordsError: as `iterate`, or a track lacks some of its frames.
    """
    for path in manifest.shard_paths(split):
        pieces: dict[int, list[tuple[SegmentHeader, np.ndarray]]] = defaultdict(list)
        for header, cells in read_shard(path, manifest):
            pieces[header.track].append((header, cells))
        for row in sorted(pieces):
            yield from _join(pieces.pop(row), path, is_whole=manifest.has_whole_tracks)


def _join(pieces: list[tuple[SegmentHeader, np.ndarray]], path: Path, *, is_whole: bool) -> Iterator[StoredTrack]:
    n_frames = max(header.start + header.valid for header, _ in pieces)
    if is_whole and n_frames > sum(header.valid for header, _ in pieces):
        raise RecordsError(f"{path}: track {pieces[0][0].track_id} lacks some of its {n_frames} frames")
    first, some_cells = pieces[0]
    cells = np.empty((n_frames, some_cells.shape[1]), some_cells.dtype)
    filled = np.zeros(n_frames, bool)
    for header, segment in pieces:
        cells[header.start : header.start + header.valid] = segment[: header.valid]
        filled[header.start : header.start + header.valid] = True
    if is_whole and not filled.all():
        raise RecordsError(f"{path}: track {first.track_id} lacks frame {int(np.argmin(filled))} of {n_frames}")
    edges = np.flatnonzero(np.diff(np.r_[False, filled, False]))
    for begin, end in edges.reshape(-1, 2).tolist():
        yield StoredTrack(first.track, first.track_id, first.label, cells[begin:end])


def _records(path: Path) -> Iterator[bytes]:
    """Yields the payloads of a TFRecord file; every checksum is compared."""
    warn_of_slow_checksums()
    try:
        with path.open("rb") as shard:
            size, at = path.stat().st_size, 0
            while at < size:
                head = shard.read(_HEAD_BYTES)
                length = struct.unpack("<Q", head[:8])[0] if len(head) == _HEAD_BYTES else 0
                if frame_length(length) != head or at + _HEAD_BYTES + length + _TAIL_BYTES > size:
                    raise RecordsError(f"{path}: damaged at byte {at}: build the records again")
                data, tail = shard.read(length), shard.read(_TAIL_BYTES)
                if checksum_of(data) != tail:
                    raise RecordsError(f"{path}: damaged between bytes {at} and {at + length}: build the records again")
                yield data
                at += _HEAD_BYTES + length + _TAIL_BYTES
    except OSError as error:
        raise RecordsError(f"{path}: cannot be read: {error.strerror}") from error
