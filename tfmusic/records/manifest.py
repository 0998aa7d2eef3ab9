"""The manifest of a records folder: contract, splits, shards with checksums, statistics, skipped tracks."""

import csv
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from tfmusic.core.contract import Contract
from tfmusic.core.files import digest_of, file_sha256, read_json_file
from tfmusic.errors import RecordsError
from tfmusic.records.format import FORMAT_VERSION

MANIFEST_NAME = "manifest.json"
TRACKS_NAME = "tracks.csv"
_PLAIN_FILE = re.compile(r"[^/\\\0]{1,255}")

TOKENS_NAME = "tokens.jsonl"  # a JSON list of metadata tokens a track, in the order of tracks.csv


@dataclass(frozen=True)
class Shard:
    """One file of a split: name, segments in it, size and sha256."""

    file: str
    segments: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Statistics:
    """Count of frames, and sums over them per bin, of stored cells; every frame of a track counts once."""

    frames: int
    sum: tuple[float, ...]
    sum_of_squares: tuple[float, ...]

    @classmethod
    def merge(cls, parts: Sequence["Statistics"]) -> Self:
        """Returns the statistics of all parts together, summed in their order."""
        total = [sum(column) for column in zip(*(part.sum for part in parts), strict=True)]
        squares = [sum(column) for column in zip(*(part.sum_of_squares for part in parts), strict=True)]
        return cls(sum(part.frames for part in parts), tuple(total), tuple(squares))

    def mean_and_variance(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and variance of every bin, float64 [n_bins], in stored units."""
        mean = np.array(self.sum) / self.frames
        return mean, np.maximum(np.array(self.sum_of_squares) / self.frames - mean**2, 0.0)


class RunningStatistics:
    """Statistics of tracks that come one after the other; sums of uint8 are exact integers.

    Args:
        n_bins: height of a spectrogram.
        dtype: that of the stored cells.
    """

    def __init__(self, n_bins: int, dtype: str) -> None:
        self._is_exact, self._frames = np.dtype(dtype) == np.uint8, 0
        self._sums = np.zeros((2, n_bins), np.int64 if self._is_exact else np.float64)

    def add(self, cells: np.ndarray) -> None:
        """Adds the stored cells [n_frames, n_bins] of a track."""
        self._frames += len(cells)
        if self._is_exact:
            self._sums += _exact_sums(cells)
        else:
            self._sums += cells.sum(0, dtype=np.float64), np.square(cells, dtype=np.float64).sum(0)

    def so_far(self) -> Statistics:
        """Returns the statistics of all tracks that were added."""
        total, squares = self._sums.tolist()
        return Statistics(self._frames, tuple(total), tuple(squares))


@dataclass(frozen=True)
class Split:
    """The shards of one split with what they hold."""

    shards: tuple[Shard, ...]
    tracks: int
    segments: int
    statistics: Statistics


@dataclass(frozen=True)
class Manifest:
    """What a records folder promises; read from and written to `manifest.json`, which is written last.

    `contract.frames` and `contract.hop_frames` are those of the stored segments.
    """

    folder: Path
    name: str
    contract: Contract
    splits: Mapping[str, Split]
    skipped: tuple[Mapping[str, str], ...]
    clipped_cells: int
    total_cells: int
    source_bytes: int
    tracks_sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def segment_frames(self) -> int:
        """Length of a stored segment, frames."""
        return self.contract.frames

    @property
    def has_official_splits(self) -> bool:
        """Whether the splits are train, validation and test of the data itself, not folds."""
        return self.settings.get("splits") == "official"

    @property
    def has_whole_tracks(self) -> bool:
        """Whether every frame of a track is stored; else segments were chosen."""
        return "segments" not in self.settings

    def track_ids(self, splits: Sequence[str]) -> list[str]:
        """Returns the names of the stored tracks of some splits, in the order of tracks.csv."""
        return [row["track_id"] for row in self._rows(splits)]

    def groups(self, splits: Sequence[str]) -> dict[str, frozenset[str]]:
        """Returns what the tracks of some splits are grouped by, their artists and album, by name of the track."""
        return {row["track_id"]: frozenset(_groups_of(row)) for row in self._rows(splits)}

    def track_rows(self, splits: Sequence[str]) -> list[int]:
        """Returns the rows of the stored tracks of some splits."""
        return [int(row["row"]) for row in self._rows(splits)]

    @property
    def n_rows(self) -> int:
        """Number of rows of tracks.csv, skipped tracks included."""
        with (self.folder / TRACKS_NAME).open(encoding="utf-8", newline="") as file:
            return sum(1 for _ in csv.DictReader(file))

    def count_labels(self, splits: Sequence[str]) -> Counter[str]:
        """Returns how many tracks of some splits have each label."""
        return Counter(label for row in self._rows(splits) for label in json.loads(row["labels"]))

    @property
    def backbone_tracks(self) -> frozenset[str]:
        """Names of the tracks that trained what made the embeddings, where these records hold some and it is known."""
        return frozenset(self.settings.get("trunk_tracks", ()))

    def read_tokens(self) -> list[tuple[str, ...]]:
        """Returns the metadata tokens of every track by its row; none where the records have no metadata.

        Raises:
            RecordsError: the file is missing or is not the one that the manifest lists.
        """
        path = self.folder / TOKENS_NAME
        if "tokens_sha256" not in self.settings:
            return []
        _check_file(path, self.settings["tokens_sha256"])
        with path.open(encoding="utf-8") as file:
            return [tuple(json.loads(line)) for line in file]

    def _rows(self, splits: Sequence[str]) -> list[dict[str, str]]:
        with (self.folder / TRACKS_NAME).open(encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if row["split"] in splits and not row["skipped"]]

    def shard_paths(self, split: str) -> list[Path]:
        """Returns the files of a split; raises RecordsError for a split that does not exist."""
        return [self.folder / shard.file for shard in self.split(split).shards]

    def split(self, name: str) -> Split:
        """Returns a split by name; raises RecordsError where there is none of that name."""
        if name not in self.splits:
            raise RecordsError(f"{self.folder}: no split {name!r}. Found: {', '.join(self.splits)}")
        return self.splits[name]

    def write(self) -> None:
        """Writes manifest.json with a checksum of its own text."""
        body = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "folder"}
        body |= {"contract": self.contract.to_dict(), "splits": {k: asdict(v) for k, v in self.splits.items()}}
        body["sha256"] = digest_of(body)
        text = json.dumps(body, ensure_ascii=False, indent=1) + "\n"
        (self.folder / MANIFEST_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Returns the manifest of a records folder, or of the only one that a folder holds.

        Raises:
            RecordsError: no manifest, a damaged one, or one of another format version.
        """
        path = _find(folder)
        try:
            body = read_json_file(path)
            version, digest = body.get("format_version"), body.pop("sha256", None)
        except (OSError, ValueError, AttributeError) as error:
            raise RecordsError(f"{path}: must be a manifest of tfmusic records: {error}") from error
        if version != FORMAT_VERSION:
            raise RecordsError(
                f"{path}: this tfmusic reads record format {FORMAT_VERSION}. Received: {version!r};"
                " build the records again or use the tfmusic that wrote them"
            )
        if digest != digest_of(body):
            raise RecordsError(f"{path}: damaged: its checksum does not match; build the records again")
        try:
            return cls._from_body(path.parent, body)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordsError(f"{path}: must be a manifest of tfmusic records. Received: {error!r}") from error

    @classmethod
    def _from_body(cls, folder: Path, body: dict[str, Any]) -> Self:
        contract = Contract.from_dict(body["contract"])
        splits = {name: _split(entry) for name, entry in body["splits"].items()}
        return cls(folder, **(body | {"contract": contract, "splits": splits, "skipped": tuple(body["skipped"])}))

    def verify(self, splits: Sequence[str]) -> None:
        """Compares size and sha256 of tracks.csv and of every shard of some splits with the manifest.

        Raises:
            RecordsError: a file is missing or differs; the message names it.
        """
        _check_file(self.folder / TRACKS_NAME, self.tracks_sha256)
        if "tokens_sha256" in self.settings:
            _check_file(self.folder / TOKENS_NAME, self.settings["tokens_sha256"])
        for split in splits:
            for shard in self.split(split).shards:
                self.check_shard(shard)

    def check_shard(self, shard: Shard) -> None:
        """Compares size and sha256 of one shard with the manifest; raises as `verify`."""
        path = self.folder / shard.file
        if not path.is_file() or path.stat().st_size != shard.bytes:
            size = f"{path.stat().st_size} bytes" if path.is_file() else "no file"
            raise RecordsError(
                f"{path}: must be {shard.bytes} bytes by the manifest. Received: {size}; build the records again"
            )
        _check_file(path, shard.sha256)


def _exact_sums(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns sums and sums of squares over the frames of codes [n_frames, n_bins], int64 [n_bins].

    Sums of 256 squares of bytes are below 2^24, so float32 holds them exactly, and its matrix product is the fastest
    way to a sum over rows.
    """
    total, squares = np.zeros((2, codes.shape[1]), np.int64)
    ones = np.ones(256, np.float32)
    for first in range(0, len(codes), len(ones)):
        values = codes[first : first + len(ones)].astype(np.float32)
        total += (ones[: len(values)] @ values).astype(np.int64)
        values *= values
        squares += (ones[: len(values)] @ values).astype(np.int64)
    return total, squares


def _groups_of(row: Mapping[str, str]) -> list[str]:
    artists = [f"artist {name}" for name in json.loads(row["artists"] or "[]")]
    return artists + ([f"album {row['album']}"] if row["album"] else [])


def _check_file(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise RecordsError(f"{path}: no such file, but the manifest lists it; build the records again")
    if file_sha256(path) != sha256:
        raise RecordsError(f"{path}: damaged: its sha256 is not the manifest's; build the records again")


def _split(entry: dict[str, Any]) -> Split:
    numbers = entry["statistics"]
    statistics = Statistics(numbers["frames"], tuple(numbers["sum"]), tuple(numbers["sum_of_squares"]))
    counts = [statistics.frames, entry["tracks"], entry["segments"]]
    if any(type(number) not in (int, float) for number in (*counts, *statistics.sum, *statistics.sum_of_squares)):
        raise ValueError("counts and sums must be numbers")
    shards = tuple(Shard(**shard) for shard in entry["shards"])
    for shard in shards:
        if not _PLAIN_FILE.fullmatch(shard.file) or shard.file in (".", ".."):
            raise ValueError(f"a shard must be a file of the folder, not {shard.file!r}")
        if type(shard.segments) is not int or type(shard.bytes) is not int:
            raise ValueError(f"{shard.file}: segments and bytes must be whole numbers")
    return Split(shards, entry["tracks"], entry["segments"], statistics)


def _find(folder: Path) -> Path:
    if (folder / MANIFEST_NAME).is_file():
        return folder / MANIFEST_NAME
    below = [*folder.glob(f"*/{MANIFEST_NAME}"), *folder.glob(f"*/*/{MANIFEST_NAME}")]
    # A build that is about to end has its manifest in a hidden folder.
    found = sorted(path for path in below if not path.parent.name.startswith("."))
    if len(found) == 1:
        return found[0]
    what = (
        "no records here; tfmusic build-records writes them"
        if not found
        else "several: " + ", ".join(str(path.parent) for path in found)
    )
    raise RecordsError(f"{folder}: must be a records folder, or hold exactly one. Received: {what}")
