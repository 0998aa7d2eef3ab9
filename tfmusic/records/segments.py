"""Segments by their number, straight from memory-mapped shards; in numpy only.

An index beside the shards says where the codes of every segment lie. It follows from the headers of the segments: the
first process that needs it makes it, and makes it again where it does not fit the shards.
"""

import hashlib
import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, overload

import numpy as np

from tfmusic.core.files import digest_of, replacing
from tfmusic.errors import RecordsError
from tfmusic.records.format import SegmentHeader, encode_prefix
from tfmusic.records.manifest import Manifest, Shard
from tfmusic.records.reader import parse_segment, read_records
from tfmusic.records.writer import CRC_BYTES, HEADER_BYTES, checksum_of

_DIGEST_BYTES, _NUMBER = 32, np.dtype("<i8")
_MAPPED_BYTES = 1 << 30  # read before pages are given back, which the system counts as memory of the process
_COLUMNS = 3  # of the index beside the labels: place of the codes, row of the track, number of labels


@dataclass(frozen=True)
class Index:
    """What the segments of some shards are, in file order.

    Attributes:
        codes_at: byte of its shard at which the codes of a segment begin, int64 [n_segments].
        track: row of its track in tracks.csv, int64 [n_segments].
        label_counts: how many labels it has, int64 [n_segments].
        labels: ids of the labels, one segment after the other, int64 [sum of label_counts].
    """

    codes_at: np.ndarray
    track: np.ndarray
    label_counts: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, manifest: Manifest, split: str) -> Self:
        """Returns the index of a split: that beside its shards, or one that is made and left there.

        Raises:
            RecordsError: there is no such split, or a shard is missing or damaged.
        """
        path = manifest.folder / f"{manifest.name}-{split}.index"
        shards = manifest.split(split).shards
        index = cls._read(path, shards, manifest)
        if index is None:
            index = cls._scan(shards, manifest)
            body = index._bytes()
            with suppress(OSError), replacing(path) as tmp:  # a folder may be read-only: then each process makes it
                tmp.write_bytes(_digest(shards, body) + body)
        return index

    @classmethod
    def _read(cls, path: Path, shards: Sequence[Shard], manifest: Manifest) -> Self | None:
        """Returns what a file says, if it was made of these shards and no bit of it has changed."""
        n_segments = sum(shard.segments for shard in shards)
        most = _DIGEST_BYTES + _NUMBER.itemsize * n_segments * (_COLUMNS + len(manifest.contract.labels))
        try:
            if not path.is_file() or path.stat().st_size > most:
                return None
            data = path.read_bytes()
        except OSError:
            return None
        body = data[_DIGEST_BYTES:]
        if data[:_DIGEST_BYTES] != _digest(shards, body):
            return None
        numbers = np.frombuffer(body, _NUMBER)
        columns, labels = numbers[: _COLUMNS * n_segments], numbers[_COLUMNS * n_segments :]
        codes_at, track, label_counts = columns.reshape(_COLUMNS, n_segments)
        index = cls(codes_at, track, label_counts, labels)
        return index if index._fits(shards, manifest) else None

    @classmethod
    def _scan(cls, shards: Sequence[Shard], manifest: Manifest) -> Self:
        found = [pair for shard in shards for pair in _places(manifest.folder / shard.file, manifest)]
        index = cls(
            np.array([codes_at for codes_at, _ in found], _NUMBER),
            np.array([header.track for _, header in found], _NUMBER),
            np.array([len(header.label) for _, header in found], _NUMBER),
            np.array([label for _, header in found for label in header.label], _NUMBER),
        )
        if not index._fits(shards, manifest):
            raise RecordsError(f"{manifest.folder}: its shards do not fit its manifest; build the records again")
        return index

    def _fits(self, shards: Sequence[Shard], manifest: Manifest) -> bool:
        """Returns whether every place is inside its shard, and every label is one; the file may be a forged one."""
        counts = [shard.segments for shard in shards]
        if len(self.codes_at) != sum(counts) or self.label_counts.min(initial=0) < 0:
            return False
        last = np.repeat([shard.bytes for shard in shards], counts) - manifest.segment_bytes - CRC_BYTES
        is_inside = (self.codes_at >= 0) & (self.codes_at <= last)
        is_label = (self.labels >= 0) & (self.labels < len(manifest.contract.labels))
        return bool(is_inside.all() and is_label.all() and self.label_counts.sum() == len(self.labels))

    def _bytes(self) -> bytes:
        columns = (self.codes_at, self.track, self.label_counts, self.labels)
        return b"".join(column.astype(_NUMBER, copy=False).tobytes() for column in columns)


