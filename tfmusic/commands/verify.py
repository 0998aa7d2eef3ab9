"""`tfmusic verify RECORDS|RUN|EXPORT`: is everything there, and as it was written?"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "folder", type=Path, metavar="RECORDS|RUN|EXPORT", help="folder of build-records, fit, ensemble or export"
    )


def run(args: argparse.Namespace) -> int:
    """Prints every fault; returns 2 where there is one."""
    from tfmusic.console import console
    from tfmusic.integrity import verify
    from tfmusic.pretrained.taggers import find_model

    result = verify(find_model(args.folder))
    for fault in result.faults:
        console.show(f"fault: {fault}")
    for note in result.notes:
        console.say(f"note: {note}")
    console.result(kind=result.kind, files=result.n_files, faults=list(result.faults), notes=list(result.notes))
    verdict = f"{len(result.faults)} faults" if result.faults else "whole" if result.is_compared else "no faults found"
    compared = f"{result.n_files:,} files compared" if result.n_files else "nothing compared"
    console.show(f"{args.folder}: {result.kind}, {compared}: {verdict}")
    return 2 if result.faults else 0
