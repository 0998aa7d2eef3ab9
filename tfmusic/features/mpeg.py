"""`.mp3` files without the frame that counts all others (Xing or Info), so that only decoding tells their length.

libsndfile guesses it from the first frame and reads no further: music of changing bit rate would lose its end. Behind a
counting frame that promises more than there can be, it reads to the end of the file.
"""

import io
import os
import re
import struct
from pathlib import Path
from typing import Any

_HEAD_BYTES = 1 << 16
_SMALLEST_FRAME_BYTES = 24
# By the bits of the header that tell the version: sample rates, and bytes of a frame at the highest bit rate times the
# rate. MPEG 1, 2 and 2.5.
_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_BYTES_TIMES_RATE = {3: 144 * 320_000, 2: 72 * 160_000, 0: 72 * 160_000}
_LAYER_3 = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef].", re.DOTALL)


def counting_frame_is_missing(path: Path) -> bool:
    """Returns whether a file is layer III music without a frame that counts the others."""
    with path.open("rb") as file:
        file.seek(_tag_bytes(file))
        head = file.read(_HEAD_BYTES)
    first = _LAYER_3.search(head)
    if first is None or (first[0][2] >> 2 & 3) == 3:  # no music, or no such sample rate: the decoder says so
        return False
    return re.search(rb"Xing|Info", head[first.start() : first.start() + 64]) is None


class CountedMpeg(io.RawIOBase):
    """Such a file as it would be behind a counting frame; for reading."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._begin = _tag_bytes(self._file)
        self._size = os.fstat(self._file.fileno()).st_size - self._begin
        self._file.seek(self._begin)
        self._frame = _counting_frame(self._file.read(_HEAD_BYTES), self._size // _SMALLEST_FRAME_BYTES)
        self._place = 0

    def readable(self) -> bool:
        """Returns that it can be read."""
        return True

    def seekable(self) -> bool:
        """Returns that places in it can be gone to."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Goes to a place and returns it."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: len(self._frame) + self._size}[whence]
        self._place = origin + offset
        return self._place

    def tell(self) -> int:
        """Returns the place of the next byte."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer with the next bytes, of the frame and then of the file, and returns their number."""
        view = memoryview(buffer).cast("B")
        n_read = 0
        if self._place < len(self._frame):
            part = self._frame[self._place : self._place + len(view)]
            view[: len(part)], n_read = part, len(part)
        self._file.seek(self._begin + max(self._place - len(self._frame), 0))
        n_read += self._file.readinto(view[n_read:])
        self._place += n_read
        return n_read

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def _tag_bytes(file: io.BufferedReader) -> int:
    """Returns how long the ID3v2 tag at the beginning is; its length has 7 bits a byte."""
    file.seek(0)
    head = file.read(10)
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def _counting_frame(head: bytes, n_frames: int) -> bytes:
    """Returns a frame like the first of some music, but silent, that counts `n_frames` frames."""
    first = _LAYER_3.search(head)
    assert first is not None  # counting_frame_is_missing has found it
    _, kind, rates, channels = first[0]
    version, is_mono = kind >> 3 & 3, channels >> 6 == 3
    n_bytes = _BYTES_TIMES_RATE[version] // _RATES_HZ[version][rates >> 2 & 3]
    side_bytes = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[version == 3, is_mono]
    # No checksum (the lowest bit of the second byte), the highest bit rate, the same sample rate and channels.
    header = bytes([0xFF, kind | 1, 0xE0 | (rates & 0x0C), channels])
    return (header + bytes(side_bytes) + b"Info" + struct.pack(">II", 1, n_frames)).ljust(n_bytes, b"\0")
