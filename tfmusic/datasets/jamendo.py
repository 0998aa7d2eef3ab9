"""MTG-Jamendo: full tracks with several tags each, of genre, instrument and mood or theme (Bogdanov et al. 2019).

Layout of the folder, that of the data set's repository with the audio beside it:

    data/splits/split-0/autotagging_moodtheme-train.tsv   and -validation.tsv, -test.tsv; split-1 to split-4
    data/autotagging_moodtheme.tsv                        read where there are no such lists; there are no splits then
    audio/48/948.mp3                                      or 948.low.mp3; .npy or other audio in its place

`data/` may be left out. A table begins with the row TRACK_ID ARTIST_ID ALBUM_ID PATH DURATION TAGS, cells divided by
tabs; a track has as many cells of tags as it has tags, each such as mood/theme---happy. The spectrograms that the data
set itself offers are read with `feature=jamendo data.audio=FOLDER`. `tfmusic inspect` names files that are shorter or
longer than DURATION says; lengths are still counted in the audio, as DURATION is rounded.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field

from tfmusic.core.track import NO_METADATA, Dataset, Track, check_track_id, check_unique
from tfmusic.datasets.files import FeatureFiles, below, check_labels, read_table
from tfmusic.datasets.options import Name, OfficialSection
from tfmusic.errors import DataError

# --- What the data set is -------------------------------------------------------------------------------------

SUBSETS = {
    "moodtheme": "autotagging_moodtheme",
    "genre": "autotagging_genre",
    "instrument": "autotagging_instrument",
    "top50tags": "autotagging_top50tags",
    "all": "autotagging",
}
SPLITS = ("train", "validation", "test")
_COLUMNS = ("TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS")


class Options(OfficialSection):
    """MTG-Jamendo."""

    loader: Literal["jamendo"]
    subset: Literal["moodtheme", "genre", "instrument", "top50tags", "all"] = "moodtheme"
    """Which set of tags; those of one category are named without it: happy, not mood/theme---happy."""
    split: Annotated[int, Field(ge=0, le=4)] = 0
    """Which of the five official splits is used."""
    audio: Name = "audio"
    """Folder of the audio, below the data or a path of its own."""

    @property
    def label_kind(self) -> Literal["single", "multi"]:
        """Whether a track has one label, or several tags."""
        return "multi"

    @property
    def n_labels(self) -> int:
        """Number of tags of split 0."""
        return {"moodtheme": 56, "genre": 87, "instrument": 40, "top50tags": 50, "all": 183}[self.subset]


# --- Loading ---------------------------------------------------------------------------------------------------


def load(folder: Path, options: Options, *, task: str) -> Dataset:
    """Returns the tracks of a set of tags with their official splits, in the order of the tables.

    Raises:
        DataError: a table or folder is missing, or a row is not what the format says.
    """
    tables = _find_tables(folder, SUBSETS[options.subset], options.split)
    files = FeatureFiles.below(folder / options.audio)
    has_category = options.subset in ("top50tags", "all")
    tracks = tuple(
        _track(row, name, files, str(path), has_category=has_category)
        for name, path in tables.items()
        for row in read_table(path, _COLUMNS, delimiter="\t", rest="TAGS")
    )
    check_unique([track.track_id for track in tracks], ", ".join(str(path) for path in tables.values()))
    return Dataset(task, "multi", tuple(sorted({tag for track in tracks for tag in track.labels})), tracks)


# --- Parts -----------------------------------------------------------------------------------------------------


def _find_tables(folder: Path, name: str, split: int) -> Mapping[str, Path]:
    """Returns the tables of the official splits by split, or the table of all tracks by no name."""
    places = [folder / "data" / "splits", folder / "splits"]
    for place in places:
        tables = {part: place / f"split-{split}" / f"{name}-{part}.tsv" for part in SPLITS}
        present = [part for part, path in tables.items() if path.is_file()]
        if present and len(present) < len(SPLITS):
            raise DataError(f"{place / f'split-{split}'}: must hold the lists of train, validation and test of {name}")
        if present:
            return tables
    for path in (folder / "data" / f"{name}.tsv", folder / f"{name}.tsv"):
        if path.is_file():
            return {"": path}
    looked = ", ".join(str(place / f"split-{split}" / f"{name}-train.tsv") for place in places)
    raise DataError(f"{folder}: must hold the tables of MTG-Jamendo. Looked for: {looked}, {name}.tsv")


def _track(row: Mapping[str, str], split: str, files: FeatureFiles, origin: str, *, has_category: bool) -> Track:
    track_id = check_track_id(row["TRACK_ID"], origin)
    here = f"{origin}: track {track_id}"
    below(files.root, row["PATH"], here)
    path = PurePosixPath(row["PATH"])
    name = path.with_suffix("").as_posix()
    low = f"{name}.low"
    tags = [tag for tag in row["TAGS"].split("\t") if tag.strip()]
    return Track(
        track_id,
        files.find(low if low in files.paths and name not in files.paths else name, path.suffix),
        check_labels((tag.strip() if has_category else tag.strip().rpartition("---")[2] for tag in tags), here),
        split or None,
        (row["ARTIST_ID"],) if row["ARTIST_ID"] else (),
        row["ALBUM_ID"] or None,
        {"duration_s": _seconds(row["DURATION"], here)} if row["DURATION"] else NO_METADATA,
    )


def _seconds(text: str, origin: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise DataError(f"{origin}: DURATION must be a number of seconds. Received: {text!r}")
    return seconds
