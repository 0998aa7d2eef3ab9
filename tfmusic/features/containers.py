"""What libsndfile is given to read: the parts of a sound file, with lengths that can be relied on.

libsndfile reads as many samples as the first header says, of one stream. Music behind a count that is too low, or in a
file that was joined from several, would be lost. Here the headers of frames, pages and chunks are followed to the end:
each stream becomes a `Part`, and a wrong count is corrected in the bytes that libsndfile sees.
"""

import io
import mmap
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Kinds of files that libsndfile does not read, or takes for an .mp3.
FOREIGN = {
    "an MP4 file": re.compile(rb"....(ftyp|moov|mdat|wide|free|skip)", re.DOTALL),
    "an AAC file": re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"),
    "a Matroska or WebM file": re.compile(rb"\x1a\x45\xdf\xa3"),
    "a Windows Media file": re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    "an Ogg FLAC file": re.compile(rb"OggS.{24}\x7fFLAC", re.DOTALL),
}
_JUNK_SHARE = 0.02  # of a .wav behind its music, which may be tags or padding

_SMALLEST_FRAME_BYTES = 24
# By the version bits of an MPEG header (MPEG 1, 2 and 2.5): sample rates, bit rates, samples in a frame.
_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_KBITS_LOW = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_KBITS_HIGH = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS = {3: _KBITS_HIGH, 2: _KBITS_LOW, 0: _KBITS_LOW}
_FRAME_SAMPLES = {3: 1152, 2: 576, 0: 576}
_LAYER_3 = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef].", re.DOTALL)
_FRAME_OR_TAG = re.compile(_LAYER_3.pattern + rb"|ID3[\x02-\x04]", re.DOTALL)
_COUNTS = {b"Xing": 8, b"Info": 8, b"VBRI": 14}  # where the number of frames stands behind each mark
_MARK_PLACES = (13, 15, 21, 23, 36, 38)  # in a frame, by version, channels and checksum
_COUNT_SLACK = 2  # frames: some encoders count the first one, others do not


@dataclass(frozen=True)
class Part:
    """Bytes that libsndfile reads as one file: `head`, then those of a file from `begin` to `end`.

    Attributes:
        head: bytes put in front, with a corrected count.
        begin: position of the first byte.
        end: position behind the last byte.
        n_samples: length, where the headers say it better than libsndfile does.
        is_cut: whether the end is known to be missing.
    """

    head: bytes
    begin: int
    end: int
    n_samples: int | None = None
    is_cut: bool = False


class PartFile(io.RawIOBase):
    """A readable file of a part."""

    def __init__(self, path: Path, part: Part) -> None:
        self._file = path.open("rb", buffering=0)
        self._part = part
        self._position = 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a position and returns it."""
        size = len(self._part.head) + self._part.end - self._part.begin
        self._position = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: size}[whence] + offset
        return self._position

    def tell(self) -> int:
        """Returns the position of the next byte."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer with the next bytes and returns their number."""
        view, head = memoryview(buffer).cast("B"), self._part.head
        ready = head[self._position : self._position + len(view)]
        view[: len(ready)] = ready
        at = self._part.begin + max(self._position - len(head), 0)
        n_wanted = max(min(len(view) - len(ready), self._part.end - at), 0)
        self._file.seek(at)
        n_read = len(ready) + self._file.readinto(view[len(ready) : len(ready) + n_wanted])
        self._position += n_read
        return n_read

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def find_parts(path: Path, file_format: str = "") -> list[Part]:
    """Returns the parts of a file in their order; one for all of it where nothing is to be corrected.

    WAV, FLAC and Ogg are known by their first bytes. That a file is an MP3 is for libsndfile to say.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begin = _behind_tags(data, 0)
        split = _SPLIT.get(file_format.encode() or data[begin : begin + 4])
        return (list(split(data, begin)) if split else []) or [Part(b"", begin, len(data))]


def foreign_kind(path: Path) -> str | None:
    """Returns what a file is that libsndfile cannot read, by its first bytes; None for all others."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begin = _behind_tags(data, 0)
        return next((kind for kind, mark in FOREIGN.items() if mark.match(data, begin)), None)


