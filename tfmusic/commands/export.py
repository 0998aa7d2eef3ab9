"""`tfmusic export RUN`: a SavedModel that takes a whole track and answers for the track."""

import argparse
from pathlib import Path

from tfmusic.backend import run_on_tensorflow, take_tensorflow
from tfmusic.quiet import start_tensorflow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--out", type=Path, help="folder to write (default RUN/export)")
    parser.add_argument("--task", help="of a model for several tasks, the one to answer")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")


def run(args: argparse.Namespace) -> int:
    """Exports the best model of the run, in a TensorFlow process of its own where another backend is at work."""
    from tfmusic.console import console
    from tfmusic.folders import check_target
    from tfmusic.rundir import open_run

    run_dir = open_run(args.run_dir)
    out = args.out or args.run_dir / "export"
    check_target(out, overwrite=args.overwrite, marker="saved_model.pb", what="exported models")
    if not take_tensorflow():
        flags = [*(["--task", args.task] if args.task else []), *(["--overwrite"] if args.overwrite else [])]
        return run_on_tensorflow(["export", str(args.run_dir), "--out", str(out), *flags])
    start_tensorflow()
    from tfmusic.serving.export import export_run

    export_run(run_dir, out, args.task)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    console.say(f"SavedModel, {size / 1e6:.1f} MB: {out}")
    return 0
