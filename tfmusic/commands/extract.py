"""`tfmusic extract CONFIG DATA --out DIR`: sound files to spectrogram files."""

import argparse
import os
import time
from pathlib import Path

from tfmusic.commands import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.add_config(parser, data="folder of audio, or an audio file")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; files get the paths of the data")
    parser.add_argument("--workers", type=arguments.positive, default=os.cpu_count(), help="processes")


def run(args: argparse.Namespace) -> None:
    """Writes the spectrograms that are missing and says how fast."""
    config = arguments.read_config(args)
    if args.print_config:
        return arguments.print_config(config)
    from tfmusic.console import console
    from tfmusic.records.build.extract import extract, find_jobs

    feature = config.feature
    jobs = find_jobs(args.data, args.out, feature)
    if args.dry_run:
        return console.show(f"dry run: would write {len(jobs):,} files of {feature} to {args.out}")
    begin, stop = time.monotonic(), config.data.on_error == "stop"
    with console.progress("extract", len(jobs), "files") as progress:
        done = extract(
            jobs, args.out, feature, workers=args.workers, stop=stop, on_file=progress.advance, tables=args.data
        )
    seconds, hours = time.monotonic() - begin, done.music_s / 3600
    for path in sorted(done.skipped):
        console.show(f"skipped {done.skipped[path]}")
    console.result(
        out=str(args.out),
        written=done.n_written,
        kept=done.n_kept,
        skipped={str(path): why for path, why in sorted(done.skipped.items())},
        hours=hours,
        seconds=seconds,
    )
    return console.show(
        f"{done.n_written:,} files written, {done.n_kept:,} kept, {len(done.skipped):,} skipped;"
        f" {hours:.2f} hours of music in {seconds:.1f} s, {hours / max(seconds, 1e-3):.4f} hours a second: {args.out}"
    )
