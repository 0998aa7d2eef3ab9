"""`tfmusic report RUN RUN... [--out FILE.html]`: evaluated runs side by side."""

import argparse
from pathlib import Path

from tfmusic.commands import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders that have been evaluated")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    arguments.add_output(parser, ".html: the runs in one page, with curves and the differences of their configs")


def run(args: argparse.Namespace) -> None:
    """Prints a line for every run and task, and writes the page where one is asked for."""
    arguments.check_output(args, ".html")
    from tfmusic.console import console
    from tfmusic.core.files import write_text
    from tfmusic.core.rundir import open_run
    from tfmusic.evaluation.compare import HEADER, compare, markdown

    runs = [open_run(path) for path in args.runs]
    rows = compare(runs)
    if args.markdown:
        console.show(*markdown(rows).split("\n"))
    else:
        console.table(rows, HEADER)
    console.result(runs=[dict(zip(HEADER, row, strict=True)) for row in rows])
    if args.out is not None:
        from tfmusic.reports.evaluation_page import comparison_page

        write_text(args.out, comparison_page(runs))
        console.say(f"page: {args.out}")
        console.result(page=args.out)
