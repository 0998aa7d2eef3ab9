"""`.mp3` files without the first frame that counts all others (Xing or Info).

libsndfile guesses the length of such a file from its first frame and reads no further: a file with a changing bit rate
would lose its end. `count_without_xing` adds up the frame headers. If the guess is too short, `Mp3WithCount` puts a
Xing frame with a higher count before the file. The result lacks the first 529 samples, the delay of a decoder, which
other files keep.
"""

import io
import mmap
import os
import re
import struct
from pathlib import Path
from typing import Any

_HEAD_BYTES = 1 << 16
_SMALLEST_FRAME_BYTES = 24
# By the version bits of a header (MPEG 1, 2 and 2.5): sample rates, bit rates, samples in a frame.
_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_KBITS_LOW = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_KBITS_HIGH = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS = {3: _KBITS_HIGH, 2: _KBITS_LOW, 0: _KBITS_LOW}
_FRAME_SAMPLES = {3: 1152, 2: 576, 0: 576}
_LAYER_3 = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef].", re.DOTALL)


def count_without_xing(path: Path) -> int:
    """Returns the number of samples of a layer III file without a Xing frame, from its headers; 0 for other files."""
    if path.stat().st_size == 0:
        return 0
    with path.open("rb") as file:
        begin = _tag_bytes(file)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as music:
            first = _LAYER_3.search(music, begin, begin + _HEAD_BYTES)
            if first is None or re.search(rb"Xing|Info", music[first.start() : first.start() + 64]):
                return 0
            return _add_up(music, first.start())


def _add_up(music: mmap.mmap, position: int) -> int:
    """Returns the sum of the samples of all frames from a position on."""
    n_samples = 0
    while True:
        header = _LAYER_3.match(music, position) or _LAYER_3.search(music, position)  # skips bytes between frames
        if header is None:
            return n_samples
        n_bytes, n_frame_samples = _frame_size(header[0])
        n_samples += n_frame_samples
        position = header.start() + n_bytes


def _frame_size(header: bytes) -> tuple[int, int]:
    """Returns the bytes and samples of a frame; 1 byte and no samples for an invalid sample rate."""
    version, rate = header[1] >> 3 & 3, header[2] >> 2 & 3
    if rate == 3:
        return 1, 0
    n_samples = _FRAME_SAMPLES[version]
    bits_per_s = 1000 * _KBITS[version][header[2] >> 4]
    return n_samples * bits_per_s // 8 // _RATES_HZ[version][rate] + (header[2] >> 1 & 1), n_samples


class Mp3WithCount(io.RawIOBase):
    """A readable file: a Xing frame, then a file for which `count_without_xing` is not 0."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._begin = _tag_bytes(self._file)
        self._size = os.fstat(self._file.fileno()).st_size - self._begin
        self._file.seek(self._begin)
        self._frame = _xing_frame(self._file.read(_HEAD_BYTES), self._size // _SMALLEST_FRAME_BYTES)
        self._position = 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a position and returns it."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._frame) + self._size}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        """Returns the position of the next byte."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer with the next bytes, first of the frame, then of the file; returns their number."""
        view = memoryview(buffer).cast("B")
        n_read = 0
        if self._position < len(self._frame):
            part = self._frame[self._position : self._position + len(view)]
            view[: len(part)], n_read = part, len(part)
        self._file.seek(self._begin + max(self._position - len(self._frame), 0))
        n_read += self._file.readinto(view[n_read:])
        self._position += n_read
        return n_read

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def _tag_bytes(file: io.BufferedReader) -> int:
    """Returns the length of the ID3v2 tag at the beginning of a file; the tag states it with 7 bits a byte."""
    file.seek(0)
    head = file.read(10)
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def _xing_frame(head: bytes, n_frames: int) -> bytes:
    """Returns a silent frame in the format of the first frame of `head` that counts `n_frames` frames."""
    first = _LAYER_3.search(head)
    assert first is not None  # count_without_xing matched it
    _, kind, rates, channels = first[0]
    is_mono = channels >> 6 == 3
    side_bytes = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[
        kind >> 3 & 3 == 3, is_mono
    ]
    # No checksum (the lowest bit of the second byte), the highest bit rate, the same sample rate and channels.
    header = bytes([0xFF, kind | 1, 0xE0 | (rates & 0x0C), channels])
    n_bytes, _ = _frame_size(header)
    return (header + bytes(side_bytes) + b"Info" + struct.pack(">II", 1, n_frames)).ljust(n_bytes, b"\0")
