"""`tfmusic fit q2`: train a model on records."""

import argparse
import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.commands import arguments
from tfmusic.core.runtime import start_tensorflow
from tfmusic.errors import RunError, UsageError

if TYPE_CHECKING:
    from tfmusic.config.sections import Config
    from tfmusic.core.rundir import RunDir
    from tfmusic.training.fit import TrainingProgress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.add_config(parser)
    parser.add_argument("--records", help="records folder, or its URL on a store (default records/TASK)")
    parser.add_argument(
        "--out", dest="run_dir", type=Path, metavar="RUN", help="run folder to write (default runs/TASK/MODEL-N)"
    )
    parser.add_argument("--folds", type=arguments.positive, help="cross-validate: a model for each of data.folds folds")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run folder")
    hosts = parser.add_argument_group("several hosts", "the same command on each; SLURM and TF_CONFIG say it all")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    hosts.add_argument("--num-processes", type=arguments.positive, help="how many there are")
    hosts.add_argument("--process-id", type=int, help="number of this one, from 0, which writes the run folder")


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
    from tfmusic.commands import evaluate
    from tfmusic.console import console
    from tfmusic.core.files import check_target, locked
    from tfmusic.core.rundir import RunDir, new_run_dir, unfinished_run_dir
    from tfmusic.records.manifest import Manifest
    from tfmusic.training.distribution import check_backend, find_processes, go_on_in_a_child, join, watched

    processes = find_processes(args.coordinator, args.num_processes, args.process_id, os.environ)
    check_backend(processes, os.environ)
    manifest = Manifest.read(arguments.find_records(args.records or Path("records") / config.task_name))
    root = Path("runs")
    if args.resume:
        folder = RunDir(args.run_dir) if args.run_dir else unfinished_run_dir(root, config.task_name)
        if not folder.has_begun:
            raise RunError(f"{folder.path}: nothing to resume: no finished epoch. Leave out --resume")
        config = _resumed_config(config, folder, args.overrides)
    else:
        folder = RunDir(args.run_dir) if args.run_dir else new_run_dir(root, config.task_name, config.model.name)
        # A folder that was killed in its first epoch is of no use, and is replaced.
        if not processes.index and not folder.is_of_no_use:
            check_target(folder.path, overwrite=args.overwrite, marker="config.yaml", what="run folders")
    if processes.index:
        folder = _scratch(folder, resume=args.resume)
    partners = {name: _partner(name, folder, resume=args.resume) for name in config.ensemble.partners}
    go_on_in_a_child(processes)
    start_tensorflow()
    with watched():
        join(processes)
    from tfmusic.training.experiment import Recipe

    recipe = Recipe(config, partners, manifest, folder)
    recipe.check(resume=args.resume)
    if args.dry_run:
        return console.show(f"dry run: would train {recipe.describe()}, write {folder.path}")
    with watched(), locked(folder.path):
        progress = recipe.run(resume=args.resume, on_part=console.say)
    if processes.index:  # its own folder goes now
        return console.say(f"process {processes.index}: has trained to the end; the run is that of process 0")
    if len(progress) == 1:
        return _show(next(iter(progress.values())), config, folder)
    rows = [
        (name, one.epoch, round(one.seconds), one.kept_metric, one.best_metric, one.best_epoch)
        for name, one in progress.items()
    ]
    header = ("run", "epochs", "seconds", "validation, kept", "best", "in epoch")
    console.table(rows, header)
    evaluate.report(folder, manifest)
    console.result(run=folder.path, parts=[dict(zip(header, row, strict=True)) for row in rows])
    return console.say(f"run: {folder.path}")


def _scratch(folder: "RunDir", *, resume: bool) -> "RunDir":
    """Returns a folder for a process that is not the first; it goes in the end, as the first writes the same."""
    from tfmusic.core.rundir import RunDir

    place = tempfile.mkdtemp(prefix="tfmusic-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    if resume:
        shutil.copytree(folder.path, Path(place) / "run")
    return RunDir(Path(place) / "run")


def _partner(name: str, folder: "RunDir", *, resume: bool) -> "Config":
    """Returns the config of a partner; of a resumed training the one that it began with."""
    from tfmusic.config.loading import find_config, load_config

    begun = folder.path / Path(name).stem / "config.yaml"
    return load_config(begun if resume and begun.is_file() else find_config(name))


def _show(progress: "TrainingProgress", config: "Config", folder: "RunDir") -> None:
    from tfmusic.console import console

    if progress.was_finished:
        console.result(run=folder.path, epochs=progress.epoch)
        return console.say(f"{folder.path}: finished already, {progress.epoch} epochs; more training.epochs go on")
    validates = config.training.fold != "none"
    best = (progress.best_metric, progress.best_epoch) if validates else ("none", progress.best_epoch)
    row = (progress.epoch, round(progress.seconds), *best)
    header = ("epochs", "seconds", "best validation", "in epoch")
    console.table([row], header)
    console.result(run=folder.path, **dict(zip(header, row, strict=True)))
    return console.say(f"run: {folder.path}")


def _resumed_config(config: "Config", folder: "RunDir", overrides: list[str]) -> "Config":
    """Returns the config that the run began with; overrides must agree with it, but may change its epochs."""
    from tfmusic.config.loading import load_config

    begun, asked = load_config(folder.config), load_config(folder.config, overrides)
    but_epochs = {"training": {"epochs"}}
    same = begun.model_dump(exclude=but_epochs) == asked.model_dump(exclude=but_epochs)
    if not same or begun.task != config.task:
        raise RunError(
            f"{folder.path}: must be resumed with the config it began with, {folder.config};"
            " training.epochs alone may change"
        )
    return asked
