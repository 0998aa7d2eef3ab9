"""`tfmusic ensemble RUN RUN... --out RUN`: several runs as one, by the weighted mean of their logits."""

import argparse
from pathlib import Path

from tfmusic.commands import arguments
from tfmusic.core.runtime import start_tensorflow
from tfmusic.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders on the same records")
    parser.add_argument("--out", type=Path, required=True, help="run folder to write")
    parser.add_argument("--records", help="records folder, or its URL (default the one the first run was trained on)")
    parser.add_argument("--equal", action="store_true", help="equal weights; else fitted on tracks that all hold out")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run folder")


def run(args: argparse.Namespace) -> None:
    """Joins the runs and reports the whole on held-out tracks."""
    from tfmusic.commands import evaluate
    from tfmusic.console import console
    from tfmusic.core.files import check_target, replacing_folder
    from tfmusic.core.rundir import RunDir, open_run
    from tfmusic.records.manifest import Manifest

    runs = [open_run(path) for path in args.runs]
    if len({run.path.resolve() for run in runs}) < 2 or len({run.path.resolve() for run in runs}) < len(runs):
        raise UsageError("ensemble must be given two different runs or more")
    check_target(args.out, overwrite=args.overwrite, marker="config.yaml", what="run folders")
    records = args.records or Path(runs[0].read_json(runs[0].records)["folder"])  # a path: a file may name no URL
    manifest = Manifest.read(arguments.find_records(records))
    start_tensorflow()
    from tfmusic.training.join import join_runs, show_shares

    with replacing_folder(args.out) as partial:
        shares = join_runs(runs, RunDir(partial), manifest, [1 / len(runs)] * len(runs) if args.equal else None)
    rows = [(str(one.path), share.weight) for one, share in zip(runs, shares, strict=True)]
    show_shares([name for name, _ in rows], shares)
    console.say(f"run: {args.out}")
    console.result(run=args.out, weights=dict(rows))
    if not runs[0].folds() and not RunDir(args.out).read_json(RunDir(args.out).records)["validation"]:
        return console.say(
            "note: every track has trained some of these runs: not calibrated; score the whole on other tracks with"
            " evaluate --records DIR --split NAME"
        )
    return evaluate.report(RunDir(args.out), manifest)
