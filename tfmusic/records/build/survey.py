"""A first look at sound files: how long each is, and how loud some of them are.

The places of segments in a shard follow from the lengths, and headers may lie about them, so files whose header is no
promise are decoded once for it. Lengths are noted as they come: a build that goes on does not decode these again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfmusic.console import console
from tfmusic.core.feature import Feature
from tfmusic.core.pool import run_all
from tfmusic.core.track import Track
from tfmusic.errors import DataError
from tfmusic.features.audio import is_audio
from tfmusic.features.read import count_samples, read_feature

NOTES_NAME = "samples.jsonl"


@dataclass(frozen=True)
class _Asked:
    """A file that a worker looks at."""

    path: Path
    track_id: str
    feature: Feature


def count_all_samples(
    tracks: Sequence[Track], feature: Feature, *, workers: int, stop: bool, notes: Path
) -> dict[Path, int | DataError]:
    """Returns the length of every sound file among the tracks, samples, or why it cannot be used.

    Args:
        tracks: those of other files are left out.
        feature: at whose sample rate the lengths are.
        workers: processes.
        stop: whether the first file that cannot be used is raised.
        notes: file to which lengths are added, and which an interrupted build may have left.
    """
    known = _read_notes(notes)
    paths = dict.fromkeys(track.feature_path for track in tracks if is_audio(track.feature_path))
    keys = {path: _key(path, feature) for path in paths}
    found: dict[Path, int | DataError] = {path: known[key] for path, key in keys.items() if key in known}
    asked = [_Asked(path, "", feature) for path in paths if path not in found]
    with console.progress("lengths", len(paths), "files") as progress, notes.open("a", encoding="utf-8") as file:
        progress.advance(len(found))
        for one, n_samples in run_all(_count, asked, workers):
            if isinstance(n_samples, DataError) and stop:
                raise n_samples
            found[one.path] = n_samples
            if not isinstance(n_samples, DataError):
                file.write(json.dumps([keys[one.path], n_samples]) + "\n")
                file.flush()
            progress.advance()
    return found


def loudest_cells(tracks: Sequence[Track], feature: Feature, *, workers: int, stop: bool) -> list[np.ndarray]:
    """Returns the largest cell of every bin of some tracks, in any order; those that cannot be read are left out.

    Raises:
        DataError: one cannot be read, and `stop` says that this ends the build.
    """
    asked = [_Asked(track.feature_path, track.track_id, feature) for track in tracks]
    has_sound = any(is_audio(one.path) for one in asked)  # spectrograms are read faster than workers start
    found = []
    for _, cells in run_all(_loudest, asked, workers if has_sound else 1):
        if not isinstance(cells, DataError):
            found.append(cells)
        elif stop:
            raise cells
    return found


def _count(asked: _Asked) -> int | DataError:
    try:
        return count_samples(asked.path, asked.feature)
    except DataError as error:
        return error


def _loudest(asked: _Asked) -> np.ndarray | DataError:
    try:
        return np.asarray(read_feature(asked.path, asked.track_id, asked.feature).max(axis=1))
    except DataError as error:
        return error


def _key(path: Path, feature: Feature) -> str:
    """Returns what a length depends on: the file as it is now, and the rate."""
    state = path.stat() if path.is_file() else None
    marks = (state.st_size, state.st_mtime_ns) if state else ()
    return json.dumps([str(path), *marks, feature.sample_rate_hz])


def _read_notes(notes: Path) -> dict[str, int]:
    """Returns the lengths by key; a last line that was cut off is left out."""
    known: dict[str, int] = {}
    for line in notes.read_text(encoding="utf-8", errors="replace").splitlines() if notes.is_file() else ():
        try:
            key, n_samples = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(key, str) and isinstance(n_samples, int):
            known[key] = n_samples
    return known
