"""Official splits as they are, or folds without leaks: no track, artist or album in two, labels spread evenly.

Tracks that share an artist or an album, or whose files have the same bytes, form a group (connected components); a
group goes to one fold as a whole.
Groups are assigned greedily, largest first, each to the fold where the label counts stay most even: the rule of
scikit-learn's StratifiedGroupKFold, widened to several tags a track in the spirit of iterative stratification
(Sechidis et al., 2011).
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.console import console
from tfmusic.core.files import file_sha256
from tfmusic.core.track import Dataset, Track
from tfmusic.datasets.options import DataSection
from tfmusic.errors import DataError, printable

OFFICIAL = ("train", "validation", "test")
_SAMPLE_BYTES = 1 << 14  # 16 KiB tell most files of one size apart
_SHOWN = 5  # pairs of equal files that are named


def choose_splits(tracks: Sequence[Track], labels: Sequence[str], *, n_folds: int, seed: int) -> list[str]:
    """Returns the split of every track: the official one where tracks have some, else its fold.

    Where no track is for validation, the first of `n_folds` folds of the training tracks is.

    Raises:
        DataError: some tracks have a split and others not, none is for training, or a fold would be empty.
    """
    if not has_official(tracks):
        return assign_folds(tracks, labels, n_folds=n_folds, seed=seed)
    splits = [track.split or "" for track in tracks]
    unknown = [track.track_id for track, split in zip(tracks, splits, strict=True) if split not in OFFICIAL]
    if unknown or "train" not in splits:
        raise DataError(
            f"every track must have one of the splits {', '.join(OFFICIAL)}, and some train. Received: splits"
            f" {', '.join(sorted(set(splits) - {''})) or 'none'}"
            + (f", and {len(unknown)} tracks without one, such as {unknown[0]}" if unknown else "")
        )
    if "validation" not in splits:
        rows = [row for row, split in enumerate(splits) if split == "train"]
        folds = assign_folds([tracks[row] for row in rows], labels, n_folds=n_folds, seed=seed)
        for row, fold in zip(rows, folds, strict=True):
            splits[row] = "validation" if fold == "fold0" else "train"
    return splits


def has_official(tracks: Sequence[Track]) -> bool:
    """Returns whether the data has splits of its own."""
    return any(track.split for track in tracks)


def keep_official(dataset: Dataset, options: DataSection) -> Dataset:
    """Returns the dataset with its official splits, or without them where folds are wanted; warns of leaks.

    Tracks whose files have the same bytes get the same `duplicate_of`.
    """
    if options.makes_folds:
        dataset = replace(dataset, tracks=tuple(replace(track, split=None) for track in dataset.tracks))
    groups = _equal_files(dataset.tracks)
    _warn_of_equal_files(dataset.tracks, groups)
    dataset = replace(dataset, tracks=_marked(dataset.tracks, groups))
    if not any(track.artists or track.album for track in dataset.tracks):
        what = "splits" if has_official(dataset.tracks) else "folds"
        console.warn(f"no track has an artist or album: tracks of one artist may stand in several {what}")
    leaks = set(leaking(dataset.tracks))
    if not leaks:
        return dataset
    what = "artist or file" if groups else "artist"
    count = f"tracks of the official train or validation split whose {what} is scored as well: {len(leaks)}"
    if not options.drops_leaks:
        console.warn(f"{count}; scores will be too high; data.artist_leaks=drop leaves them out")
        return dataset
    console.say(f"{count}; left out")
    return replace(dataset, tracks=tuple(track for row, track in enumerate(dataset.tracks) if row not in leaks))


def _equal_files(tracks: Sequence[Track]) -> list[list[int]]:
    """Returns the rows of tracks whose files have the same bytes, for all that are there twice or more.

    Files are opened only where others have the same size, and read to the end only where a sample agrees as well.
    """
    rows_of: dict[Path, list[int]] = defaultdict(list)
    for row, track in enumerate(tracks):
        rows_of[track.feature_path].append(row)
    groups = [[path for path, rows in rows_of.items() if len(rows) == 1]]  # else a file holds several tracks
    for key_fn in (_size, _sample, file_sha256):
        groups = [part for group in groups for part in _divided(group, key_fn) if len(part) > 1]
    return [[rows_of[path][0] for path in group] for group in groups]


def _divided(paths: Iterable[Path], key_fn: Callable[[Path], Any]) -> Iterable[list[Path]]:
    parts: dict[Any, list[Path]] = defaultdict(list)
    for path in paths:
        with suppress(OSError):  # whoever reads the track names what is missing
            parts[key_fn(path)].append(path)
    return parts.values()


def _size(path: Path) -> int:
    if not path.is_file() or not (size := path.stat().st_size):
        raise OSError(f"{path}: no file with content")
    return size


def _sample(path: Path) -> bytes:
    with path.open("rb") as file:  # of the middle: many files of one size begin with the same header or silence
        file.seek(max(os.fstat(file.fileno()).st_size - _SAMPLE_BYTES, 0) // 2)
        return hashlib.sha256(file.read(_SAMPLE_BYTES)).digest()


def _marked(tracks: Sequence[Track], groups: Sequence[Sequence[int]]) -> tuple[Track, ...]:
    """Returns the tracks; those of a group, and those that are duplicates of one of them already, share a mark."""
    mark_of: dict[int, str] = {}
    renamed: dict[str, str] = {}
    for rows in groups:
        marks = [mark for row in rows if (mark := tracks[row].duplicate_of) is not None]
        mark = renamed.get(marks[0], marks[0]) if marks else tracks[rows[0]].track_id
        renamed |= dict.fromkeys(marks, mark)
        mark_of |= dict.fromkeys(rows, mark)
    new = (mark_of.get(row, renamed.get(track.duplicate_of or "")) for row, track in enumerate(tracks))
    return tuple(
        replace(track, duplicate_of=mark) if mark is not None else track
        for track, mark in zip(tracks, new, strict=True)
    )


def _warn_of_equal_files(tracks: Sequence[Track], groups: Sequence[Sequence[int]]) -> None:
    same, across, labels = [], [], []
    for first, *others in groups:
        for row in others:
            one, other = tracks[row], tracks[first]
            pair = printable(f"{one.feature_path} = {other.feature_path}")
            if one.split == other.split:
                same.append(pair)
            else:
                across.append(f"{pair} ({one.split} and {other.split})")
            if set(one.labels) != set(other.labels):
                labels.append(f"{pair} ({', '.join(one.labels)} and {', '.join(other.labels)})")
    for pairs, text in (
        (same, "files have the bytes of another, and go to one split or fold with it"),
        (across, "files have the bytes of one in another split, so scores will be too high; remove one of each pair"),
        (labels, "files have the bytes of one with other labels; correct the labels, or remove one of each pair"),
    ):
        if pairs:
            more = f", and {len(pairs) - _SHOWN:,} more" if len(pairs) > _SHOWN else ""
            console.warn(f"{len(pairs):,} {text}: {', '.join(pairs[:_SHOWN])}{more}")


def duplicates(tracks: Sequence[Track]) -> list[list[str]]:
    """Returns the ids of tracks that are the same music, for all that are there twice or more."""
    groups = defaultdict(list)
    for track in tracks:
        if track.duplicate_of is not None:
            groups[track.duplicate_of].append(track.track_id)
    return [group for group in groups.values() if len(group) > 1]


def leaking(tracks: Sequence[Track]) -> list[int]:
    """Returns the rows of tracks of which an artist, or the same bytes under another name, is also scored.

    In training they are scored by validation or test, in validation by test.
    """
    scored = {split: {key for track in tracks if track.split == split for key in _keys(track)} for split in OFFICIAL}
    later = {"train": scored["validation"] | scored["test"], "validation": scored["test"]}
    return [row for row, track in enumerate(tracks) if later.get(track.split or "", set()).intersection(_keys(track))]


def _keys(track: Track) -> list[tuple[str, str]]:
    """Returns what a track must not share with a track that scores it."""
    keys = [("artist", artist) for artist in track.artists]
    return keys + ([("same", track.duplicate_of)] if track.duplicate_of is not None else [])


def assign_folds(tracks: Sequence[Track], labels: Sequence[str], *, n_folds: int, seed: int) -> list[str]:
    """Returns the fold name (`fold0`, `fold1`, ...) of every track, the same for the same tracks in any order.

    Raises:
        DataError: there are fewer groups than folds, so that a fold would be empty.
    """
    groups = _sorted_groups(tracks, seed)
    if len(groups) < n_folds:
        raise DataError(
            f"data.folds={n_folds} needs at least as many groups of tracks that share no artist, album or bytes."
            f" Received: {len(groups)} groups of {len(tracks)} tracks; lower data.folds"
        )
    targets = _targets(tracks, labels)
    totals = np.maximum(targets.sum(0), 1)
    counts = np.zeros((n_folds, targets.shape[1]))
    names = [f"fold{fold}" for fold in range(n_folds)]
    folds = [""] * len(tracks)
    for group in groups:
        added = targets[group].sum(0)
        fold = _best_fold(counts, added, totals)
        counts[fold] += added
        for row in group:
            folds[row] = names[fold]
    return folds


def group_tracks(tracks: Sequence[Track]) -> list[list[int]]:
    """Returns the rows of tracks that share an artist, an album or their bytes, directly or through other tracks."""
    parent = list(range(len(tracks)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first_with: dict[tuple[str, str], int] = {}
    for row, track in enumerate(tracks):
        for key in _keys(track) + ([("album", track.album)] if track.album else []):
            parent[root(row)] = root(first_with.setdefault(key, row))
    groups = defaultdict(list)
    for row in range(len(tracks)):
        groups[root(row)].append(row)
    return list(groups.values())


def _sorted_groups(tracks: Sequence[Track], seed: int) -> list[list[int]]:
    """Returns groups, largest first; equal sizes in the order of a hash, so that file order plays no part."""

    def key(group: list[int]) -> tuple[int, str]:
        smallest_id = min(tracks[row].track_id for row in group)
        return -len(group), hashlib.sha256(f"{seed}/{smallest_id}".encode()).hexdigest()

    return sorted(group_tracks(tracks), key=key)


def _targets(tracks: Sequence[Track], labels: Sequence[str]) -> np.ndarray:
    """Returns counts [n_tracks, 1 + n_labels]; the first column counts the track itself."""
    column = {name: i + 1 for i, name in enumerate(labels)}
    targets = np.zeros((len(tracks), len(labels) + 1))
    targets[:, 0] = 1
    for row, track in enumerate(tracks):
        targets[row, [column[name] for name in track.labels]] = 1
    return targets


def _best_fold(counts: np.ndarray, added: np.ndarray, totals: np.ndarray) -> int:
    """Returns the fold where adding the group keeps label shares most even; ties go to the smaller fold."""
    n_folds = len(counts)
    shares = counts / totals
    after = (counts + added) / totals
    # Variance over folds, were the group put into fold k: replace row k by its value after.
    sums = shares.sum(0) - shares + after
    squares = (shares**2).sum(0) - shares**2 + after**2
    spread = (squares / n_folds - (sums / n_folds) ** 2).sum(1)
    return int(np.lexsort((counts[:, 0], np.round(spread, 12)))[0])
