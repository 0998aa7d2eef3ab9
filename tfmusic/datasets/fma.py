"""Free Music Archive: 30 s clips, or whole tracks, with a tree of 163 genres (Defferrard et al. 2017).

Layout of the folder:

    fma_metadata/tracks.csv     two header rows (part and name of a column), then a row a track; or tracks.csv itself
    fma_metadata/genres.csv     genre_id, parent, title
    fma_small/000/000002.mp3    or fma_medium, fma_large, fma_full; .npy or other audio in its place

The tracks of a subset are also found in the folder of a larger one (fma_small in fma_medium or fma_large).

Whole tracks (fma_full) have the metadata of fma_large.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tfmusic.console import console
from tfmusic.core.track import Dataset, Track, check_track_id, check_unique
from tfmusic.datasets.files import FeatureFiles, check_labels, read_cells, read_table, split_name
from tfmusic.datasets.options import Name, OfficialSection
from tfmusic.errors import DataError

# --- What the data set is -------------------------------------------------------------------------------------

SUBSETS = {  # each holds those before it
    "small": ("small",),
    "medium": ("small", "medium"),
    "large": ("small", "medium", "large"),
    "full": ("small", "medium", "large"),
}
_COLUMNS = {
    "split": ("set", "split"),
    "subset": ("set", "subset"),
    "top": ("track", "genre_top"),
    "all": ("track", "genres_all"),
    "title": ("track", "title"),
    "artist": ("artist", "id"),
    "artist_name": ("artist", "name"),
    "album": ("album", "id"),
    "album_name": ("album", "title"),
}
_MAY_LACK = {"title", "artist_name", "album_name"}


class Options(OfficialSection):
    """Free Music Archive."""

    loader: Literal["fma"]
    subset: Literal["small", "medium", "large", "full"] = "small"
    """Each holds the tracks of those before it; full has whole tracks."""
    genres: Literal["top", "top_first", "all"] = "top"
    """The top genre; the top genre with the others behind it, for a soft target; all genres as tags.

    top_first takes the first top-level genre of genres_all where the top genre is empty; top leaves such tracks out.
    """
    merge: dict[str, Annotated[list[Name], Field(min_length=1)]] = Field(default_factory=dict)
    """New names of classes, each with the genres that it stands for."""

    @property
    def label_kind(self) -> Literal["single", "multi"]:
        """Whether a track has one label, or several tags."""
        return "multi" if self.genres == "all" else "single"

    @property
    def n_labels(self) -> int:
        """Number of genres after merging."""
        tops = 8 if self.subset == "small" else 16
        return (tops if self.genres == "top" else 163) - sum(len(old) - 1 for old in self.merge.values())

    @model_validator(mode="after")
    def _one_class_a_genre(self) -> "Options":
        old = [genre for genres in self.merge.values() for genre in genres]
        repeated = sorted({genre for genre in old if old.count(genre) > 1})
        if repeated:
            raise ValueError(f"data.merge names {', '.join(repeated)} twice; every genre must be in one class")
        return self


# --- Loading ---------------------------------------------------------------------------------------------------


def load(folder: Path, options: Options, *, task: str) -> Dataset:
    """Returns the tracks of a subset with their official splits, in the order of tracks.csv.

    Raises:
        DataError: a file or column is missing, or a cell is not what the format says.
    """
    genres, subset = options.genres, options.subset
    metadata = folder / "fma_metadata" if (folder / "fma_metadata").is_dir() else folder
    tree = _Genres.read(metadata / "genres.csv", options.merge)
    rows = _read_tracks(metadata / "tracks.csv", SUBSETS[subset])
    larger = [folder / f"fma_{name}" for name, held in SUBSETS.items() if subset in held and name != "full"]
    here = folder / f"fma_{subset}"
    files = FeatureFiles.below(next((place for place in (here, *larger) if place.is_dir()), here))
    labels_of: Callable[[dict[str, str], str], tuple[str, ...]] = {
        "top": tree.top, "top_first": tree.top_first, "all": tree.all
    }[genres]  # fmt: skip
    with_labels = [(row, labels_of(row, f"{metadata / 'tracks.csv'}: track {row['id']}")) for row in rows]
    labelled = [(row, names) for row, names in with_labels if names]
    if len(labelled) < len(rows):
        console.warn(f"{len(rows) - len(labelled)} of {len(rows)} tracks have no {_what(genres)}: left out")
    if not labelled:
        raise DataError(f"{metadata / 'tracks.csv'}: must have tracks of the subset {subset}. Received: none")
    tracks = tuple(_track(row, names, files, str(metadata / "tracks.csv")) for row, names in labelled)
    check_unique([track.track_id for track in tracks], str(metadata / "tracks.csv"))
    labels = tuple(sorted({name for track in tracks for name in track.labels}))
    return Dataset(task, "multi" if genres == "all" else "single", labels, tracks)


# --- Parts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Genres:
    """Titles and parents of genres by their ids, and the new names of those that are merged."""

    titles: Mapping[int, str]
    parents: Mapping[int, int]
    renamed: Mapping[str, str]

    @classmethod
    def read(cls, path: Path, merge: Mapping[str, Sequence[str]]) -> "_Genres":
        rows = read_table(path, ("genre_id", "parent", "title"))
        ids = [_number(row["genre_id"], f"{path}: genre_id") for row in rows]
        titles: dict[int, str] = {}
        for i, row in zip(ids, rows, strict=True):
            title = check_labels([row["title"]], f"{path}: genre {i}")[0]
            titles[i] = f"{title} ({i})" if title in titles.values() else title
        parents = {i: _number(row["parent"], f"{path}: parent") for i, row in zip(ids, rows, strict=True)}
        renamed = {old: new for new, genres in merge.items() for old in genres}
        unknown = [name for name in renamed if name not in titles.values()]
        if unknown:
            raise DataError(f"data.merge must name genres of {path}. Received: {', '.join(unknown)}")
        return cls(titles, parents, renamed)

    def top(self, row: Mapping[str, str], origin: str) -> tuple[str, ...]:
        """Returns the top genre alone, or nothing where a track has none."""
        name = row["top"]
        if name and name not in self.titles.values():
            raise DataError(f"{origin}: genre_top must be a genre of genres.csv. Received: {name!r}")
        return self._merged([name]) if name else ()

    def all(self, row: Mapping[str, str], origin: str) -> tuple[str, ...]:
        """Returns all genres with those they belong to, up to the top; sorted."""
        genres: set[int] = set()
        for genre in _ids(row["all"], origin):
            while genre and genre not in genres:
                if genre not in self.titles:
                    raise DataError(f"{origin}: genres_all must be ids of genres.csv. Received: {genre}")
                genres.add(genre)
                genre = self.parents[genre]
        return tuple(sorted(self._merged(sorted(self.titles[genre] for genre in genres))))

    def top_first(self, row: Mapping[str, str], origin: str) -> tuple[str, ...]:
        """Returns the top genre, or the first of genres_all that has no parent, and then the others."""
        first = next((self.titles[genre] for genre in _ids(row["all"], origin) if self.parents.get(genre) == 0), "")
        top = self.top({"top": row["top"] or first}, origin)
        return tuple(dict.fromkeys((*top, *self.all(row, origin)))) if top else ()

    def _merged(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.renamed.get(name, name) for name in names))


def _what(genres: str) -> str:
    return "genre" if genres == "all" else "top genre"


def _read_tracks(path: Path, subsets: Sequence[str]) -> list[dict[str, str]]:
    """Returns the rows of the subsets with the columns of `_COLUMNS`, `id` the six digits of a track."""
    lines = read_cells(path)
    head = list(islice(lines, 3))
    if len(head) < 3 or len(head[0]) != len(head[1]) or head[2][0].strip() != "track_id":
        raise DataError(f"{path}: must begin with two header rows and a row that begins with track_id")
    place = {(part.strip(), name.strip()): i for i, (part, name) in enumerate(zip(head[0], head[1], strict=True))}
    lacking = [".".join(key) for name, key in _COLUMNS.items() if key not in place and name not in _MAY_LACK]
    if lacking:
        raise DataError(f"{path}: must have the columns {', '.join(lacking)}")
    columns = {name: place[key] for name, key in _COLUMNS.items() if key in place}
    rows = []
    for number, cells in enumerate(lines, 4):
        if len(cells) != len(head[0]):
            raise DataError(f"{path}: record {number} must have {len(head[0])} cells. Received: {len(cells)}")
        row = {name: cells[i].strip() for name, i in columns.items()}
        if row["subset"] in subsets:
            rows.append({"id": f"{_number(cells[0], f'{path}: track_id'):06d}"} | row)
    return rows


def _track(row: Mapping[str, str], labels: tuple[str, ...], files: FeatureFiles, origin: str) -> Track:
    track_id = check_track_id(row["id"], origin)
    metadata: dict[str, Any] = {"artists": [row["artist_name"]]} if row.get("artist_name") else {}
    metadata |= {key: row[name] for key, name in (("title", "title"), ("album", "album_name")) if row.get(name)}
    return Track(
        track_id,
        files.find(f"{track_id[:3]}/{track_id}", ".mp3"),
        labels,
        split_name(row["split"], f"{origin}: track {track_id}"),
        (row["artist"],) if row["artist"] else (),
        row["album"] if _is_album(row["album"]) else None,
        metadata,
    )


def _is_album(text: str) -> bool:
    return bool(text) and text != "-1"  # -1 stands for none


def _number(text: str, origin: str) -> int:
    if not text.strip().isdecimal() or len(text) > 18:
        raise DataError(f"{origin}: must be a whole number. Received: {text!r}")
    return int(text)


def _ids(text: str, origin: str) -> list[int]:
    """Returns the ids of a list such as [21, 10]; only a list of whole numbers is read."""
    try:
        ids = json.loads(text) if text else []
    except (ValueError, RecursionError):
        ids = None
    if not isinstance(ids, list) or not all(type(genre) is int for genre in ids):
        raise DataError(f"{origin}: genres_all must be a list of ids, such as [21, 10]. Received: {text[:80]!r}")
    return ids
