"""GTZAN genre collection: 30 s clips of ten genres, a hundred each (Tzanetakis & Cook 2002).

Layout of the folder:

    wav/blues/blues.00000.wav   audio, or .npy in its place; genres_original/, genres/ or the folder itself will do,
                                also below Data/
    split/train.txt             a clip a line: blues/blues.00029.wav, blues.00029.wav or blues.00029; may be missing, or
                                lie beside the genres
    split/valid.txt             or validation.txt; may be missing: then some clips of train.txt validate
    split/test.txt

Lists without the clips that are repeated, mislabelled or distorted (Sturm 2013; the split of Kereliuk et al. 2015) go
into a folder of their own, which `data.lists` names; there train_filtered.txt, valid_filtered.txt and
test_filtered.txt, or train_stratified.txt and so on, will do as well. Clips in none of the lists are left out.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tfmusic.console import console
from tfmusic.core.section import CountOrZero
from tfmusic.core.track import Dataset, Track, check_unique
from tfmusic.datasets.files import FeatureFiles
from tfmusic.datasets.options import Name, OfficialSection
from tfmusic.errors import DataError

# --- What the data set is -------------------------------------------------------------------------------------

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
EIGHT = tuple(genre for genre in GENRES if genre not in ("blues", "rock"))
_CLIP = re.compile(rf"({'|'.join(GENRES)})\.\d{{1,6}}")
_NO_LISTS = ("split", "none")  # what the lists may be called where there are none
_LISTS = {
    "train": ("train.txt", "train_filtered.txt", "train_stratified.txt"),
    "validation": ("valid.txt", "validation.txt", "valid_filtered.txt", "valid_stratified.txt"),
    "test": ("test.txt", "test_filtered.txt", "test_stratified.txt"),
}


class Options(OfficialSection):
    """GTZAN."""

    loader: Literal["gtzan"]
    n_classes: Literal[8, 10] = 10
    """10 genres, or 8 without blues and rock."""
    lists: Name = "split"
    """Folder of the lists of clips, below the data or a path of its own; none for no splits."""
    validation_per_class: CountOrZero = 5
    """Training clips of every genre, chosen by `seed`, that validate where no list does."""

    @property
    def n_labels(self) -> int:
        """Number of genres."""
        return self.n_classes


# --- Loading ---------------------------------------------------------------------------------------------------


def load(folder: Path, options: Options, *, task: str) -> Dataset:
    """Returns the clips of the lists with their splits; all clips, without splits, where there are no lists.

    Raises:
        DataError: a folder is missing, or a list names what is no clip, or one clip twice.
    """
    genres = GENRES if options.n_classes == len(GENRES) else EIGHT
    files = _find_audio(folder, genres)
    lists = _find_lists(folder, files.root, options.lists)
    split_of = _read_lists(lists, genres)
    present = [name.split("/")[-1] for name in files.paths]
    if split_of:
        left_out = set(present) - split_of.keys()
        if left_out:
            console.warn(f"{lists}: {len(left_out)} of {len(present)} clips are in none of the lists: left out")
        split_of = _with_validation(split_of, options.validation_per_class, options.seed)
    clips = sorted(split_of or present)
    check_unique(clips, str(files.root))
    labels = [clip.split(".")[0] for clip in clips]
    tracks = tuple(
        Track(clip, files.find(f"{genre}/{clip}", ".wav"), (genre,), split_of.get(clip))
        for clip, genre in zip(clips, labels, strict=True)
    )
    if not tracks:
        raise DataError(f"{files.root}: must hold clips such as {genres[0]}/{genres[0]}.00000.wav. Received: none")
    return Dataset(task, "single", tuple(sorted(set(labels))), tracks)


# --- Parts -----------------------------------------------------------------------------------------------------


def _find_lists(folder: Path, root: Path, name: str) -> Path:
    """Returns the folder of the lists: the one that is named, else that of lists beside the clips."""
    if name != "split" or _has_lists(folder / name):
        return folder / name
    for place in dict.fromkeys((root, root.parent, folder, root.parent / name)):
        if _has_lists(place):
            console.say(f"splits of the lists in {place}; data.lists=none leaves them out")
            return place
    return folder / name


def _has_lists(folder: Path) -> bool:
    return any((folder / name).is_file() for names in _LISTS.values() for name in names)


def _find_audio(folder: Path, genres: tuple[str, ...]) -> FeatureFiles:
    tops = [folder, folder / "Data"]  # the latter is Kaggle's
    places = [top / name for top in tops for name in ("wav", "genres_original", "genres", "")]
    for place in places:
        if any((place / genre).is_dir() for genre in genres):
            files = FeatureFiles.below(place, only=genres)
            wrong = [name for name in files.paths if not _is_clip(name)]
            if wrong:
                raise DataError(f"{place / wrong[0]}: a clip must be named GENRE/GENRE.NNNNN. Received: {wrong[0]}")
            return files
    looked = ", ".join(str(place / genres[0]) for place in places)
    raise DataError(f"{folder}: must hold a folder for each genre. Looked for: {looked}")


def _is_clip(name: str) -> bool:
    genre, _, clip = name.partition("/")
    return bool(_CLIP.fullmatch(clip)) and clip.startswith(f"{genre}.")


def _read_lists(folder: Path, genres: tuple[str, ...]) -> dict[str, str]:
    """Returns the split of every listed clip of some genres; none where there are no lists."""
    if not folder.is_dir() and folder.name not in _NO_LISTS:
        raise DataError(f"{folder}: no such folder; data.lists must name a folder of lists, or none")
    split_of: dict[str, str] = {}
    for split, names in _LISTS.items():
        paths = [folder / name for name in names if (folder / name).is_file()]
        if len(paths) > 1:
            raise DataError(
                f"{folder}: must hold one list of {split} clips. Received: {paths[0].name}, {paths[1].name}"
            )
        for path in paths:
            for clip in _read_list(path):
                if clip in split_of:
                    raise DataError(f"{path}: the clip {clip} appears twice in the lists; list it once")
                split_of[clip] = split
    if split_of and not {"train", "test"} <= set(split_of.values()):
        raise DataError(f"{folder}: must hold train.txt and test.txt, neither empty, or no list at all")
    return {clip: split for clip, split in split_of.items() if clip.split(".")[0] in genres}


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: must be a list of clips in UTF-8: {error}") from error
    clips = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        clip = re.sub(r"\.[A-Za-z][A-Za-z0-9]*$", "", line.split()[0].split("/")[-1])
        if not _CLIP.fullmatch(clip):
            raise DataError(
                f"{path}: line {number} must name a clip, such as blues/blues.00029.wav. Received: {line!r}"
            )
        clips.append(clip)
    return clips


def _with_validation(split_of: Mapping[str, str], per_class: int, seed: int) -> dict[str, str]:
    """Returns the splits with some training clips of every genre for validation, where there are no such clips yet."""
    if "validation" in split_of.values():
        return dict(split_of)
    by_genre = defaultdict(list)
    for clip, split in split_of.items():
        if split == "train":
            by_genre[clip.split(".")[0]].append(clip)
    moved: dict[str, str] = {}
    for genre, clips in by_genre.items():
        if len(clips) <= per_class:
            raise DataError(f"train.txt must list more than {per_class} clips of {genre}. Received: {len(clips)}")
        clips.sort(key=lambda clip: hashlib.sha256(f"{seed}/{clip}".encode()).digest())
        moved |= dict.fromkeys(clips[:per_class], "validation")
    return dict(split_of) | moved
