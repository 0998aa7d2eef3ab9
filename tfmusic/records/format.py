"""Record format 1: names and order of shards, and the segment as a `tf.train.Example`, without TensorFlow.

`records/README.md` specifies the format. The fields of an Example: `label` int64 list, `track_id` bytes, `track` int64
(row of tracks.csv), `start` int64 frame, `valid` int64 (frames of the track, not tiled ones), `tokens` int64 list,
`mel` raw bytes [frames, n_bins]. `mel` is last, so everything before it is known before the spectrogram is read.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tfmusic.errors import RecordsError

FORMAT_VERSION = 1

_COPIES = "_copies"

_LENGTH_DELIMITED = 2  # the only wire type in an Example of bytes and packed int64 lists
_ONE_BYTE_VARINTS = [bytes([value]) for value in range(0x80)]


def copies_of(split: str) -> str:
    """Returns the split with the augmented copies of a split's tracks; copies train and are never scored."""
    return f"{split}{_COPIES}"


def holds_copies(split: str) -> bool:
    """Returns whether a split is one of augmented copies."""
    return split.endswith(_COPIES)


def without_copies(split: str) -> str:
    """Returns the split whose tracks a split of copies augments, or the split itself."""
    return split.removesuffix(_COPIES)


def shard_name(name: str, split: str, index: int, count: int) -> str:
    """Returns the file name of a shard, such as `q2-fold0.tfrecord-00000-of-00008`."""
    return f"{name}-{split}.tfrecord-{index:05d}-of-{count:05d}"


def order_key(seed: int, track_id: str, start: int | None = None) -> bytes:
    """Returns the sort key of a track, or of a segment by its first frame: the sha256 of `seed/track_id[/start]`."""
    text = f"{seed}/{track_id}" if start is None else f"{seed}/{track_id}/{start}"
    return hashlib.sha256(text.encode()).digest()


def n_shards(total_bytes: int, *, at_least: int, shard_bytes: int, n_tracks: int) -> int:
    """Returns the number of shards of a split: `at_least`, more if shards exceed `shard_bytes`, at most `n_tracks`."""
    n_wanted = max(at_least, -(-total_bytes // shard_bytes))
    return max(min(n_wanted, n_tracks), 1)


def even_ranges(sizes: Sequence[int], count: int) -> list[range]:
    """Returns `count` contiguous ranges of items, none empty, whose sums of sizes are as even as possible.

    Boundary k is where the running sum is nearest to k / count of the total.

    Raises:
        ValueError: there are fewer items than ranges.
    """
    if not 1 <= count <= len(sizes):
        raise ValueError(f"need 1 to {len(sizes)} ranges, got {count}")
    total, running, starts = sum(sizes), 0, [0]
    for item, size in enumerate(sizes):
        target = total * len(starts) / count
        one_item_a_range = len(sizes) - item == count - len(starts)  # for all ranges that have not begun
        if len(starts) < count and item > starts[-1] and (one_item_a_range or running + size / 2 >= target):
            starts.append(item)
        running += size
    return [range(first, last) for first, last in zip(starts, [*starts[1:], len(sizes)], strict=True)]


@dataclass(frozen=True)
class SegmentHeader:
    """All fields of a segment except its codes; `records/README.md` explains them."""

    track_id: str
    track: int
    start: int
    valid: int
    label: tuple[int, ...]
    tokens: tuple[int, ...] = ()


def encode_prefix(header: SegmentHeader, mel_bytes: int) -> bytes:
    """Returns the serialized Example up to its last `mel_bytes` bytes, which are the codes."""
    entries = b"".join(
        (
            _int_entry("label", header.label),
            _int_entry("start", (header.start,)),
            _track_entries(header.tokens, header.track, header.track_id),
            _int_entry("valid", (header.valid,)),
        )
    )
    mel_prefix = _mel_prefix(mel_bytes)
    return b"\x0a" + _varint(len(entries) + len(mel_prefix) + mel_bytes) + entries + mel_prefix


def decode(record: bytes) -> tuple[SegmentHeader, memoryview]:
    """Returns the header and the raw codes of a serialized Example.

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
            track_id=bytes(_first_field(_first_field(features["track_id"]))).decode(),
            track=_ints(features["track"])[0],
            start=_ints(features["start"])[0],
            valid=_ints(features["valid"])[0],
            label=_ints(features["label"]),
            tokens=_ints(features["tokens"]),
        )
        return header, _first_field(_first_field(features["mel"]))
    except (KeyError, IndexError, ValueError, UnicodeDecodeError) as error:
        raise RecordsError(f"a record must be an Example of format {FORMAT_VERSION}. Received: {error!r}") from error


@lru_cache(16)
def _mel_prefix(mel_bytes: int) -> bytes:
    """Returns the entry `mel` up to its codes: the lengths of the nested messages, from the innermost outwards."""
    in_list = b"\x0a" + _varint(mel_bytes)
    in_feature = b"\x0a" + _varint(len(in_list) + mel_bytes) + in_list
    in_entry = _field(1, b"mel") + b"\x12" + _varint(len(in_feature) + mel_bytes) + in_feature
    return b"\x0a" + _varint(len(in_entry) + mel_bytes) + in_entry


@lru_cache(512)  # many segments have the same numbers
def _int_entry(key: str, values: tuple[int, ...]) -> bytes:
    return _entry(key, _int64_feature(values))


@lru_cache(512)  # the tracks of a shard, whose segments are mixed
def _track_entries(tokens: tuple[int, ...], track: int, track_id: str) -> bytes:
    """Returns three neighbouring entries that all segments of a track share."""
    name = _entry("track_id", _field(1, _field(1, track_id.encode())))
    return _entry("tokens", _int64_feature(tokens)) + _entry("track", _int64_feature((track,))) + name


def _entry(key: str, feature: bytes) -> bytes:
    return _field(1, _field(1, key.encode()) + _field(2, feature))


def _int64_feature(values: tuple[int, ...]) -> bytes:
    packed = b"".join(_varint(value) for value in values)
    return _field(3, _field(1, packed) if packed else b"")


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    if 0 <= value <= 0x7F:
        return _ONE_BYTE_VARINTS[value]
    out = bytearray()
    while value > 0x7F:
        out.append(0x80 | (value & 0x7F))
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """Returns the number at a byte, and the byte after it."""
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
    """Yields number and payload of the length-delimited fields of a message; refuses other wire types."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        if tag & 7 != _LENGTH_DELIMITED:
            raise ValueError(f"wire type {tag & 7}")
        length, at = _read_varint(message, at)
        if at + length > len(message):
            raise ValueError("field beyond the end")
        yield tag >> 3, message[at : at + length]
        at += length


def _first_field(message: memoryview) -> memoryview:
    """Returns the payload of the first field of a message, empty if there is none."""
    return next(_fields(message), (0, memoryview(b"")))[1]


def _ints(feature: memoryview) -> tuple[int, ...]:
    packed, at, values = _first_field(_first_field(feature)), 0, []  # Feature > Int64List > packed values
    while at < len(packed):
        value, at = _read_varint(packed, at)
        values.append(value)
    return tuple(values)
