"""`tfmusic weights musicnn [WHEEL|FOLDER]`: store pretrained weights for the other commands."""

import argparse
from pathlib import Path

from tfmusic.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("name", choices=["musicnn"], help="name of the weights")
    parser.add_argument("source", type=Path, nargs="?", help="the wheel, or a folder with MSD_musicnn/")
    parser.add_argument("--download", action="store_true", help="fetch the wheel with pip (29 MB)")


def run(args: argparse.Namespace) -> None:
    """Stores the weights if their checksum is that of the published ones."""
    from tfmusic.console import console
    from tfmusic.pretrained.musicnn import HOW_TO_GET, LICENCE, PACKAGE, VERSION, download_musicnn, store_musicnn
    from tfmusic.pretrained.taggers import TAGGERS

    if (args.source is None) != args.download:
        raise UsageError(f"weights musicnn must be given either the wheel, which `{HOW_TO_GET}` fetches, or --download")
    folder = download_musicnn() if args.download else store_musicnn(args.source)
    console.result(folder=folder)
    console.say(f"{PACKAGE} {VERSION} ({LICENCE}): {folder}")
    console.say(f"{' and '.join(TAGGERS)} are models now: tfmusic predict {next(iter(TAGGERS))} song.mp3")
