"""`tfmusic runs [TASK]`: the runs of a folder at a glance; `tfmusic runs --remove RUN...` removes some."""

import argparse
from pathlib import Path

from tfmusic.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "task", nargs="*", metavar="TASK", help="tasks to show (default: all); with --remove, run folders"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where the runs are (default runs)")
    parser.add_argument("--remove", action="store_true", help="remove the run folders named in place of TASK")


def run(args: argparse.Namespace) -> None:
    """Prints a line for every run, the newest first, or removes runs."""
    from tfmusic.console import console
    from tfmusic.evaluation.compare import OVERVIEW, find_runs, overview, remove_run

    if args.remove:
        if not args.task:
            raise UsageError("--remove needs the run folders to remove: tfmusic runs --remove runs/q2/resnet18-1")
        for path in args.task:
            size = remove_run(Path(path))
            console.show(f"removed {path}: {size / 1e6:,.1f} MB")
            console.result(removed=path)
        return
    runs = find_runs(args.folder, args.task)
    if not runs:
        raise UsageError(
            f"{args.folder}: must hold runs{' of ' + ', '.join(args.task) if args.task else ''}. Received: none"
        )
    rows = [overview(one) for one in runs]
    console.table(rows, OVERVIEW)
    console.result(runs=[dict(zip(OVERVIEW, row, strict=True)) for row in rows])
