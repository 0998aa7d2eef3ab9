"""`tfmusic synth DEST`: small learnable data in the AI Rush layout."""

import argparse
import shutil
from pathlib import Path

from tfmusic.commands import arguments
from tfmusic.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("dest", type=Path, metavar="DEST", help="folder to write q1, q2, q3 and answers into")
    parser.add_argument("--tracks", type=arguments.positive, default=240, help="tracks, a fifth of them test tracks")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier call wrote")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other music")


def run(args: argparse.Namespace) -> None:
    """Writes the data."""
    from tfmusic.console import console
    from tfmusic.core.files import check_target
    from tfmusic.datasets import synthetic

    if args.tracks < synthetic.MIN_TRACKS:
        raise UsageError(f"--tracks must be at least {synthetic.MIN_TRACKS}. Received: {args.tracks}")
    check_target(args.dest, overwrite=args.overwrite, marker=synthetic.MARKER, what="made-up music")
    if args.dest.exists():
        shutil.rmtree(args.dest)
    with console.progress("synth", args.tracks, "tracks") as progress:
        synthetic.write(args.dest, n_tracks=args.tracks, seed=args.seed, on_track=progress.advance)
    size = sum(path.stat().st_size for path in args.dest.glob("q1/*/*/mel_spectrogram/*.npy"))
    console.result(tracks=args.tracks, folder=args.dest)
    console.say(f"{args.tracks} tracks, {size / 1e6:.1f} MB, for each of q1, q2, q3: {args.dest}")
