"""`tfmusic export RUN`: a SavedModel that answers for whole tracks; or the segment model as ONNX or LiteRT."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.core.runtime import run_on_tensorflow, start_tensorflow, take_tensorflow

if TYPE_CHECKING:
    from tfmusic.core.rundir import RunDir

_SEGMENTS = {"onnx": "model.onnx", "litert": "model.tflite"}  # as serving.exported has them
_NAMES = {"saved_model": "SavedModel", "onnx": "ONNX, segment model", "litert": "LiteRT, segment model"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--format",
        choices=("saved_model", *_SEGMENTS),
        default="saved_model",
        help="saved_model takes whole tracks; onnx and litert are the model of a segment, for other runtimes",
    )
    parser.add_argument("--out", type=Path, help="folder to write (default RUN/export, or RUN/export-FORMAT)")
    parser.add_argument("--task", help="of a model for several tasks, the one to answer")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")


def run(args: argparse.Namespace) -> int:
    """Exports the best model of the run, in a TensorFlow process of its own where another backend is at work."""
    from tfmusic.console import console
    from tfmusic.core.files import check_target
    from tfmusic.core.rundir import open_run

    run_dir = open_run(args.run_dir)
    out = args.out or args.run_dir / ("export" if args.format == "saved_model" else f"export-{args.format}")
    marker = _SEGMENTS.get(args.format, "saved_model.pb")
    check_target(out, overwrite=args.overwrite, marker=marker, what="exported models")
    if not take_tensorflow():
        flags = [*(["--task", args.task] if args.task else []), *(["--overwrite"] if args.overwrite else [])]
        flags += ["--format", args.format, "--out", str(out)]
        if code := run_on_tensorflow(["--quiet", "export", str(args.run_dir), *flags]):
            return code
    else:
        start_tensorflow()
        _export(run_dir, out, args.format, args.task)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    console.result(export=out, bytes=size)
    console.say(f"{_NAMES[args.format]}, {size / 1e6:.1f} MB: {out}")
    return 0


def _export(run_dir: "RunDir", out: Path, form: str, task: str | None) -> None:
    if form == "saved_model":
        from tfmusic.export.savedmodel import export_run

        export_run(run_dir, out, task)
    else:
        from tfmusic.export.formats import export_segments

        export_segments(run_dir, out, form, task)
