"""`tfmusic export RUN`: a SavedModel for whole tracks, or the model of windows as ONNX or LiteRT."""

import argparse
from pathlib import Path

from tfmusic.core.runtime import run_on_tensorflow, start_tensorflow, take_tensorflow
from tfmusic.export.formats import FORMATS, export_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default="saved_model",
        help="saved_model takes whole tracks; onnx and litert take windows, for runtimes without TensorFlow",
    )
    parser.add_argument("--out", type=Path, help="folder to write (default RUN/export, or RUN/export-FORMAT)")
    parser.add_argument("--task", help="of a model for several tasks, the one to export")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")


def run(args: argparse.Namespace) -> int:
    """Exports the best model of the run, in a process with TensorFlow where another backend is used."""
    from tfmusic.console import console
    from tfmusic.core.files import check_own_files, check_target
    from tfmusic.core.rundir import open_run
    from tfmusic.inference.model_folder import MODEL_FILES
    from tfmusic.pretrained.taggers import find_model

    run_dir = open_run(find_model(args.run_dir))
    if run_dir.path == args.run_dir:
        check_own_files(run_dir.path)
    out = args.out or args.run_dir / ("export" if args.format == "saved_model" else f"export-{args.format}")
    check_target(out, overwrite=args.overwrite, marker=MODEL_FILES[args.format], what="exported models")
    if not take_tensorflow():
        flags = [*(["--task", args.task] if args.task else []), *(["--overwrite"] if args.overwrite else [])]
        flags += ["--format", args.format, "--out", str(out)]
        if code := run_on_tensorflow(["--quiet", "export", str(args.run_dir), *flags]):
            return code
    else:
        start_tensorflow()
        export_run(run_dir, out, args.format, args.task)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    console.result(export=out, bytes=size)
    console.say(f"{FORMATS[args.format].title}, {size / 1e6:.1f} MB: {out}")
    return 0