def _behind_tags(data: mmap.mmap, position: int) -> int:
    """Returns the position behind the ID3v2 tags that begin at a position; a tag states its length, 7 bits a byte."""
    while data[position : position + 3] == b"ID3" and position + 10 <= len(data):
        n_bytes = sum(
            (byte & 0x7F) << shift
            for byte, shift in zip(data[position + 6 : position + 10], (21, 14, 7, 0), strict=True)
        )
        if position + 10 + n_bytes >= len(data):  # no length of a tag
            break
        position += 10 + n_bytes
    return position


# --- FLAC, WAV, Ogg --------------------------------------------------------------------------------------------


def _flac_parts(data: mmap.mmap, begin: int) -> Iterator[Part]:
    """Yields every stream; without the number of samples in its header libsndfile reads to the end."""
    while begin >= 0:
        following = data.find(b"fLaC\0\0\0\x22", begin + 4)
        head = bytearray(data[begin : begin + 26])
        n_samples = int.from_bytes(head[21:26], "big") & (1 << 36) - 1
        head[21] &= 0xF0
        head[22:26] = bytes(4)
        yield Part(bytes(head), begin + len(head), following if following >= 0 else len(data), n_samples or None)
        begin = following


def _wav_parts(data: mmap.mmap, begin: int) -> Iterator[Part]:
    """Yields every stream. Music may go on behind the length that the header states, which may be 0."""
    position = begin + 12
    while data[begin + 8 : begin + 12] == b"WAVE" and position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        end = position + 8 + size
        if data[position : position + 4] == b"data":
            break
        position = end + size % 2
    else:
        return
    following = next((at for at in (end, end + 1) if data[at : at + 4] == b"RIFF"), None)
    goes_on = len(data) - end > _JUNK_SHARE * size and not any(_is_chunk(data, at) for at in (end, end + 1))
    if following is None and not goes_on:
        return  # at the first call: one whole
    rest = (following or len(data)) - position - 8
    head = data[begin : begin + 4] + struct.pack("<I", position + rest - begin) + data[begin + 8 : position + 4]
    yield Part(head + struct.pack("<I", rest), position + 8, following or len(data))
    if following is not None:
        yield from list(_wav_parts(data, following)) or [Part(b"", following, len(data))]


def _is_chunk(data: mmap.mmap, at: int) -> bool:
    """Returns whether a chunk may begin at a position, or there is no room for one."""
    head = data[at : at + 8]
    fits = at + 8 + int.from_bytes(head[4:], "little") <= len(data) + 1
    return len(head) < 8 or (re.match(rb"[ -~]{4}", head) is not None and fits)


def _ogg_parts(data: mmap.mmap, begin: int) -> Iterator[Part]:
    """Yields every link of a chain: it begins with the first page of a stream behind pages that are none."""
    position, flags = data.find(b"OggS", begin), 2
    while position >= 0 and position + 27 <= len(data):
        n_segments = data[position + 26]
        end = position + 27 + n_segments + sum(data[position + 27 : position + 27 + n_segments])
        if end > len(data):
            break
        if data[position + 5] & 2 and not flags & 2:
            yield Part(b"", begin, position)
            begin = position
        flags = data[position + 5]
        position = data.find(b"OggS", end)
    yield Part(b"", begin, len(data), is_cut=not flags & 4)


# --- MP3 -------------------------------------------------------------------------------------------------------


@dataclass
class _Stream:
    """Frames of one sample rate and number of channels; `count_at` is the position of their number, where stated."""

    header: bytes
    begin: int
    end: int
    count_at: int | None
    n_frames: int = 0
    bit_rates: set[int] = field(default_factory=set)


