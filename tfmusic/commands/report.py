"""`tfmusic report RUN RUN...`: evaluated runs side by side."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders that have been evaluated")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")


def run(args: argparse.Namespace) -> None:
    """Prints a line for every run and task."""
    from tfmusic.console import console
    from tfmusic.reports.comparison import HEADER, compare, markdown
    from tfmusic.rundir import open_run

    rows = compare([open_run(path) for path in args.runs])
    if args.markdown:
        return console.say(markdown(rows))
    return console.table(rows, HEADER)
