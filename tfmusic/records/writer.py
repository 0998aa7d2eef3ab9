"""TFRecord shards without TensorFlow, each record at its final place from the first write.

The layout of a shard follows from the headers alone, so segments are written in the order in which tracks are read,
while they stand in the file in hash order. Memory holds one track, however large the shard.
"""

import hashlib
import os
import struct
import uuid
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from tfmusic.console import console
from tfmusic.records.format import SegmentHeader, encode_prefix

with warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # `warn_of_slow_checksums` says it in one line
    import google_crc32c

_LENGTH_BYTES, _CRC_BYTES = 8, 4
_MASK_DELTA = 0xA282EAD8


def masked_crc(crc: int) -> int:
    """Returns the CRC-32C as TFRecord stores it: rotated right by 15 bits plus a constant."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def checksum_of(data: bytes) -> bytes:
    """Returns the four bytes that follow some data in a record."""
    return struct.pack("<I", masked_crc(google_crc32c.value(data)))


@cache
def warn_of_slow_checksums() -> None:
    """Warns, once a process, where google-crc32c lacks its C extension, which makes records many times slower."""
    if google_crc32c.implementation != "c":
        console.warn(
            "google-crc32c runs in pure Python here, so reading and writing records is slow: install a wheel with its"
            " C extension (pip install --force-reinstall google-crc32c)"
        )


@lru_cache(256)
def frame_length(data_bytes: int) -> bytes:
    """Returns the head of a record: its length and the checksum of the length."""
    length = struct.pack("<Q", data_bytes)
    return length + checksum_of(length)


class ShardWriter:
    """Writes the segments of one shard, in any order, into a file that appears under its name when complete.

    Args:
        path: the final name; while writing, the file stands beside it with a word of its own and `.tmp` behind the
            name: processes in containers have the same numbers, and may write one shard at the same time.
        headers: the segments in file order.
        cell_bytes: size of the raw cells of every segment.
    """

    def __init__(self, path: Path, headers: Sequence[SegmentHeader], cell_bytes: int) -> None:
        self.path, self._tmp = path, path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        self._cell_bytes, self._written = cell_bytes, 0
        self._places: dict[tuple[int, int], tuple[int, bytes]] = {}
        offset = 0
        for header in headers:
            prefix = encode_prefix(header, cell_bytes)
            self._places[header.track, header.start] = (offset, prefix)
            offset += _LENGTH_BYTES + 2 * _CRC_BYTES + len(prefix) + cell_bytes
        self._n_bytes = offset

    def __enter__(self) -> Self:
        self._file = os.open(self._tmp, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        return self

    def write(self, track: int, start: int, cells: np.ndarray) -> None:
        """Writes the cells [frames, n_bins] of the segment of row `track` that begins at frame `start`."""
        offset, prefix = self._places[track, start]
        if cells.nbytes != self._cell_bytes or not cells.flags.c_contiguous:
            raise ValueError(f"cells must be {self._cell_bytes} contiguous bytes, got {cells.nbytes}")
        crc = google_crc32c.extend(google_crc32c.value(prefix), cells)
        head = frame_length(len(prefix) + self._cell_bytes)
        tail = struct.pack("<I", masked_crc(crc))
        self._write_all(offset, (head, prefix, cells.data.cast("B"), tail))
        self._written += 1

    def finish(self) -> tuple[int, str]:
        """Makes the shard durable under its name; returns its size in bytes and its sha256."""
        if self._written != len(self._places):
            raise ValueError(f"{self.path}: {self._written} of {len(self._places)} segments written")
        with ThreadPoolExecutor(1) as pool, open(self._file, "rb", closefd=False) as shard:
            flushed = pool.submit(os.fsync, self._file)  # the disk is busy while the processor hashes
            shard.seek(0)
            digest = hashlib.file_digest(shard, "sha256").hexdigest()
            flushed.result()
        self._tmp.replace(self.path)
        return self._n_bytes, digest

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        self._tmp.unlink(missing_ok=True)

    def _write_all(self, offset: int, parts: tuple[bytes | memoryview, ...]) -> None:
        expected = sum(len(part) for part in parts)
        written = os.pwritev(self._file, parts, offset)
        if written < expected:  # a disk that fills up may take a part: the next write says so
            rest = b"".join(parts)[written:]
            while rest:
                done = os.pwrite(self._file, rest, offset + expected - len(rest))
                rest = rest[done:]
