"""`tfmusic extract CONFIG --data DATA --out DIR`: sound files to spectrogram files."""

import argparse
import os
import time
from pathlib import Path

from tfmusic.commands import arguments
from tfmusic.errors import DataError, UsageError, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.add_config(parser)
    parser.add_argument("--data", type=Path, help="folder of audio, or an audio file")
    parser.add_argument("--out", type=Path, help="folder to write; files get the paths of the data")
    parser.add_argument("--workers", type=arguments.positive, default=os.cpu_count(), help="processes")


def run(args: argparse.Namespace) -> None:
    """Writes the spectrograms that are missing and says how fast."""
    if args.data is None and (data := arguments.take_word(args)) is not None:  # DATA may follow CONFIG
        args.data = Path(data)
    if not args.print_config and None in (args.data, args.out):
        form = f"tfmusic extract {args.config} --data {args.data or 'DATA'} --out {args.out or 'FOLDER'}"
        raise UsageError(f"extract must be given --data and --out: {form}")
    config = arguments.read_config(args)
    if args.print_config:
        arguments.print_config(config)
        return
    from tfmusic.console import console
    from tfmusic.records.build.extract import extract, find_jobs

    jobs = find_jobs(args.data, args.out, config.feature, config.data.min_share)
    if args.dry_run:
        console.show(f"dry run: would write {len(jobs):,} files of {config.feature} to {args.out}")
        return
    begin = time.monotonic()
    with console.progress("extract", len(jobs), "files") as progress:
        summary = extract(
            jobs,
            args.out,
            config.feature,
            workers=args.workers,
            stop=config.data.on_error == "stop",
            on_file=progress.advance,
            tables=args.data,
        )
    seconds, hours = time.monotonic() - begin, summary.music_s / 3600
    skipped = {printable(str(path)): reason for path, reason in sorted(summary.skipped.items())}
    for reason in skipped.values():
        console.show(f"skipped {reason}")
    console.result(
        out=str(args.out),
        written=summary.n_written,
        kept=summary.n_kept,
        skipped=skipped,
        hours=hours,
        seconds=seconds,
    )
    console.show(
        f"{summary.n_written:,} files written, {summary.n_kept:,} kept, {len(skipped):,} skipped;"
        f" {hours:.2f} hours of music in {seconds:.1f} s, {hours / max(seconds, 1e-3):.4f} hours a second: {args.out}"
    )
    if not summary.n_written + summary.n_kept:
        raise DataError(f"{args.data}: none of {len(skipped):,} sound files can be used; their reasons stand above")
