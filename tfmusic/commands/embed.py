"""`tfmusic embed RUN|musicnn INPUT... --out FILE.npz`: embeddings of tracks and their segments."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.commands import arguments
from tfmusic.core.runtime import start_tensorflow
from tfmusic.errors import UsageError

if TYPE_CHECKING:
    from tfmusic.inference.embed import Embedder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("source", help="run folder, or the word musicnn")
    parser.add_argument(
        "inputs", type=Path, nargs="+", help="AI Rush train or test folder, audio or .npy files, or folders of them"
    )
    arguments.add_output(parser, ".npz: the embeddings", required=True)
    parser.add_argument(
        "--weights", type=Path, help="musicnn: the wheel or its folder (default what tfmusic weights stored)"
    )
    parser.add_argument("--network", default="MSD_musicnn", help="musicnn: MSD_musicnn (default) or MTT_musicnn")


def run(args: argparse.Namespace) -> None:
    """Embeds all tracks and says what was written."""
    from tfmusic.console import console
    from tfmusic.inference.inputs import find_tracks

    arguments.check_output(args, ".npz")
    tracks = find_tracks(args.inputs)
    embedder = _embedder(args, [track.feature_path for track in tracks])
    from tfmusic.inference.embed import embed_tracks

    with console.progress("embed", len(tracks), "tracks") as progress:
        skipped = embed_tracks(embedder, tracks, args.out, progress.advance)
    feature = embedder.feature
    n_written = len(tracks) - len(skipped)
    console.result(tracks=n_written, out=args.out, source=feature.source)
    console.say(
        f"{n_written:,} tracks, a vector of {feature.n_bins:,} every {1 / feature.frames_per_s:.1f} s,"
        f" {feature.source}: {args.out}"
    )
    arguments.fail_on_skipped(skipped, len(tracks), lacks="embedding")


def _embedder(args: argparse.Namespace, paths: list[Path]) -> "Embedder":
    from tfmusic.core.rundir import open_run

    if args.source != "musicnn":
        if args.weights is not None:
            raise UsageError(f"--weights is for musicnn; a run has its own. Received: {args.source}")
        run_dir = open_run(Path(args.source))
        start_tensorflow()
        from tfmusic.inference.embed import run_embedder
        from tfmusic.inference.model_folder import load_contract
        from tfmusic.inference.predict import check_inputs

        check_inputs(load_contract(run_dir.path), paths)
        return run_embedder(run_dir)
    start_tensorflow()
    from tfmusic.inference.embed import musicnn_embedder
    from tfmusic.pretrained.musicnn import NETWORKS, stored_musicnn

    if args.network not in NETWORKS:
        raise UsageError(f"--network must be one of {', '.join(NETWORKS)}. Received: {args.network}")
    return musicnn_embedder(args.weights or stored_musicnn(), args.network)
