"""`tfmusic verify RECORDS|RUN|EXPORT`: is all of it there, and as it was written."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "folder", type=Path, metavar="RECORDS|RUN|EXPORT", help="what build-records, fit, ensemble or export wrote"
    )


def run(args: argparse.Namespace) -> int:
    """Compares every file with its checksum and prints every fault; returns 2 where there is one."""
    from tfmusic.console import console
    from tfmusic.export.verify import verify

    found = verify(args.folder)
    for fault in found.faults:
        console.show(f"fault: {fault}")
    for note in found.notes:
        console.say(f"note: {note}")
    console.result(kind=found.kind, files=found.n_files, faults=list(found.faults), notes=list(found.notes))
    verdict = f"{len(found.faults)} faults" if found.faults else "whole"
    console.show(f"{args.folder}: {found.kind}, {found.n_files:,} files compared: {verdict}")
    return 2 if found.faults else 0
