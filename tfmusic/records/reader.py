"""Shards from their beginning to their end, in segments and whole tracks, in numpy only: for evaluation and checks."""

import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from tfmusic.errors import RecordsError
from tfmusic.records.format import SegmentHeader, decode
from tfmusic.records.manifest import Manifest
from tfmusic.records.writer import (
    CRC_BYTES,
    HEADER_BYTES,
    LENGTH_BYTES,
    checksum_of,
    length_header,
    warn_of_slow_checksums,
)

_MAX_TRACK_FRAMES = 1 << 26  # three hours with a hop of four samples


@dataclass(frozen=True)
class StoredTrack:
    """A track joined from its segments; or a stretch of it without gaps, if not all segments are stored.

    Attributes:
        row: row of tracks.csv.
        track_id: name of the track.
        label: ids of its labels.
        codes: stored codes [n_frames, n_bins], without tiling.
    """

    row: int
    track_id: str
    label: tuple[int, ...]
    codes: np.ndarray


def iterate(manifest: Manifest, split: str) -> Iterator[tuple[SegmentHeader, np.ndarray]]:
    """Yields header and codes [segment_frames, n_bins] of every segment of a split, in file order.

    Raises:
        RecordsError: a shard is missing, truncated or damaged; the message names it.
    """
    for path in manifest.shard_paths(split):
        yield from read_shard(path, manifest)


def read_shard(path: Path, manifest: Manifest) -> Iterator[tuple[SegmentHeader, np.ndarray]]:
    """Yields header and codes of every segment of one shard, in file order; raises as `iterate`."""
    for record in read_records(path):
        yield parse_segment(record, path, manifest)


def parse_segment(record: bytes, path: Path, manifest: Manifest) -> tuple[SegmentHeader, np.ndarray]:
    """Returns header and codes of a serialized segment, checked."""
    contract, shape = manifest.contract, (manifest.segment_frames, manifest.contract.n_bins)
    try:
        header, codes = decode(record)
    except RecordsError as error:
        raise RecordsError(f"{path}: {error}") from error
    if len(codes) != manifest.segment_bytes:
        raise RecordsError(
            f"{path}: a segment must be {list(shape)}, {manifest.segment_bytes} bytes. Received: {len(codes)}"
        )
    if header.start + header.valid > _MAX_TRACK_FRAMES or not 0 < header.valid <= shape[0]:
        raise RecordsError(f"{path}: track {header.track_id}: a segment of {header.valid} frames at {header.start}")
    if any(label >= len(contract.labels) for label in header.label):
        raise RecordsError(f"{path}: track {header.track_id}: no such label: {list(header.label)[:5]}")
    return header, np.frombuffer(codes, contract.dtype).reshape(shape)


def iterate_tracks(manifest: Manifest, split: str) -> Iterator[StoredTrack]:
    """Yields every track of a split as a whole. A shard has whole tracks, so memory holds one shard at most.

    If only some segments are stored, yields the stretches that they cover, one after another.

    Raises:
        RecordsError: as `iterate`, or frames of a track are missing.
    """
    for path in manifest.shard_paths(split):
        segments: dict[int, list[tuple[SegmentHeader, np.ndarray]]] = defaultdict(list)
        for header, codes in read_shard(path, manifest):
            segments[header.track].append((header, codes))
        for row in sorted(segments):
            yield from _join(segments.pop(row), path, is_whole=manifest.has_whole_tracks)


def _join(segments: list[tuple[SegmentHeader, np.ndarray]], path: Path, *, is_whole: bool) -> Iterator[StoredTrack]:
    """Yields the stretches of a track that its segments cover, in order; a whole track must be one."""
    first, first_codes = segments[0]
    n_frames = max(header.start + header.valid for header, _ in segments)
    n_stored = sum(header.valid for header, _ in segments)
    if is_whole and n_frames > n_stored:  # before memory is allocated: a damaged start may claim a huge track
        raise RecordsError(f"{path}: track {first.track_id}: only {n_stored} of {n_frames} frames; build again")
    codes = np.empty((n_frames, first_codes.shape[1]), first_codes.dtype)
    is_stored = np.zeros(n_frames, bool)
    for header, segment in segments:
        codes[header.start : header.start + header.valid] = segment[: header.valid]
        is_stored[header.start : header.start + header.valid] = True
    if is_whole and not is_stored.all():
        missing = int(np.argmin(is_stored))
        raise RecordsError(f"{path}: track {first.track_id}: frame {missing} of {n_frames} is missing; build again")
    edges = np.flatnonzero(np.diff(np.r_[False, is_stored, False]))
    for begin, end in edges.reshape(-1, 2).tolist():
        yield StoredTrack(first.track, first.track_id, first.label, codes[begin:end])


def read_records(path: Path) -> Iterator[bytes]:
    """Yields the payloads of a TFRecord file and compares every checksum."""
    warn_of_slow_checksums()
    try:
        with path.open("rb") as shard:
            size, at = path.stat().st_size, 0
            while at < size:
                payload = _read_record(shard, path, at, size)
                yield payload
                at += HEADER_BYTES + len(payload) + CRC_BYTES
    except OSError as error:
        raise RecordsError(f"{path}: cannot be read: {error.strerror}") from error


def _read_record(shard: IO[bytes], path: Path, at: int, size: int) -> bytes:
    """Returns the payload of the record that begins at a byte, where the open shard stands, of `size` bytes."""
    length = _read_length(shard, path, at, size)
    payload, crc = shard.read(length), shard.read(CRC_BYTES)
    if checksum_of(payload) != crc:
        end = at + HEADER_BYTES + length + CRC_BYTES
        raise RecordsError(f"{path}: damaged between bytes {at} and {end}; build the records again")
    return payload


def _read_length(shard: IO[bytes], path: Path, at: int, size: int) -> int:
    header = shard.read(HEADER_BYTES)
    length: int = struct.unpack("<Q", header[:LENGTH_BYTES])[0] if len(header) == HEADER_BYTES else 0
    if length_header(length) != header or at + HEADER_BYTES + length + CRC_BYTES > size:
        raise RecordsError(f"{path}: damaged at byte {at}; build the records again")
    return length
