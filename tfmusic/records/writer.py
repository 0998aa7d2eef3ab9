"""Writes TFRecord shards without TensorFlow, every record at its final offset.

The headers alone determine the layout of a shard. So segments can be written in the order in which tracks are read,
although the file has them in hash order. Memory holds one track, however large the shard.
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
    warnings.simplefilter("ignore", RuntimeWarning)  # `warn_of_slow_checksums` warns in one line
    import google_crc32c

LENGTH_BYTES, CRC_BYTES = 8, 4
HEADER_BYTES = LENGTH_BYTES + CRC_BYTES  # what stands before a payload
_MASK_DELTA = 0xA282EAD8


def masked_crc(crc: int) -> int:
    """Returns a CRC-32C as TFRecord stores it: rotated right by 15 bits, plus a constant."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def checksum_of(data: bytes | np.ndarray) -> bytes:
    """Returns the 4 bytes that follow some data in a TFRecord file."""
    return struct.pack("<I", masked_crc(google_crc32c.value(data)))


@cache
def warn_of_slow_checksums() -> None:
    """Warns once a process if google-crc32c has no C extension, because records are then many times slower."""
    if google_crc32c.implementation != "c":
        console.warn(
            "google-crc32c runs in pure Python here, so reading and writing records is slow: install a wheel with its"
            " C extension (pip install --force-reinstall google-crc32c)"
        )


@lru_cache(256)
def length_header(n_bytes: int) -> bytes:
    """Returns the beginning of a record: the length of its payload and the checksum of that length."""
    length = struct.pack("<Q", n_bytes)
    return length + checksum_of(length)


class ShardWriter:
    """Writes the segments of one shard, in any order; the file gets its name when it is complete.

    Args:
        path: the final name. The temporary file beside it has a random name, because processes in two containers may
            have the same number and write the same shard.
        headers: the segments in file order.
        segment_bytes: size of the codes of every segment.
    """

    def __init__(self, path: Path, headers: Sequence[SegmentHeader], segment_bytes: int) -> None:
        self.path, self._tmp = path, path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        self._segment_bytes, self._n_written = segment_bytes, 0
        self._offsets: dict[tuple[int, int], tuple[int, bytes]] = {}
        offset = 0
        for header in headers:
            prefix = encode_prefix(header, segment_bytes)
            self._offsets[header.track, header.start] = (offset, prefix)
            offset += HEADER_BYTES + CRC_BYTES + len(prefix) + segment_bytes
        self._n_bytes = offset

    def __enter__(self) -> Self:
        self._file = os.open(self._tmp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        return self

    def write(self, track: int, start: int, codes: np.ndarray) -> None:
        """Writes the codes [frames, n_bins] of the segment that begins at frame `start` of the track in row `track`."""
        offset, prefix = self._offsets[track, start]
        if codes.nbytes != self._segment_bytes or not codes.flags.c_contiguous:
            raise ValueError(f"codes must be {self._segment_bytes} contiguous bytes, got {codes.nbytes}")
        crc = struct.pack("<I", masked_crc(google_crc32c.extend(google_crc32c.value(prefix), codes)))
        length = length_header(len(prefix) + self._segment_bytes)
        self._write_all(offset, (length, prefix, codes.data.cast("B"), crc))
        self._n_written += 1

    def finish(self) -> tuple[int, str]:
        """Flushes the shard to the disk and renames it; returns its size in bytes and its sha256."""
        if self._n_written != len(self._offsets):
            raise ValueError(f"{self.path}: {self._n_written} of {len(self._offsets)} segments written")
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
        if written < expected:  # a disk that fills up may accept a part; the next write raises
            rest = b"".join(parts)[written:]
            while rest:
                done = os.pwrite(self._file, rest, offset + expected - len(rest))
                rest = rest[done:]
