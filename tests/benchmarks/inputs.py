"""Streams of segments: ours against raw reading, PyTorch's DataLoader, one array, and the original's way."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.cases import Asked, Case, Command, Worker, run_once
from tests.benchmarks.comparison import Options, Result, Target, measure, opened
from tests.benchmarks.converter import CELL_BYTES, FRAMES, N_BINS, SEGMENT_FRAMES, build_command, write_music

_BATCH = 64
_WORKERS = 2
_MIN_TRACKS = 40
_LD_WARP_FRAMES = 80


def run(options: Options) -> Iterator[Result]:
    """Yields streams, the warp alone, and memory at ten times the tracks."""
    n_tracks = max(round(options.gigabytes * 1e9 / (FRAMES * N_BINS * CELL_BYTES)), 10 * _MIN_TRACKS)
    frames = FRAMES if n_tracks > 10 * _MIN_TRACKS else _short_frames(options)
    small, large = (
        _build(options.work, name, count, frames) for name, count in (("small", n_tracks // 10), ("large", n_tracks))
    )
    yield _streams(options, large)
    yield _warps(options)
    yield _memory(options, small, large)


def _streams(options: Options, records: Path) -> Result:
    work, data = options.work, records.with_name("large-data")
    stored = run_once("tests.benchmarks.rivals:write_array", records=str(records), out=str(work / "array.npy"))
    floats = {"data": str(data), "out": str(work / "floats"), "frames": SEGMENT_FRAMES}
    run_once("tests.benchmarks.original:write_files", **floats, n_examples=min(int(stored["segments"]), 2000))
    shapes = {"batch_size": _BATCH, "frames": options.frames}
    raw = _ours("raw", records=str(records), batch_size=_BATCH)
    plain = _ours("ours", records=str(records), batch_size=_BATCH, frames=None, policy="none")
    training = _ours("ours", records=str(records), **shapes, policy="LD")
    plain_numpy = _ours("without_tensorflow", records=str(records), batch_size=_BATCH, frames=None, policy="none")
    training_numpy = _ours("without_tensorflow", records=str(records), **shapes, policy="LD")
    array = Worker("tests.benchmarks.rivals:array", {"path": str(work / "array.npy"), **shapes})
    loader_arguments = {"data": str(data), **shapes, "workers": _WORKERS}
    loader = Worker("tests.benchmarks.rivals:data_loader", loader_arguments, options.torch_python)
    bins = {"stored_frames": SEGMENT_FRAMES, "n_bins": N_BINS}
    original = Worker("tests.benchmarks.original:stream", {"files": str(work / "floats"), **shapes, **bins})
    with opened(raw, plain, plain_numpy, training, training_numpy, array, loader, original):
        asked = {
            "raw TFRecords, no parsing": (raw, "read"),
            "ours, plain": (plain, "read"),
            "ours, plain, without TensorFlow": (plain_numpy, "read"),
            "one memory-mapped array, plain": (array, "plain"),
            "ours, crop + SpecAugment": (training, "read"),
            "ours, crop + SpecAugment, without TensorFlow": (training_numpy, "read"),
            "one memory-mapped array, crop + SpecAugment": (array, "training"),
            f"PyTorch DataLoader, {_WORKERS} workers": (loader, "read"),
            "the original's way, an example at a time": (original, "read"),
        }
        cases = [Asked(name, worker, part, options.seconds) for name, (worker, part) in asked.items()]
        raw_read, plains, array_plain, trainings, array_training, data_loader, one_by_one = (
            tuple(name for name in asked if name.startswith(begin))
            for begin in ("raw", "ours, plain", "one memory-mapped array, plain", "ours, crop",
                          "one memory-mapped array, crop", "PyTorch", "the original's")
        )  # fmt: skip
        targets = [
            Target(plains, raw_read, "units per wall s", at_least=0.8),
            Target(plains, raw_read, "units per CPU s"),
            Target(plains, array_plain, "units per CPU s", at_least=0.8),
            Target(trainings, array_training, "units per CPU s", at_least=0.8),
            Target(trainings, data_loader, "units per wall s", at_least=8.0),
            Target(trainings, data_loader, "units per CPU s"),
            Target(trainings, one_by_one, "CPU time a unit", at_most=0.3),
        ]
        title = f"inputs: segments of {SEGMENT_FRAMES} x {N_BINS}, cut to {options.frames} for training"
        return measure(title, cases, targets, options)


def _warps(options: Options) -> Result:
    shape = {"batch_size": _BATCH, "frames": SEGMENT_FRAMES, "n_bins": N_BINS, "warp_frames": _LD_WARP_FRAMES}
    ours = _ours("warp", **shape)
    function = "tests.benchmarks.original:warp"
    if options.addons_python is None:
        addons = Worker(function, shape, missing="no --addons-python given")
    else:
        addons = Worker(function, shape, options.addons_python, {"TF_USE_LEGACY_KERAS": "0"})
    with opened(ours, *([] if addons.missing else [addons])):
        cases: list[Case] = [
            Asked("time warp, rows gathered", ours, "warp", options.seconds),
            Asked("sparse_image_warp of tensorflow-addons", addons, "warp", options.seconds),
        ]
        target = Target((cases[0].name,), (cases[1].name,), "units per CPU s", at_least=40.0)
        title = f"time warp: segments of {SEGMENT_FRAMES} x {N_BINS}"
        return measure(title, cases, [target], options)


def _memory(options: Options, small: Path, large: Path) -> Result:
    """Returns peak memory of the stream, and of a whole `fit`, with a tenth of the tracks and with all."""
    arguments = {"batch_size": _BATCH, "frames": options.frames, "policy": "LD"}
    few, many = (_ours("ours", records=str(records), **arguments) for records in (small, large))
    fits = [Command(f"fit, {which}", _fit_command(records), out=records.with_name("run")) for which, records in
            (("a tenth of the tracks", small), ("all tracks", large))]  # fmt: skip
    with opened(few, many):
        cases: list[Case] = [
            Asked("stream, a tenth of the tracks", few, "read", options.seconds),
            Asked("stream, all tracks", many, "read", options.seconds),
            *fits,
        ]
        targets = [
            Target((cases[1].name,), (cases[0].name,), "peak memory", at_most=1.1),
            Target((cases[3].name,), (cases[2].name,), "peak memory", at_most=1.1),
        ]
        title = "memory at ten times the tracks: segments of the streams, whole processes of fit"
        return measure(title, cases, targets, options)


def _fit_command(records: Path) -> list[str]:
    program = [sys.executable, "-m", "tfmusic", "--quiet", "fit", "q1", "--records", str(records)]
    overrides = ["model.name=cnn1d", "model.width=8", "training.epochs=1", "training.warmup_epochs=0"]
    overrides += ["training.fold=0", "training.tensorboard=false"]
    return [*program, "--out", str(records.with_name("run")), *overrides]


def _ours(function: str, **arguments: Any) -> Worker:
    return Worker(f"tests.benchmarks.streams:{function}", arguments)


def _short_frames(options: Options) -> int:
    """Returns the length of tracks of which little data has enough."""
    return max(round(options.gigabytes * 1e9 / (10 * _MIN_TRACKS * N_BINS * CELL_BYTES)), SEGMENT_FRAMES)


def _build(work: Path, name: str, n_tracks: int, frames: int) -> Path:
    """Returns the records of so many tracks; of the larger data the spectrograms stay, for the DataLoader."""
    data, _ = write_music(work / f"{name}-data", n_tracks, frames)
    out = work / name
    Command(name, build_command(data, out, 1), out=None).measure()
    if name == "small":
        shutil.rmtree(data)
    return out
