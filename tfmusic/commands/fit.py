"""`tfmusic fit q2`: train a model on records."""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.commands import arguments
from tfmusic.errors import RunError
from tfmusic.quiet import start_tensorflow

if TYPE_CHECKING:
    from tfmusic.config import Config
    from tfmusic.rundir import RunDir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.add_config(parser)
    parser.add_argument("--records", type=Path, help="records folder (default records/TASK)")
    parser.add_argument("--run-dir", type=Path, help="folder of this run (default runs/TASK/MODEL-N)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run folder")


def run(args: argparse.Namespace) -> None:
    """Trains and prints what came out."""
    config = arguments.read_config(args)
    if args.print_config:
        return arguments.print_config(config)
    from tfmusic.console import console
    from tfmusic.records.manifest import Manifest
    from tfmusic.rundir import RunDir, latest_run_dir, new_run_dir

    manifest = Manifest.read(args.records or Path("records") / config.task)
    root = Path("runs")
    if args.resume:
        folder = RunDir(args.run_dir) if args.run_dir else latest_run_dir(root, config.task)
        if not folder.state.is_file():
            raise RunError(f"{folder.path}: nothing to resume: no finished epoch. Leave out --resume")
        config = _same_config(config, folder, args.overrides)
    else:
        folder = RunDir(args.run_dir) if args.run_dir else new_run_dir(root, config.task, config.model.name)
        arguments.refuse_existing(folder.path, overwrite=args.overwrite)
    start_tensorflow()
    from tfmusic.training.fit import choose_folds, fit, model_contract

    model_contract(config, manifest)
    folds = choose_folds(manifest, config.training.fold)
    if args.dry_run:
        trained, validated = ", ".join(folds.training), ", ".join(folds.validation) or "none"
        return console.say(f"dry run: would train on {trained}, validate on {validated}, write {folder.path}")
    if folder.path.exists() and not args.resume:
        shutil.rmtree(folder.path)
    try:
        progress = fit(config, manifest, folder, resume=args.resume)
    except KeyboardInterrupt:
        if folder.state.is_file():
            console.say(f"finished epochs are kept: go on with --resume --run-dir {folder.path}")
        raise
    best = (progress.best_metric, progress.best_epoch) if folds.validation else ("none", progress.best_epoch)
    console.table([(progress.epoch, round(progress.seconds), *best)], ("epochs", "seconds", "validation", "best epoch"))
    return console.say(f"run: {folder.path}")


def _same_config(config: "Config", folder: "RunDir", overrides: list[str]) -> "Config":
    """Returns the config that the run began with; overrides must not change it, but may raise its epochs."""
    from tfmusic.configfile import load_config

    begun = load_config(folder.config, [text for text in overrides if text.startswith("training.epochs=")])
    if config.model_dump(exclude={"training": {"epochs"}}) != begun.model_dump(exclude={"training": {"epochs"}}):
        raise RunError(f"{folder.path}: must be resumed with the config it began with, {folder.config}")
    return begun
