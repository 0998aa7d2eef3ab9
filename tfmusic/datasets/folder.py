"""Any music in a folder a class.

Layout of the folder:

    happy/1.mp3          audio or .npy; folders within the folder of a class will do
    sad/live/2.mp3

or, with splits of its own:

    train/happy/1.mp3    valid or validation, and test, likewise; a split may be missing, train may not
    test/sad/2.mp3

No artists are known: tracks of one artist may stand in several splits. The loader `table` takes artists.
"""

from pathlib import Path, PurePosixPath
from typing import Literal

from tfmusic.console import console
from tfmusic.core.track import Dataset, Track, check_unique
from tfmusic.datasets.files import SPLIT_NAMES, FeatureFiles, check_labels, plain_ids, split_name
from tfmusic.datasets.options import OfficialSection
from tfmusic.errors import DataError, printable

# --- What the data set is -------------------------------------------------------------------------------------

_EXPECTED = "must hold a folder a class with audio or .npy files, or train/, valid/ and test/ with such folders"


class Options(OfficialSection):
    """A folder a class."""

    loader: Literal["folder"]


# --- Loading ---------------------------------------------------------------------------------------------------


def load(folder: Path, options: Options, *, task: str) -> Dataset:
    """Returns all files of the class folders, in the order of their names.

    The id of a track is its path without split and suffix, such as happy-1, with a hash at its end where that is no
    plain name or not unique. Files that differ in their suffix keep it, and stay in one fold.

    Raises:
        DataError: there are no such folders.
    """
    files = FeatureFiles.below(folder)
    if left_out := files.describe_left_out():
        console.warn(f"{folder}: {left_out}")
    names = sorted(files.named)
    empty = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if empty := [name for name in empty if not any(file.startswith(f"{name}/") for file in names)] if names else []:
        console.warn(f"{folder}: folders without a usable file are no classes: {', '.join(map(printable, empty))}")
    has_splits = _has_splits(folder, names)
    in_class = [name.partition("/")[2] if has_splits else name for name in names]
    loose = [name for name, inner in zip(names, in_class, strict=True) if "/" not in inner]
    if loose or not names:
        raise DataError(f"{folder}: {_EXPECTED}. Received: {loose[0] if loose else 'no such file'}")
    labels = [check_labels([printable(inner.partition("/")[0])], str(folder)) for inner in in_class]
    splits = [split_name(name.partition("/")[0], str(folder)) if has_splits else None for name in names]
    ids = plain_ids(in_class) if len(set(in_class)) == len(in_class) else plain_ids(names)
    check_unique(ids, str(folder))
    tracks = tuple(
        Track(track_id, files.named[name], label, split, duplicate_of=None if name in files.paths else _stem(name))
        for track_id, name, label, split in zip(ids, names, labels, splits, strict=True)
    )
    return Dataset(task, "single", tuple(sorted({label for track in tracks for label in track.labels})), tracks)


# --- Parts -----------------------------------------------------------------------------------------------------


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _has_splits(folder: Path, names: list[str]) -> bool:
    """Returns whether the top folders are splits: all of them bear such names, and each holds class folders."""
    tops = {PurePosixPath(name).parts[0] for name in names if "/" in name}
    are_splits = {top for top in tops if top.lower() in SPLIT_NAMES}
    if are_splits and are_splits != tops:
        others = ", ".join(sorted(tops - are_splits))
        raise DataError(f"{folder}: must hold splits alone or classes alone. Received: {others} beside a split")
    if len({SPLIT_NAMES[top.lower()] for top in are_splits}) < len(are_splits):
        raise DataError(f"{folder}: must hold every split once. Received: {', '.join(sorted(are_splits))}")
    return bool(tops) and are_splits == tops
