"""Sound files to spectrogram files of the same names, as `tfmusic extract` writes them.

A file appears under its name when it is whole, so an interrupted run continues with those that are missing. The file
`feature.json` beside them names the feature, which every reader compares.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfmusic.core.feature import Feature
from tfmusic.core.files import held, is_temporary
from tfmusic.core.pool import run_all
from tfmusic.errors import DataError, UsageError
from tfmusic.features import audio
from tfmusic.features.npy import FEATURE_FILE, find_feature, write_feature
from tfmusic.features.read import read_feature

_LOCK = ".lock"
_TABLES = (".txt", ".csv", ".tsv")


@dataclass(frozen=True)
class Job:
    """One sound file and the spectrogram file to be written of it."""

    source: Path
    target: Path
    feature: Feature


@dataclass(frozen=True)
class ExtractSummary:
    """What a run has done: files written, seconds of music in them, files kept, and reasons of those skipped."""

    n_written: int
    music_s: float
    n_kept: int
    skipped: Mapping[Path, str]


def find_jobs(data: Path, out: Path, feature: Feature) -> list[Job]:
    """Returns a job for every sound file below a folder, with its path there, or for one file.

    Raises:
        DataError: it is missing or holds no sound file.
        UsageError: two sound files would be written to one spectrogram file.
    """
    if not data.exists():
        raise DataError(f"{data}: no such file or folder")
    root = data if data.is_dir() else data.parent
    jobs: dict[Path, Job] = {}
    for source in sorted(_sound_files(data)) if data.is_dir() else [data] if audio.is_audio(data) else []:
        target = (out / source.relative_to(root)).with_suffix(".npy")
        if target in jobs:
            raise UsageError(f"{source} and {jobs[target].source.name} would both become {target}: rename one of them")
        jobs[target] = Job(source, target, feature)
    if not jobs:
        endings = " ".join(audio.SUFFIXES + audio.AV_SUFFIXES)
        raise DataError(f"{data}: must be a sound file, or a folder that holds some ({endings}). Received: none")
    return list(jobs.values())


def extract(
    jobs: Sequence[Job],
    out: Path,
    feature: Feature,
    *,
    workers: int,
    stop: bool,
    on_file: Callable[[], None],
    tables: Path | None = None,
) -> ExtractSummary:
    """Writes the spectrogram files that are missing, or older than their sound files, and returns what was done.

    Args:
        jobs: from `find_jobs`.
        out: the folder.
        feature: what the spectrograms are.
        workers: processes.
        stop: whether the first file that cannot be used ends the run.
        on_file: called after every file, kept ones included.
        tables: folder whose tables and lists are copied, so that labels and splits stand beside the spectrograms.

    Raises:
        UsageError: the folder holds something else, or spectrograms of another feature, or another run writes there.
        DataError: a file cannot be used, and `stop`.
    """
    _check_folder(out, feature)
    out.mkdir(parents=True, exist_ok=True)
    with held(out / _LOCK, f"{out}: another extract is writing here; wait for it to end"):
        write_feature(out, feature, audio.versions())
        for leftover in [*out.rglob(".*.partial"), *filter(is_temporary, out.iterdir())]:
            leftover.unlink(missing_ok=True)
        _copy_tables(tables, out)
        todo = [job for job in jobs if not _is_done(job)]
        for _ in range(len(jobs) - len(todo)):
            on_file()
        n_written, n_frames, skipped = 0, 0, {}
        for job, made in run_all(_write, todo, workers):
            if isinstance(made, DataError):
                if stop:
                    raise made
                skipped[job.source] = str(made)
            else:
                n_written, n_frames = n_written + 1, n_frames + made
            on_file()
    music_s = n_frames / feature.frames_per_s
    return ExtractSummary(n_written, music_s, len(jobs) - len(todo), skipped)


def _copy_tables(data: Path | None, out: Path) -> None:
    if data is None or not data.is_dir():
        return
    for path in sorted(data.rglob("*")):
        if path.suffix.lower() in _TABLES and path.is_file() and out.resolve() not in path.resolve().parents:
            target = out / path.relative_to(data)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            shutil.copyfile(path, partial)
            partial.replace(target)


def _write(job: Job) -> int | DataError:
    """Writes one file [1, n_bins, n_frames] and returns its frames, or why it cannot be."""
    try:
        values = read_feature(job.source, job.source.stem, job.feature)
    except DataError as error:
        return error
    job.target.parent.mkdir(parents=True, exist_ok=True)
    partial = job.target.with_name(f".{job.target.name}.partial")
    try:
        with partial.open("wb") as file:
            np.lib.format.write_array(file, values[None], allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(job.target)
    finally:
        partial.unlink(missing_ok=True)
    return int(values.shape[1])


def _is_done(job: Job) -> bool:
    if not job.target.is_file():
        return False
    return not job.source.is_file() or job.target.stat().st_mtime_ns >= job.source.stat().st_mtime_ns


def _sound_files(folder: Path) -> Iterator[Path]:
    seen = set()  # links to folders are followed, but not in a circle
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        names = [] if real in seen else names
        seen.add(real)
        yield from (Path(here, name) for name in names if not name.startswith(".") and audio.is_audio(Path(name)))


def _check_folder(out: Path, feature: Feature) -> None:
    if not out.exists() or (out.is_dir() and all(path.name == _LOCK or is_temporary(path) for path in out.iterdir())):
        return
    extracted = find_feature(out) if out.is_dir() and (out / FEATURE_FILE).is_file() else None
    if extracted is None:
        raise UsageError(
            f"{out}: must be empty, or a folder that extract wrote (it would hold {FEATURE_FILE}). Choose another"
        )
    if extracted[1] != feature:
        raise UsageError(f"{out}: holds {extracted[1]}, the config says {feature}. Choose another folder")
