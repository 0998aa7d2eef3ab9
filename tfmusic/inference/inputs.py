"""Tracks without labels, as `predict`, `embed` and `explain` are given them: files, folders, lists and embeddings."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tfmusic.console import console
from tfmusic.core.track import Track, check_unique
from tfmusic.datasets import airush
from tfmusic.datasets.files import FeatureFiles, path_id
from tfmusic.errors import DataError, printable
from tfmusic.features.embeddings import read_index


def find_tracks(inputs: Iterable[Path]) -> list[Track]:
    """Returns the tracks of AI Rush folders, of audio or .npy files or folders of them, and of embedding files.

    The order is that of the inputs; in each that of the AI Rush list or of the embedding file, else that of the names,
    with 9 before 10. The id of a file is its name, or its path in the folder, without the suffix; files that would
    share an id get their suffix, the path that was given, or a hash of it.

    Raises:
        DataError: a path does not exist or holds nothing of these, a file is named twice, or there is no track at all.
    """
    inputs = list(inputs)
    tracks = [track for path in inputs for track in _tracks_of(path)]
    if not tracks:
        raise DataError(f"{', '.join(map(str, inputs))}: no tracks found")
    counts = Counter((_absolute(track), _name_in_file(track)) for track in tracks)
    (place, name), count = counts.most_common(1)[0]
    if count > 1:
        raise DataError(
            f"{place}: {f'track {name} ' if name else ''}is given twice; ids must be unique, so name it once"
        )
    return _with_unique_ids(tracks)


def _absolute(track: Track) -> str:
    return os.path.abspath(track.feature_path)  # noqa: PTH100 - resolve() would follow links, which are names of their own


def _name_in_file(track: Track) -> str:
    """Returns what tells a track from the others of its file."""
    return track.track_id if track.feature_path.suffix == ".npz" else ""


def _tracks_of(path: Path) -> list[Track]:
    if path.suffix == ".npz" and path.is_file():
        ids = read_index(path).track_ids
        if odd := [name for name in ids if not name or printable(name) != name]:
            raise DataError(f"{path}: track ids must be printable. Received: {odd[0]!r}")
        check_unique(ids, str(path))
        return [Track(name, path) for name in ids]
    if path.is_file():
        return [Track(printable(path.stem), path)]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    question = airush.find_test(path)
    if question is not None:
        return list(airush.load_test(path, question=question))
    mels = path / "train_data" / "mel_spectrogram"
    found = FeatureFiles.below(mels if mels.is_dir() else path)
    if left_out := found.describe_left_out():
        console.warn(f"{found.root}: {left_out}")
    if not found.named:
        raise DataError(
            f"{path}: must hold test_data/meta/qN_test.json or train_data/ (AI Rush), or .npy or audio files"
        )
    files = sorted(found.named.items(), key=lambda item: (item[1].parent, len(item[1].stem), item[1].name))
    return [Track(path_id(name), file) for name, file in files]


def _with_unique_ids(tracks: list[Track]) -> list[Track]:
    """Returns the tracks; files that share an id get a longer one.

    Raises:
        DataError: two embedding files have an id in common, under which each is read.
    """
    for make_id in (_name_with_suffix, _whole_path, _hashed):
        counts = Counter(track.track_id for track in tracks)
        if len(counts) == len(tracks):
            break
        tracks = [
            replace(track, track_id=make_id(track))
            if counts[track.track_id] > 1 and not _name_in_file(track)
            else track
            for track in tracks
        ]
    check_unique([track.track_id for track in tracks], "embedding files")
    return tracks


def _name_with_suffix(track: Track) -> str:
    path = track.feature_path
    return printable(path.name) if track.track_id == printable(path.stem) else track.track_id


def _whole_path(track: Track) -> str:
    return printable("-".join(part for part in track.feature_path.parts if part not in ("/", "..")))


def _hashed(track: Track) -> str:
    digest = hashlib.sha256(os.fsencode(_absolute(track))).hexdigest()
    return f"{track.track_id}-{digest[:12]}"
