"""One segment as a `tf.train.Example`, encoded and decoded without TensorFlow.

Fields: `label` int64 list, `track_id` bytes, `track` int64 (row of tracks.csv), `start` int64 frame,
`valid` int64 (frames that are not tiling), `tokens` int64 list, `mel` raw bytes [frames, n_bins], last in the message
so that everything before it is known without reading the spectrogram.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tfmusic.errors import RecordsError

FORMAT_VERSION = 1

_SMALL = [bytes([value]) for value in range(0x80)]
_BYTES = 2  # the wire type of everything in an Example of packed lists


@dataclass(frozen=True)
class SegmentHeader:
    """Everything of a segment but its cells."""

    track_id: str
    track: int
    start: int
    valid: int
    label: tuple[int, ...]
    tokens: tuple[int, ...] = ()


def encode_prefix(header: SegmentHeader, mel_bytes: int) -> bytes:
    """Returns the serialized Example up to where `mel_bytes` raw bytes of cells follow and end it."""
    entries = b"".join(
        (
            _cached_ints("label", header.label),
            _cached_ints("start", (header.start,)),
            _track_entries(header.tokens, header.track, header.track_id),
            _cached_ints("valid", (header.valid,)),
        )
    )
    in_map = _cells_prefix(mel_bytes)
    return b"\x0a" + _varint(len(entries) + len(in_map) + mel_bytes) + entries + in_map


@lru_cache(16)
def _cells_prefix(mel_bytes: int) -> bytes:
    """Returns the last entry of the map up to its cells: the lengths of the messages around, from the inside out."""
    in_list = b"\x0a" + _varint(mel_bytes)
    in_feature = b"\x0a" + _varint(len(in_list) + mel_bytes) + in_list
    in_entry = _field(1, b"mel") + b"\x12" + _varint(len(in_feature) + mel_bytes) + in_feature
    return b"\x0a" + _varint(len(in_entry) + mel_bytes) + in_entry


@lru_cache(512)
def _cached_ints(key: str, values: tuple[int, ...]) -> bytes:
    """Returns an entry of numbers that come again in other segments."""
    return _entry(key, _int64_feature(values))


@lru_cache(512)  # the tracks of a shard, whose segments come mixed
def _track_entries(tokens: tuple[int, ...], track: int, track_id: str) -> bytes:
    """Returns the entries that all segments of a track share and that follow each other."""
    name = _entry("track_id", _field(1, _field(1, track_id.encode())))
    return _entry("tokens", _int64_feature(tokens)) + _entry("track", _int64_feature((track,))) + name


def decode(record: bytes) -> tuple[SegmentHeader, memoryview]:
    """Returns the header and the raw cells of a serialized Example.

    Raises:
        RecordsError: the bytes are no Example of this format.
    """
    try:
        features = {}
        for _, message in _fields(memoryview(record)):
            for _, entry in _fields(message):
                parts = dict(_fields(entry))
                features[bytes(parts[1]).decode()] = parts[2]
        header = SegmentHeader(
            track_id=bytes(_only(_only(features["track_id"]))).decode(),
            track=_ints(features["track"])[0],
            start=_ints(features["start"])[0],
            valid=_ints(features["valid"])[0],
            label=_ints(features["label"]),
            tokens=_ints(features["tokens"]),
        )
        return header, _only(_only(features["mel"]))
    except (KeyError, IndexError, ValueError, UnicodeDecodeError) as error:
        raise RecordsError(f"a record must be an Example of format {FORMAT_VERSION}: {error!r}") from error


def _varint(value: int) -> bytes:
    if 0 <= value <= 0x7F:
        return _SMALL[value]
    out = bytearray()
    while value > 0x7F:
        out.append(0x80 | (value & 0x7F))
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(payload)) + payload


def _entry(key: str, feature: bytes) -> bytes:
    return _field(1, _field(1, key.encode()) + _field(2, feature))


def _int64_feature(values: tuple[int, ...]) -> bytes:
    packed = b"".join(_varint(value) for value in values)
    return _field(3, _field(1, packed) if packed else b"")


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
        if shift > 63:
            raise ValueError("varint too long")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields number and payload of the length-delimited fields of a message; other wire types are refused."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        if tag & 7 != _BYTES:
            raise ValueError(f"wire type {tag & 7}")
        length, at = _read_varint(message, at)
        if at + length > len(message):
            raise ValueError("field beyond the end")
        yield tag >> 3, message[at : at + length]
        at += length


def _only(message: memoryview) -> memoryview:
    """Returns the payload of the first field of a message."""
    return next(_fields(message), (0, memoryview(b"")))[1]


def _ints(feature: memoryview) -> tuple[int, ...]:
    packed, at, values = _only(_only(feature)), 0, []  # Feature > Int64List > packed values
    while at < len(packed):
        value, at = _read_varint(packed, at)
        values.append(value)
    return tuple(values)


_COPIES = "_copies"


def copies_of(split: str) -> str:
    """Returns the split that holds the changed copies of the tracks of a split, which train and are never scored."""
    return f"{split}{_COPIES}"


def holds_copies(split: str) -> bool:
    """Returns whether a split is one of changed copies."""
    return split.endswith(_COPIES)


def shard_name(name: str, split: str, index: int, count: int) -> str:
    """Returns the file name of a shard, such as `q2-fold0.tfrecord-00000-of-00008`."""
    return f"{name}-{split}.tfrecord-{index:05d}-of-{count:05d}"


def order_key(seed: int, track_id: str, start: int | None = None) -> bytes:
    """Returns the place of a track, or of one of its segments, in an order that looks random and never changes."""
    text = f"{seed}/{track_id}" if start is None else f"{seed}/{track_id}/{start}"
    return hashlib.sha256(text.encode()).digest()


def n_shards(total_bytes: int, *, at_least: int, shard_bytes: int, n_tracks: int) -> int:
    """Returns how many shards a split gets: as many as asked for, more where shards would be too large."""
    wanted = max(at_least, -(-total_bytes // shard_bytes))
    return max(min(wanted, n_tracks), 1)


def deal_ranges(sizes: Sequence[int], count: int) -> list[range]:
    """Returns `count` contiguous ranges of items, none empty, whose sums of sizes are as even as cuts allow.

    Cut k stands where the running sum comes nearest to k / count of the total.

    Raises:
        ValueError: there are fewer items than ranges.
    """
    if not 1 <= count <= len(sizes):
        raise ValueError(f"need 1 to {len(sizes)} ranges, got {count}")
    total, running, cuts = sum(sizes), 0, [0]
    for item, size in enumerate(sizes):
        wanted = total * len(cuts) / count
        left_items, left_ranges = len(sizes) - item, count - len(cuts)
        must_cut = left_items == left_ranges  # one item for each range still to come
        if len(cuts) < count and item > cuts[-1] and (must_cut or running + size / 2 >= wanted):
            cuts.append(item)
        running += size
    return [range(first, last) for first, last in zip(cuts, [*cuts[1:], len(sizes)], strict=True)]
