"""`tfmusic synth --out FOLDER`: small synthetic data in the AI Rush layout."""

import argparse
import shutil

from tfmusic.commands import arguments
from tfmusic.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("dest", nargs="?", help=argparse.SUPPRESS)
    arguments.add_output(parser, "folder for q1, q2, q3 and the labels of their test tracks", metavar="FOLDER")
    parser.add_argument("--tracks", type=arguments.positive, default=240, help="tracks, a fifth of them test tracks")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other music")


def run(args: argparse.Namespace) -> None:
    """Writes the data."""
    from tfmusic.console import console
    from tfmusic.core.files import check_target, resolved
    from tfmusic.datasets import synthetic

    if args.dest is not None or args.out is None:
        raise UsageError(f"--out must name the folder to write: tfmusic synth --out {args.dest or 'FOLDER'}")
    if args.tracks < synthetic.MIN_TRACKS:
        raise UsageError(f"--tracks must be at least {synthetic.MIN_TRACKS}. Received: {args.tracks}")
    check_target(args.out, overwrite=args.overwrite, marker=synthetic.MARKER, what="synthetic music")
    args.out = resolved(args.out)
    if args.out.exists():
        shutil.rmtree(args.out)
    with console.progress("synth", args.tracks, "tracks") as progress:
        synthetic.write(args.out, n_tracks=args.tracks, seed=args.seed, on_track=progress.advance)
    size = sum(path.stat().st_size for path in args.out.glob("q1/*/*/mel_spectrogram/*.npy"))
    console.result(tracks=args.tracks, folder=args.out)
    console.say(f"{args.tracks} tracks, {size / 1e6:.1f} MB, for each of q1, q2, q3: {args.out}")
