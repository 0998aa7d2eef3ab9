"""The manifest of a records folder (contract, splits, shards with checksums, statistics) and the tables it lists."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tfmusic.core.contract import Contract
from tfmusic.core.files import digest_of, file_sha256, read_json_file
from tfmusic.errors import RecordsError
from tfmusic.records.format import FORMAT_VERSION

if TYPE_CHECKING:
    import pandas as pd

MANIFEST_NAME = "manifest.json"
TRACKS_NAME = "tracks.csv"
TOKENS_NAME = "tokens.jsonl"  # a JSON list of metadata tokens for each track, in the order of tracks.csv

_FILE_NAME = re.compile(r"[^/\\\0]{1,255}")


@dataclass(frozen=True)
class Shard:
    """One file of a split: its name, number of segments, size and sha256."""

    file: str
    segments: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Statistics:
    """Number of frames, and sums over them of the codes of every bin; every frame of a track counts once."""

    frames: int
    sum: tuple[float, ...]
    sum_of_squares: tuple[float, ...]

    @classmethod
    def merge(cls, parts: Sequence["Statistics"]) -> Self:
        """Returns the statistics of all parts together, added in their order."""
        total = [sum(column) for column in zip(*(part.sum for part in parts), strict=True)]
        squares = [sum(column) for column in zip(*(part.sum_of_squares for part in parts), strict=True)]
        return cls(sum(part.frames for part in parts), tuple(total), tuple(squares))

    def mean_and_variance(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and variance of the codes of every bin, float64 [n_bins]."""
        mean = np.array(self.sum) / self.frames
        return mean, np.maximum(np.array(self.sum_of_squares) / self.frames - mean**2, 0.0)


class RunningStatistics:
    """Adds up the statistics of one track after the other; sums of uint8 are exact integers.

    Args:
        n_bins: number of bins.
        dtype: storage type of the codes.
    """

    def __init__(self, n_bins: int, dtype: str) -> None:
        self._is_exact, self._frames = np.dtype(dtype) == np.uint8, 0
        self._sums = np.zeros((2, n_bins), np.int64 if self._is_exact else np.float64)

    def add(self, codes: np.ndarray) -> None:
        """Adds the codes [n_frames, n_bins] of a track."""
        self._frames += len(codes)
        if self._is_exact:
            self._sums += _exact_sums(codes)
        else:
            self._sums += codes.sum(0, dtype=np.float64), np.square(codes, dtype=np.float64).sum(0)

    def result(self) -> Statistics:
        """Returns the statistics of all tracks added."""
        total, squares = self._sums.tolist()
        return Statistics(self._frames, tuple(total), tuple(squares))