def _mp3_parts(data: mmap.mmap, begin: int) -> Iterator[Part]:
    """Yields every stream. A count that is too low is corrected; without one libsndfile would guess from one frame."""
    streams = _mp3_streams(data, begin)
    for index, stream in enumerate(streams):
        start = stream.begin if index else begin
        end = stream.end if index + 1 < len(streams) else len(data)
        n_samples = stream.n_frames * _FRAME_SAMPLES[stream.header[1] >> 3 & 3]
        if stream.count_at is None:
            is_constant = len(stream.bit_rates) < 2  # the guess is right
            head = b"" if is_constant else _silent_frame(stream.header, (end - start) // _SMALLEST_FRAME_BYTES)
            yield Part(head, start, end, n_samples)
        elif stream.n_frames > int.from_bytes(data[stream.count_at : stream.count_at + 4], "big") + _COUNT_SLACK:
            head = data[start : stream.count_at] + struct.pack(">I", stream.n_frames)
            yield Part(head, stream.count_at + 4, end)
        else:
            yield Part(b"", start, end)


def _mp3_streams(data: mmap.mmap, begin: int) -> list[_Stream]:
    """Returns the streams of a file: one ends where the rate or the channels change, at an ID3 tag and at a count."""
    marks = {at: size for mark, size in _COUNTS.items() for at in _find_all(data, mark, begin)}
    streams: list[_Stream] = []
    for position, header, behind_tag in _frames(data, begin):
        end = position + _frame_bytes(header)
        mark = next((position + at for at in _MARK_PLACES if position + at in marks), None)
        if mark is not None:
            is_counted = data[mark : mark + 4] == b"VBRI" or data[mark + 7] & 1
            count_at = mark + marks[mark] if is_counted else None
            streams.append(_Stream(header, position if is_counted else end, end, count_at))
            continue
        if not streams or behind_tag or _format_of(header) != _format_of(streams[-1].header):
            streams.append(_Stream(header, position, end, None))
        streams[-1].end = end
        streams[-1].n_frames += 1
        streams[-1].bit_rates.add(header[2] >> 4)
    return [stream for stream in streams if stream.n_frames]


def _find_all(data: mmap.mmap, mark: bytes, position: int) -> Iterator[int]:
    while (position := data.find(mark, position)) >= 0:
        yield position
        position += 1


def _frames(data: mmap.mmap, position: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yields position and header of every layer III frame, and whether an ID3 tag is in front of it.

    The first frame, and one of another format than the last, must have a second one of its format behind it.
    """
    known, behind_tag = None, False
    while position < len(data):
        found = _LAYER_3.match(data, position)
        if (found and _format_of(found[0]) == known) or _begins_stream(data, position):
            header = data[position : position + 4]
            yield position, header, behind_tag
            known, behind_tag, position = _format_of(header), False, position + _frame_bytes(header)
            continue
        begin = _behind_tags(data, position)
        behind_tag |= begin > position
        following = _FRAME_OR_TAG.search(data, begin if begin > position else position + 1)
        position = following.start() if following else len(data)


def _begins_stream(data: mmap.mmap, position: int) -> bool:
    first = _LAYER_3.match(data, position)
    if first is None or first[0][2] >> 2 & 3 == 3:  # an invalid sample rate
        return False
    end = position + _frame_bytes(first[0])
    second = _LAYER_3.match(data, end)
    return end >= len(data) or (second is not None and _format_of(second[0]) == _format_of(first[0]))


def _format_of(header: bytes) -> tuple[int, int, bool]:
    """Returns the MPEG version, the number of the sample rate, and whether there is one channel."""
    return header[1] & 0x18, header[2] & 0x0C, header[3] >> 6 == 3


def _frame_bytes(header: bytes) -> int:
    """Returns the length of the frame of a header with a valid sample rate."""
    version = header[1] >> 3 & 3
    bits_per_s = 1000 * _KBITS[version][header[2] >> 4]
    return _FRAME_SAMPLES[version] * bits_per_s // 8 // _RATES_HZ[version][header[2] >> 2 & 3] + (header[2] >> 1 & 1)


def _silent_frame(header: bytes, n_frames: int) -> bytes:
    """Returns a silent frame in the format of a header that counts `n_frames` frames."""
    _, kind, rates, channels = header
    is_mono, is_mpeg_1 = channels >> 6 == 3, kind >> 3 & 3 == 3
    side_bytes = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[is_mpeg_1, is_mono]
    # No checksum (the lowest bit of the second byte), the highest bit rate, the same sample rate and channels.
    head = bytes([0xFF, kind | 1, 0xE0 | (rates & 0x0C), channels])
    return (head + bytes(side_bytes) + b"Info" + struct.pack(">II", 1, n_frames)).ljust(_frame_bytes(head), b"\0")


_SPLIT: Mapping[bytes, Callable[[mmap.mmap, int], Iterator[Part]]] = {
    b"RIFF": _wav_parts,
    b"fLaC": _flac_parts,
    b"OggS": _ogg_parts,
    b"MP3": _mp3_parts,
}
