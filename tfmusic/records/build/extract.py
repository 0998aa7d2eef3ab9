"""Sound files to spectrogram files of the same names, as `tfmusic extract` writes them.

A file appears under its name when it is whole, so an interrupted run continues with those that are missing. The file
`feature.json` beside them names the feature, which every reader compares.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfmusic.console import console
from tfmusic.core.feature import Feature
from tfmusic.core.files import check_own_files, held, is_temporary, replacing
from tfmusic.core.pool import run_all
from tfmusic.core.track import MIN_SHARE
from tfmusic.datasets.files import FeatureFiles, short_names
from tfmusic.errors import DataError, UsageError
from tfmusic.features import audio
from tfmusic.features.npy import FEATURE_FILE, find_feature, write_feature
from tfmusic.features.read import file_values, read_feature

_LOCK = ".lock"
_TABLES = (".txt", ".csv", ".tsv")


@dataclass(frozen=True)
class Job:
    """One sound file and the spectrogram file to be written of it."""

    source: Path
    target: Path
    feature: Feature
    min_share: float


@dataclass(frozen=True)
class ExtractSummary:
    """What a run has done: files written, seconds of music in them, files kept, and reasons of those skipped."""

    n_written: int
    music_s: float
    n_kept: int
    skipped: Mapping[Path, str]


def find_jobs(data: Path, out: Path, feature: Feature, min_share: float = MIN_SHARE) -> list[Job]:
    """Returns a job for every sound file below a folder, with its path there, or for one file.

    Raises:
        DataError: it is missing or holds no sound file.
    """
    if not data.exists():
        raise DataError(f"{data}: no such file or folder")
    sources, root = [data] if audio.is_audio(data) else [], data.parent
    if data.is_dir():
        files, root = FeatureFiles.below(data), data
        sources = sorted(path for paths in files.paths.values() for path in paths if audio.is_audio(path))
        if left_out := files.describe_left_out():
            console.warn(f"{data}: {left_out}")
    names = short_names([path.relative_to(root).as_posix() for path in sources])
    if not sources:
        endings = " ".join(audio.SUFFIXES + audio.AV_SUFFIXES)
        raise DataError(f"{data}: must be a sound file, or a folder that holds some ({endings}). Received: none")
    return [Job(source, out / f"{name}.npy", feature, min_share) for source, name in zip(sources, names, strict=True)]


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
        RunError: the folder holds a link.
    """
    _check_folder(out, feature)
    check_own_files(out)
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with held(out / _LOCK, f"{out}: another extract is writing here; wait for it to end"):
        write_feature(out, feature, audio.versions())
        for leftover in [*out.rglob(".*.partial"), *filter(is_temporary, out.rglob(".*"))]:
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
    if is_new and not n_written:  # no folder that holds nothing but tables
        shutil.rmtree(out, ignore_errors=True)
    music_s = n_frames / feature.frames_per_s
    return ExtractSummary(n_written, music_s, len(jobs) - len(todo), skipped)


def _copy_tables(data: Path | None, out: Path) -> None:
    if data is None or not data.is_dir():
        return
    for path in sorted(data.rglob("*")):
        if path.suffix.lower() in _TABLES and path.is_file() and out.resolve() not in path.resolve().parents:
            if data.resolve() not in path.resolve().parents:
                console.warn(f"{path}: not copied, as the link leads out of {data}")
                continue
            target = out / path.relative_to(data)
            with replacing(target) as partial:
                shutil.copyfile(path, partial)


def _write(job: Job) -> int | DataError:
    """Writes one file [1, n_bins, n_frames] and returns its frames, or why it cannot be."""
    try:
        values = read_feature(job.source, job.source.stem, job.feature, min_share=job.min_share)
    except DataError as error:
        return error
    with replacing(job.target) as partial, partial.open("wb") as file:
        np.lib.format.write_array(file, file_values(values, job.feature)[None], allow_pickle=False)
    return int(values.shape[1])


def _is_done(job: Job) -> bool:
    if not job.target.is_file():
        return False
    return not job.source.is_file() or job.target.stat().st_mtime_ns >= job.source.stat().st_mtime_ns


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