@dataclass(frozen=True)
class Split:
    """The shards of one split, and the sums of their contents."""

    shards: tuple[Shard, ...]
    tracks: int
    segments: int
    statistics: Statistics


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`, which a build writes last.

    `contract.frames` and `contract.hop_frames` are length and hop of the stored segments.
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
    def segment_bytes(self) -> int:
        """Size of the codes of a stored segment."""
        return self.segment_frames * self.contract.n_bins * np.dtype(self.contract.dtype).itemsize

    @property
    def has_official_splits(self) -> bool:
        """Whether the splits are train, validation and test of the dataset, not folds."""
        return self.settings.get("splits") == "official"

    @property
    def has_whole_tracks(self) -> bool:
        """Whether every frame of a track is stored, not only selected segments."""
        return "segments" not in self.settings

    def track_ids(self, splits: Sequence[str]) -> list[str]:
        """Returns the ids of the stored tracks of some splits, in the order of tracks.csv."""
        return self._stored(splits)["track_id"].tolist()

    def groups(self, splits: Sequence[str]) -> dict[str, frozenset[str]]:
        """Returns the groups (artists and album) of the tracks of some splits, by track id."""
        table = self._stored(splits)
        return {
            track_id: frozenset([*(f"artist {name}" for name in artists), *([f"album {album}"] if album else [])])
            for track_id, artists, album in zip(table["track_id"], table["artists"], table["album"], strict=True)
        }

    def duplicates_of(self, track_ids: Iterable[str]) -> frozenset[str]:
        """Returns the ids of the tracks that are the same music as one of these under another name."""
        wanted = set(track_ids)
        groups = [set(group) for group in self.settings.get("duplicates", ())]
        return frozenset(other for group in groups for own in group & wanted for other in group - {own})

    def track_rows(self, splits: Sequence[str]) -> list[int]:
        """Returns the rows of the stored tracks of some splits."""
        return self._stored(splits)["row"].tolist()

    @property
    def n_rows(self) -> int:
        """Number of rows of tracks.csv, skipped tracks included."""
        return len(self.read_tracks())

    def count_labels(self, splits: Sequence[str]) -> Counter[str]:
        """Returns the number of tracks of some splits by label."""
        return Counter(label for labels in self._stored(splits)["labels"] for label in labels)

    @property
    def backbone_tracks(self) -> frozenset[str]:
        """Ids of the tracks that trained the network of the embeddings in these records, as far as known."""
        return frozenset(self.settings.get("trunk_tracks", ()))  # the name of format 1

    def read_tokens(self) -> list[tuple[str, ...]]:
        """Returns the metadata tokens of every track by its row; an empty list for records without metadata.

        Raises:
            RecordsError: the file is missing or its checksum differs.
        """
        path = self.folder / TOKENS_NAME
        if "tokens_sha256" not in self.settings:
            return []
        _check_sha256(path, self.settings["tokens_sha256"])
        with path.open(encoding="utf-8") as file:
            return [tuple(json.loads(line)) for line in file]

    def read_tracks(self) -> "pd.DataFrame":
        """Returns tracks.csv, a row for each track: labels and artists as lists, n_frames as numbers."""
        import pandas as pd

        table = pd.read_csv(self.folder / TRACKS_NAME, dtype=str, keep_default_na=False)
        lists = {name: [json.loads(text or "[]") for text in table[name]] for name in ("labels", "artists")}
        return table.assign(**lists).astype({"row": int, "n_frames": int})

    def _stored(self, splits: Sequence[str]) -> "pd.DataFrame":
        table = self.read_tracks()
        return table[table["split"].isin(list(splits)) & (table["skipped"] == "")]

    def shard_paths(self, split: str) -> list[Path]:
        """Returns the files of a split; raises RecordsError as `split`."""
        return [self.folder / shard.file for shard in self.split(split).shards]

    def split(self, name: str) -> Split:
        """Returns a split by name; raises RecordsError if it does not exist."""
        if name not in self.splits:
            raise RecordsError(f"{self.folder}: no split {name!r}. Found: {', '.join(self.splits)}")
        return self.splits[name]

    def write(self) -> None:
        """Writes manifest.json with a checksum of its own contents."""
        body = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "folder"}
        body |= {"contract": self.contract.to_dict(), "splits": {k: asdict(v) for k, v in self.splits.items()}}
        body["sha256"] = digest_of(body)
        text = json.dumps(body, ensure_ascii=False, indent=1) + "\n"
        (self.folder / MANIFEST_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Returns the manifest of a records folder, or of the only one inside a folder.

        Raises:
            RecordsError: the manifest is missing, damaged, or of another format version.
        """
        path = _find(folder)
        try:
            body = read_json_file(path)
            version, digest = body.get("format_version"), body.pop("sha256", None)
        except (OSError, ValueError, AttributeError) as error:
            raise RecordsError(f"{path}: must be a manifest of tfmusic records. Received: {error}") from error
        if version != FORMAT_VERSION:
            raise RecordsError(
                f"{path}: this tfmusic reads record format {FORMAT_VERSION}. Received: {version!r};"
                " build the records again or use the tfmusic that wrote them"
            )
        if digest != digest_of(body):
            raise RecordsError(f"{path}: damaged: its checksum does not match; build the records again")
        try:
            manifest = cls._from_body(path.parent, body)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordsError(f"{path}: must be a manifest of tfmusic records. Received: {error!r}") from error
        shards = (path.parent / shard.file for split in manifest.splits.values() for shard in split.shards)
        for file in (path.parent / TRACKS_NAME, path.parent / TOKENS_NAME, *shards):
            if file.exists() and not file.is_file():  # reading a pipe would wait for ever
                raise RecordsError(f"{file}: must be a file. Received: a folder, a pipe or a device")
        return manifest

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
        _check_sha256(self.folder / TRACKS_NAME, self.tracks_sha256)
        if "tokens_sha256" in self.settings:
            _check_sha256(self.folder / TOKENS_NAME, self.settings["tokens_sha256"])
        for split in splits:
            for shard in self.split(split).shards:
                self.check_shard(shard)

    def check_shard(self, shard: Shard) -> None:
        """Compares size and sha256 of one shard with the manifest; raises as `verify`."""
        self.check_size(shard)
        _check_sha256(self.folder / shard.file, shard.sha256)

    def check_size(self, shard: Shard) -> None:
        """Compares the size of one shard with the manifest; raises as `verify`."""
        path = self.folder / shard.file
        if not path.is_file() or path.stat().st_size != shard.bytes:
            size = f"{path.stat().st_size} bytes" if path.is_file() else "no file"
            raise RecordsError(
                f"{path}: must be {shard.bytes} bytes, as in the manifest. Received: {size}; build the records again"
            )


def _exact_sums(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns sums and sums of squares over the frames of codes [n_frames, n_bins], int64 [n_bins].

    The sum of 256 squares of bytes is below 2^24 and exact in float32, and its matrix product sums rows fastest.
    """
    total, squares = np.zeros((2, codes.shape[1]), np.int64)
    ones = np.ones(256, np.float32)
    for first in range(0, len(codes), len(ones)):
        values = codes[first : first + len(ones)].astype(np.float32)
        total += (ones[: len(values)] @ values).astype(np.int64)
        values *= values
        squares += (ones[: len(values)] @ values).astype(np.int64)
    return total, squares


def _check_sha256(path: Path, sha256: str) -> None:
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
        if not _FILE_NAME.fullmatch(shard.file) or shard.file in (".", ".."):
            raise ValueError(f"the file of a shard must be a plain name, not {shard.file!r}")
        if type(shard.segments) is not int or type(shard.bytes) is not int:
            raise ValueError(f"{shard.file}: segments and bytes must be whole numbers")
    return Split(shards, entry["tracks"], entry["segments"], statistics)


def _find(folder: Path) -> Path:
    if (folder / MANIFEST_NAME).is_file():
        return folder / MANIFEST_NAME
    below = [*folder.glob(f"*/{MANIFEST_NAME}"), *folder.glob(f"*/*/{MANIFEST_NAME}")]
    # A build that has not ended yet has its manifest in a hidden folder.
    manifests = sorted(path for path in below if not path.parent.name.startswith("."))
    if len(manifests) == 1:
        return manifests[0]
    received = "no records here; tfmusic build-records writes them"
    if manifests:
        received = "several: " + ", ".join(str(path.parent) for path in manifests)
    raise RecordsError(f"{folder}: must be a records folder, or contain exactly one. Received: {received}")