def _places(path: Path, manifest: Manifest) -> Iterator[tuple[int, SegmentHeader]]:
    """Yields where the codes of every segment of a shard begin, and its header; every checksum is compared."""
    begin, n_bytes = HEADER_BYTES, manifest.segment_bytes
    for record in read_records(path):
        header, _ = parse_segment(record, path, manifest)
        if record[:-n_bytes] != encode_prefix(header, n_bytes):
            raise RecordsError(f"{path}: codes must come last in a record, as in format 1; build the records again")
        yield begin + len(record) - n_bytes, header
        begin += len(record) + CRC_BYTES + HEADER_BYTES


def _digest(shards: Sequence[Shard], body: bytes) -> bytes:
    made_of = digest_of({"shards": [asdict(shard) for shard in shards]})
    return hashlib.sha256(made_of.encode() + body).digest()


class Segments(Sequence[tuple[np.ndarray, np.ndarray]]):
    """The segments of some splits by number, in file order: codes [segment_frames, n_bins] and target [n_labels].

    A target is float32, 1 for every label of the track. Shards are mapped into memory: only the pages of what is asked
    for are read. The checksum of a segment is compared when it is read for the first time. Copies may be sent to other
    processes, as the loaders of PyTorch and Grain do. A shard must not be cut while it is mapped, or the system ends
    the process; one that is replaced is read as it was.
    """

    def __init__(self, manifest: Manifest, splits: Sequence[str]) -> None:
        """Raises RecordsError where there is no such split."""
        self.manifest, self._splits = manifest, tuple(splits)
        self._shards = [shard for split in splits for shard in manifest.split(split).shards]
        self._n_segments = sum(shard.segments for shard in self._shards)
        self._maps: dict[int, np.ndarray] = {}  # bytes of a shard by its number, once it was read
        self._mapped: list[mmap.mmap] = []
        self._n_bytes_read = 0  # since pages were given back
        self._is_checked = np.zeros(self._n_segments, bool)
        self._targets: dict[float, np.ndarray] = {}  # of the tracks, by the share of the first label

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies map the shards by themselves."""
        return Segments, (self.manifest, self._splits)

    def __len__(self) -> int:
        """Returns the number of segments."""
        return self._n_segments

    @overload
    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[np.ndarray, np.ndarray]]: ...

    def __getitem__(self, index: int | slice) -> Any:
        """Returns codes and target of a segment; raises IndexError beyond the end, RecordsError where it is damaged."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        numbers = np.array([range(len(self))[index]])
        return self.codes(numbers)[0], self.targets(numbers)[0]

    @cached_property
    def table(self) -> Index:
        """What the segments are and where they lie."""
        parts = [Index.of(self.manifest, split) for split in self._splits]
        names = ("codes_at", "track", "label_counts", "labels")
        empty = np.zeros(0, _NUMBER)
        return Index(*(np.concatenate([empty, *(getattr(part, name) for part in parts)]) for name in names))

    @cached_property
    def _shard_of(self) -> np.ndarray:
        return np.repeat(np.arange(len(self._shards)), [shard.segments for shard in self._shards])

    @cached_property
    def _tracks_and_labels(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """The number of the track of every segment, from 0, and the ids of the labels of every track."""
        table = self.table
        _, first, track = np.unique(table.track, return_index=True, return_inverse=True)
        ends = np.cumsum(table.label_counts)
        begins, ends = (ends - table.label_counts)[first].tolist(), ends[first].tolist()
        return track, [table.labels[begin:end] for begin, end in zip(begins, ends, strict=True)]

    @property
    def track(self) -> np.ndarray:
        """The number of the track of every segment, from 0 in the order of tracks.csv, int64 [n_segments]."""
        return self._tracks_and_labels[0]

    def track_targets(self, top_share: float = 1.0) -> np.ndarray:
        """Returns the targets of every track, float32 [n_tracks, n_labels].

        Args:
            top_share: where a track has one target, what its first label has of it; its other labels share the rest.
        """
        labels = self._tracks_and_labels[1]
        out = np.zeros((len(labels), len(self.manifest.contract.labels)), np.float32)
        for row, mine in zip(out, labels, strict=True):
            if self.manifest.contract.kind != "single":
                row[mine] = 1.0
            elif len(mine):
                row[mine[1:]] = (1.0 - top_share) / max(len(mine) - 1, 1)
                row[mine[0]] = top_share if len(mine) > 1 else 1.0
        return out

    def codes(self, numbers: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Returns the codes of some segments [n, segment_frames, n_bins], or of rows of them [n, n_rows, n_bins].

        Args:
            numbers: of the segments [n].
            rows: frames of each segment in the order in which they are wanted, int [n, n_rows].

        Raises:
            RecordsError: a shard is missing or damaged.
        """
        contract = self.manifest.contract
        row_bytes = contract.n_bins * np.dtype(contract.dtype).itemsize
        n_rows = self.manifest.segment_frames if rows is None else rows.shape[1]
        for number in numbers[~self._is_checked[numbers]].tolist():
            self._check(number)
        maps, size = [self._maps[shard] for shard in self._shard_of[numbers].tolist()], n_rows * row_bytes
        out = _aligned((len(numbers), size))
        by_row = out.reshape(len(numbers), n_rows, row_bytes)
        first = 0 if rows is None else rows.min(1)
        begins = (self.table.codes_at[numbers] + first * row_bytes).tolist()
        if rows is None or (np.diff(rows) == 1).all():  # stretches
            for i, begin in enumerate(begins):
                out[i] = maps[i][begin : begin + size]
        else:
            ends, from_first = (begins + (rows.max(1) + 1 - first) * row_bytes).tolist(), rows - rows.min(1)[:, None]
            for i, (begin, end) in enumerate(zip(begins, ends, strict=True)):
                maps[i][begin:end].reshape(-1, row_bytes).take(from_first[i], 0, by_row[i], "clip")
        self._n_bytes_read += out.nbytes
        if self._n_bytes_read > _MAPPED_BYTES:
            self._n_bytes_read = 0
            for mapped in self._mapped:
                mapped.madvise(mmap.MADV_DONTNEED)  # of this process alone: the system keeps what it has in memory
        return by_row.view(contract.dtype)

    def targets(self, numbers: np.ndarray, top_share: float = 1.0) -> np.ndarray:
        """Returns the targets of some segments, float32 [n, n_labels]; `top_share` as in `track_targets`."""
        if top_share not in self._targets:
            self._targets[top_share] = self.track_targets(top_share)
        out: np.ndarray = self._targets[top_share][self.track[numbers]]
        return out

    def header(self, number: int) -> SegmentHeader:
        """Returns the header of a segment; raises RecordsError where it is damaged."""
        self._check(number)
        shard, (begin, end) = int(self._shard_of[number]), self._record(number)
        record = self._map(shard)[begin:end].tobytes()
        return parse_segment(record, self._path(shard), self.manifest)[0]

    def prepare(self) -> None:
        """Reads the index, or makes it, before threads ask for segments.

        Raises:
            RecordsError: a shard is missing, damaged, or has not the size that the manifest says.
        """
        for shard in self._shards:
            self.manifest.check_size(shard)
        self._tracks_and_labels  # noqa: B018

    def _check(self, number: int) -> None:
        """Compares the checksum of a segment; raises RecordsError where it is damaged."""
        shard, (begin, end) = int(self._shard_of[number]), self._record(number)
        data = self._map(shard)
        if data[end : end + CRC_BYTES].tobytes() != checksum_of(data[begin:end]):
            path = self._path(shard)
            raise RecordsError(f"{path}: damaged between bytes {begin} and {end}; build the records again")
        self._is_checked[number] = True

    def _record(self, number: int) -> tuple[int, int]:
        """Returns the bytes of its shard from which and to which the payload of a segment's record goes."""
        n_bytes, codes_at = self.manifest.segment_bytes, self.table.codes_at
        is_first = number == 0 or self._shard_of[number - 1] != self._shard_of[number]
        before = 0 if is_first else int(codes_at[number - 1]) + n_bytes + CRC_BYTES
        return before + HEADER_BYTES, int(codes_at[number]) + n_bytes

    def _path(self, shard: int) -> Path:
        return self.manifest.folder / self._shards[shard].file

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            self.manifest.check_size(self._shards[shard])
            try:
                with self._path(shard).open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:  # ValueError: an empty file
                raise RecordsError(f"{self._path(shard)}: cannot be read: {error}") from error
            self._mapped.append(mapped)
            self._maps[shard] = np.frombuffer(mapped, np.uint8)
        return self._maps[shard]


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Returns an empty array of bytes that begins at a multiple of 64 bytes: TensorFlow takes it without a copy."""
    n_bytes = math.prod(shape)
    data = np.empty(n_bytes + 64, np.uint8)
    begin = -data.__array_interface__["data"][0] % 64
    return data[begin : begin + n_bytes].reshape(shape)
