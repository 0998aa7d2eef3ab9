"""`tfmusic fit q2`: train a model on records."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.commands import arguments
from tfmusic.errors import RunError, UsageError
from tfmusic.quiet import start_tensorflow

if TYPE_CHECKING:
    from tfmusic.config import Config
    from tfmusic.records.manifest import Manifest
    from tfmusic.rundir import RunDir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.add_config(parser)
    parser.add_argument("--records", type=Path, help="records folder (default records/TASK)")
    parser.add_argument("--run-dir", type=Path, help="folder of this run (default runs/TASK/MODEL-N)")
    parser.add_argument("--folds", type=arguments.positive, help="cross-validate: a model for each of data.folds folds")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run folder")


def run(args: argparse.Namespace) -> None:
    """Trains and prints what came out."""
    if args.folds is not None:
        args.overrides = [*args.overrides, "training.fold=all"]
    config = arguments.read_config(args)
    if args.folds not in (None, config.data.folds):
        raise UsageError(
            f"--folds must be {config.data.folds}, into which the records are dealt (data.folds). Received:"
            f" {args.folds}; for others build the records with data.folds={args.folds}"
        )
    if args.print_config:
        return arguments.print_config(config)
    from tfmusic.console import console
    from tfmusic.folders import check_target
    from tfmusic.records.manifest import Manifest
    from tfmusic.rundir import RunDir, latest_run_dir, new_run_dir

    manifest = Manifest.read(args.records or Path("records") / config.task_name)
    root = Path("runs")
    if args.resume:
        folder = RunDir(args.run_dir) if args.run_dir else latest_run_dir(root, config.task_name)
        if not folder.state.is_file() and not folder.fold(0).state.is_file():
            raise RunError(f"{folder.path}: nothing to resume: no finished epoch. Leave out --resume")
        config = _resumed_config(config, folder, args.overrides)
    else:
        folder = RunDir(args.run_dir) if args.run_dir else new_run_dir(root, config.task_name, config.model.name)
        check_target(folder.path, overwrite=args.overwrite, marker="config.yaml", what="run folders")
    start_tensorflow()
    if config.training.fold == "all":
        return _cross_validate(config, manifest, folder, resume=args.resume, dry_run=args.dry_run)
    from tfmusic.training.checks import check
    from tfmusic.training.fit import fit

    _, folds = check(config, manifest, resume=args.resume)
    if args.dry_run:
        trained, validated = ", ".join(folds.training), ", ".join(folds.validation) or "none"
        return console.say(f"dry run: would train on {trained}, validate on {validated}, write {folder.path}")
    progress = fit(config, manifest, folder, resume=args.resume)
    if progress.was_finished:
        return console.say(f"{folder.path}: finished already, {progress.epoch} epochs; more training.epochs go on")
    best = (progress.best_metric, progress.best_epoch) if folds.validation else ("none", progress.best_epoch)
    console.table(
        [(progress.epoch, round(progress.seconds), *best)], ("epochs", "seconds", "best validation", "in epoch")
    )
    return console.say(f"run: {folder.path}")


def _cross_validate(config: "Config", manifest: "Manifest", folder: "RunDir", *, resume: bool, dry_run: bool) -> None:
    """Trains a model for every fold and reports all of them on the tracks that each holds out."""
    from tfmusic.commands.evaluate import report_folds
    from tfmusic.console import console
    from tfmusic.training.checks import check
    from tfmusic.training.folds import cross_validate, fold_configs

    if dry_run:
        for one in fold_configs(config):
            check(one, manifest, resume=resume)
        return console.say(f"dry run: would train {config.data.folds} models, one for each fold, write {folder.path}")
    went = cross_validate(config, manifest, folder, resume=resume, on_fold=lambda number: console.say(f"fold {number}"))
    rows = [
        (f"fold{number}", one.epoch, round(one.seconds), one.kept_metric, one.best_metric, one.best_epoch)
        for number, one in enumerate(went)
    ]
    console.table(rows, ("fold", "epochs", "seconds", "validation, kept", "best", "in epoch"))
    report_folds(folder, manifest)
    return console.say(f"run: {folder.path}")


def _resumed_config(config: "Config", folder: "RunDir", overrides: list[str]) -> "Config":
    """Returns the config that the run began with; overrides must agree with it, but may change its epochs."""
    from tfmusic.configfile import load_config

    begun, asked = load_config(folder.config), load_config(folder.config, overrides)
    but_epochs = {"training": {"epochs"}}
    same = begun.model_dump(exclude=but_epochs) == asked.model_dump(exclude=but_epochs)
    if not same or begun.task != config.task:
        raise RunError(
            f"{folder.path}: must be resumed with the config it began with, {folder.config};"
            " training.epochs alone may change"
        )
    return asked
