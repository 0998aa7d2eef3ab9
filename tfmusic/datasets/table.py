"""Any music with a table: a row a track.

Layout of the folder:

    tracks.csv    columns path and labels; id, split, artist and album may be missing; .tsv for tabs in place of commas
    a/1.mp3       audio or .npy, where the column path says, below the folder; or, extracted from it, a/1.npy

Several labels, and several artists, are divided by |.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from tfmusic.core.track import Dataset, Track, check_track_id, check_unique
from tfmusic.datasets.files import below, check_labels, plain_ids, read_table, short_names, split_name
from tfmusic.datasets.labels import warn_of_several
from tfmusic.datasets.options import Name, OfficialSection
from tfmusic.errors import DataError

# --- What the data set is -------------------------------------------------------------------------------------

COLUMNS = ("path", "labels")


class Options(OfficialSection):
    """A table with a row a track."""

    loader: Literal["table"]
    table: Name = "tracks.csv"
    """The table, below the data or a path of its own."""
    kind: Literal["single", "multi"] = "single"
    """One label a track, or several tags; with single the first is the label, and all can make a soft target."""

    @property
    def label_kind(self) -> Literal["single", "multi"]:
        """Whether a track has one label, or several tags."""
        return self.kind


# --- Loading ---------------------------------------------------------------------------------------------------


def load(folder: Path, options: Options, *, task: str) -> Dataset:
    """Returns the tracks of a table in its order.

    Raises:
        DataError: the table or a column is missing, a path leaves the folder, or some rows have a split and others not.
    """
    path = folder / options.table
    rows = read_table(path, COLUMNS, delimiter="\t" if path.suffix == ".tsv" else ",")
    has_split = {bool(row.get("split")) for row in rows}
    if len(has_split) == 2:
        raise DataError(f"{path}: either every row must have a split or none. Received: both kinds")
    names = [row["path"] for row in rows]
    counts = Counter(PurePosixPath(name).as_posix() for name in names)
    if len(counts) < len(names):  # one file in two splits would be a leak that no name shows
        repeated = next(name for name, count in counts.items() if count > 1)
        raise DataError(f"{path}: the path {repeated} appears twice; every track must be one file")
    given = "id" in rows[0]
    ids = [check_track_id(row["id"], str(path)) for row in rows] if given else plain_ids(short_names(names))
    check_unique(ids, str(path))
    tracks = tuple(
        _track(row, track_id, folder, f"{path}: {row['path']}") for row, track_id in zip(rows, ids, strict=True)
    )
    warn_of_several(tracks, options.kind, str(path))
    labels = tuple(sorted({label for track in tracks for label in track.labels}))
    return Dataset(task, options.kind, labels, tracks)


# --- Parts -----------------------------------------------------------------------------------------------------


def _track(row: Mapping[str, str], track_id: str, folder: Path, origin: str) -> Track:
    artists = tuple(_parts(row.get("artist", "")))
    path = below(folder, row["path"], origin)
    extracted = (path.with_name(f"{path.name}.npy"), path.with_suffix(".npy"))
    return Track(
        track_id,
        path if path.is_file() else next((other for other in extracted if other.is_file()), path),
        check_labels(_parts(row["labels"]), origin),
        split_name(row["split"], origin) if row.get("split") else None,
        artists,
        row.get("album") or None,
        {"artists": list(artists)} if artists else {},
    )


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split("|") if part.strip()]
