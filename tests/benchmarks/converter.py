"""`build-records` against `cat` of the same files, the FloatList design, and itself at ten times the tracks."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.cases import Asked, Command, Worker, run_once
from tests.benchmarks.comparison import Options, Result, Target, measure, opened

FRAMES, N_BINS = 7000, 128  # of a track of some 4 minutes
SEGMENT_FRAMES = 313
CELL_BYTES = 4


def run(options: Options) -> Iterator[Result]:
    """Yields both comparisons; what one wrote is removed before the next writes."""
    for compare in (_against_others, _against_fewer_tracks):
        folder = options.work / compare.__name__.strip("_")
        folder.mkdir()
        yield compare(options, folder)
        shutil.rmtree(folder)


def _against_others(options: Options, work: Path) -> Result:
    n_tracks = max(round(options.gigabytes * 1e9 / (FRAMES * N_BINS * CELL_BYTES)), 20)
    data, n_bytes = write_music(work / "data", n_tracks, FRAMES)
    megabytes = n_bytes / 1e6
    files = [str(path) for path in sorted(data.rglob("*.npy"))]
    cat = Command("cat", ["cat", *files], megabytes, out=work / "all", to_file=True)
    one = Command("build-records --workers 1", build_command(data, work / "one", 1), megabytes, out=work / "one")
    two = Command("build-records --workers 2", build_command(data, work / "two", 2), megabytes, out=work / "two")
    arguments = {"data": str(data), "out": str(work / "float_list"), "frames": SEGMENT_FRAMES}
    worker = Worker("tests.benchmarks.original:write", arguments)
    with opened(worker):
        others = Asked("FloatList, TensorFlow's writer", worker, "write", options.seconds)
        targets = [
            Target((one.name,), (cat.name,), "wall time", at_most=1.3),
            Target((two.name,), (cat.name,), "wall time", at_most=1.0),
            Target((one.name,), (cat.name,), "CPU time a unit"),
            Target((one.name,), (others.name,), "units per CPU s", at_least=50.0),
            Target((others.name,), (one.name,), "bytes a unit", at_least=4.0),
        ]
        title = f"converter: MB of float32 spectrograms; {n_tracks:,} tracks, {megabytes:,.0f} MB"
        return measure(title, [cat, one, two, others], targets, options)


def _against_fewer_tracks(options: Options, work: Path) -> Result:
    frames = max(round(options.gigabytes * 1e9 / (options.tracks * N_BINS * CELL_BYTES)), SEGMENT_FRAMES)
    commands = []
    for n_tracks in (options.tracks // 10, options.tracks):
        data, n_bytes = write_music(work / str(n_tracks), n_tracks, frames)
        out = work / f"records-{n_tracks}"
        commands.append(Command(f"{n_tracks:,} tracks", build_command(data, out, 1), n_bytes / 1e6, out=out))
    few, many = commands
    targets = [
        Target((many.name,), (few.name,), "peak memory", at_most=1.05),
        Target((many.name,), (few.name,), "wall time a unit", at_most=1.1),
    ]
    title = f"build-records at ten times the tracks: MB of float32 spectrograms; tracks of {frames:,} frames"
    return measure(title, [few, many], targets, options)


def build_command(data: Path, out: Path, workers: int, *overrides: str) -> list[str]:
    """Returns the command that builds the records of a folder of made-up music."""
    program = [sys.executable, "-m", "tfmusic", "--quiet", "build-records", "q1", "--data", str(data)]
    return [*program, "--out", str(out), "--workers", str(workers), *overrides]


def write_music(folder: Path, n_tracks: int, frames: int) -> tuple[Path, int]:
    """Returns the folder after writing made-up music to it, and its bytes."""
    facts = run_once("tests.benchmarks.made_up:write", folder=str(folder), n_tracks=n_tracks, frames=frames)
    return folder, int(facts["bytes"])
