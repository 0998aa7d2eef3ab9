"""A first look at files before a build: the length of each sound file, and the loudest values of a sample.

The positions of segments in a shard follow from the lengths. Headers can be wrong, so files whose header cannot be
relied on are decoded once. Lengths are noted as they come: a build that is continued does not decode them again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tfmusic.console import console
from tfmusic.core.feature import Feature
from tfmusic.core.pool import run_all
from tfmusic.core.track import Track
from tfmusic.datasets.options import DataSection
from tfmusic.errors import DataError
from tfmusic.features.audio import is_audio
from tfmusic.features.read import count_samples, read_feature

NOTES_NAME = "samples.jsonl"


@dataclass(frozen=True)
class _File:
    """A file that a worker reads."""

    path: Path
    track_id: str
    feature: Feature
    min_share: float


def count_all_samples(
    tracks: Sequence[Track], feature: Feature, section: DataSection, *, workers: int, notes: Path
) -> dict[Path, int | DataError]:
    """Returns the length of every sound file among the tracks, samples, or why it cannot be used.

    Args:
        tracks: those of other files are left out.
        feature: at whose sample rate the lengths are.
        section: says how much of a sound file must be there, and whether the first that cannot be used is raised.
        workers: processes.
        notes: file to which lengths are added, and which an interrupted build may have left.
    """
    noted = _read_notes(notes)
    paths = dict.fromkeys(track.feature_path for track in tracks if is_audio(track.feature_path))
    keys = {path: _key(path, feature, section.min_share) for path in paths}
    lengths: dict[Path, int | DataError] = {path: noted[key] for path, key in keys.items() if key in noted}
    todo = [_File(path, "", feature, section.min_share) for path in paths if path not in lengths]
    with console.progress("lengths", len(paths), "files") as progress, notes.open("a", encoding="utf-8") as lines:
        progress.advance(len(lengths))
        for file, n_samples in run_all(_count, todo, workers):
            if isinstance(n_samples, DataError) and section.on_error == "stop":
                raise n_samples
            lengths[file.path] = n_samples
            if not isinstance(n_samples, DataError):
                lines.write(json.dumps([keys[file.path], n_samples]) + "\n")
                lines.flush()
            progress.advance()
    return lengths


def loudest_values(
    tracks: Sequence[Track], feature: Feature, section: DataSection, *, workers: int
) -> dict[str, float]:
    """Returns the largest value of each track by its name; tracks that cannot be read are left out.

    Raises:
        DataError: one cannot be read, and `on_error` of the section says that this ends the build.
    """
    files = [_File(track.feature_path, track.track_id, feature, section.min_share) for track in tracks]
    has_sound = any(is_audio(file.path) for file in files)  # spectrograms are read faster than workers start
    loudest: dict[str, float] = {}
    for file, values in run_all(_loudest, files, workers if has_sound else 1):
        if not isinstance(values, DataError):
            loudest[file.track_id] = values
        elif section.on_error == "stop":
            raise values
    return loudest


def _count(file: _File) -> int | DataError:
    try:
        return count_samples(file.path, file.feature, file.min_share)
    except DataError as error:
        return error


def _loudest(file: _File) -> float | DataError:
    try:
        return float(read_feature(file.path, file.track_id, file.feature, min_share=file.min_share).max())
    except DataError as error:
        return error


def _key(path: Path, feature: Feature, min_share: float) -> str:
    """Returns what a length depends on: the file as it is now, the rate, and how much must be there."""
    state = path.stat() if path.is_file() else None
    marks = (state.st_size, state.st_mtime_ns) if state else ()
    return json.dumps([str(path), *marks, feature.sample_rate_hz, min_share])


def _read_notes(notes: Path) -> dict[str, int]:
    """Returns the lengths by key; a last line that was cut off is left out."""
    lengths: dict[str, int] = {}
    for line in notes.read_text(encoding="utf-8", errors="replace").splitlines() if notes.is_file() else ():
        try:
            key, n_samples = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            continue
        if isinstance(key, str) and isinstance(n_samples, int):
            lengths[key] = n_samples
    return lengths
