"""What is odd about the labels of a data set, said before a training that could not learn them."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

from tfmusic.console import console
from tfmusic.core.track import Dataset, Track
from tfmusic.errors import DataError

_SHOWN = 5  # labels that a message names


def check_labels_of(dataset: Dataset, folder: Path) -> None:
    """Warns of labels that look alike, or that no training track has.

    Raises:
        DataError: every track has the same one label, which nothing can be learned of.
    """
    labels = [f"{head.task}:{label}" for head in dataset.heads for label in head.labels] or dataset.labels
    if dataset.kind == "single" and len(labels) == 1:
        hint = _classes_below(folder, labels[0])
        raise DataError(f"{folder}: must have two labels or more. Received: {labels[0]!r} for every track{hint}")
    for alike in _alike(dataset.labels):
        is_unicode = len({unicodedata.normalize("NFC", label) for label in alike}) < len(alike)
        why = " (other Unicode characters that look the same)" if is_unicode else ""
        names = ", ".join(map(ascii if is_unicode else repr, alike))
        console.warn(f"{folder}: labels look alike, and count as different ones{why}: {names}")
    _warn_of_unlearned(dataset, _unlearned(dataset, dataset.tracks), str(folder))


def warn_of_lost(dataset: Dataset, usable: Collection[Track], origin: str) -> None:
    """Warns of labels whose training tracks are all among those that cannot be used."""
    before = set(_unlearned(dataset, dataset.tracks))
    _warn_of_unlearned(dataset, [name for name in _unlearned(dataset, usable) if name not in before], origin)


def warn_of_several(tracks: Collection[Track], kind: str, origin: str) -> None:
    """Warns of labels of a table that may be several in one, and of tracks with several where one is expected."""
    names = sorted({label for track in tracks for label in track.labels})
    if joined := [repr(label) for label in names if "," in label or ";" in label]:
        console.warn(f"{origin}: labels may be several in one, as | divides them: {_some(joined)}")
    several = [track.track_id for track in tracks if len(track.labels) > 1]
    if several and kind == "single":
        console.warn(
            f"{origin}: {len(several)} tracks have several labels, such as {several[0]}: the first counts, as data.kind"
            " is single; for tags set data.kind=multi"
        )


def _unlearned(dataset: Dataset, tracks: Collection[Track]) -> list[str]:
    """Returns the labels that no training track has; none where no track trains."""
    training = [track for track in tracks if track.split in (None, "train")]
    known = {label for track in training for label in track.labels}
    return [label for label in dataset.labels if label not in known] if training else []


def _warn_of_unlearned(dataset: Dataset, names: Collection[str], origin: str) -> None:
    if names:
        n_tracks = Counter(label for track in dataset.tracks for label in track.labels)
        shown = _some([f"{label} ({n_tracks[label]} tracks)" for label in names])
        console.warn(
            f"{origin}: no usable training track has {len(names)} of the labels, which are not learned: {shown}"
        )


def _alike(labels: Collection[str]) -> Iterator[list[str]]:
    """Yields labels that differ in case, width, accents' encoding, spaces or dashes alone."""
    groups = defaultdict(list)
    for label in labels:
        folded = unicodedata.normalize("NFKC", label).casefold()
        groups["".join(character for character in folded if character.isalnum()) or folded].append(label)
    return (group for group in groups.values() if len(group) > 1)


def _classes_below(folder: Path, label: str) -> str:
    """Returns the end of a message that names folders which look like classes, one level below."""
    for parent in (folder / label, *(folder / split / label for split in ("train", "valid", "validation", "test"))):
        names = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
        if len(names) > 1:
            return f"; its folders look like classes ({_some(names)}): pass --data {parent}"
    return ""


def _some(names: Collection[str]) -> str:
    shown = list(names)[:_SHOWN]
    return ", ".join(shown) + (", ..." if len(names) > _SHOWN else "")
