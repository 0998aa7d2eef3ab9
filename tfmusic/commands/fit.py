"""`tfmusic fit q2`: train a model on records."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.commands import arguments
from tfmusic.errors import UsageError

if TYPE_CHECKING:
    from tfmusic.training.fit import FitResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.add_config(parser)
    parser.add_argument("--records", help="records folder, or its URL on a store (default records/TASK)")
    parser.add_argument(
        "--out", dest="run_dir", type=Path, metavar="RUN", help="run folder to write (default runs/TASK/MODEL-N)"
    )
    parser.add_argument("--folds", type=arguments.positive, help="cross-validate: a model for each of data.folds folds")
    parser.add_argument("--resume", action="store_true", help="finish a run that was interrupted, or ended by hand")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing run folder")
    hosts = parser.add_argument_group(
        "several hosts", "the same command on each; Slurm, Open MPI and TF_CONFIG need no options"
    )
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
        arguments.print_config(config)
        return
    from tfmusic.training.fit import fit
    from tfmusic.training.processes import check_backend, find_processes

    processes = find_processes(args.coordinator, args.num_processes, args.process_id, os.environ)
    check_backend(processes, os.environ)
    result = fit(
        config,
        records=arguments.find_records(args.records or Path("records") / config.task_name),
        run_dir=args.run_dir,
        resume=args.resume,
        overwrite=args.overwrite,
        overrides=args.overrides,
        dry_run=args.dry_run,
        processes=processes,
    )
    from tfmusic.console import console

    if args.dry_run:
        console.show(*f"dry run: would train {result.description}, write {result.run.path}".split("\n"))
    elif processes.index:  # its own folder is removed now
        console.say(f"process {processes.index}: has trained to the end; the run is that of process 0")
    elif len(result.progress) == 1:
        _show_training(result)
    else:
        _show_experiment(result)


def _show_training(result: "FitResult") -> None:
    from tfmusic.console import console

    progress, run = next(iter(result.progress.values())), result.run
    if progress.was_finished:
        console.result(run=run.path, epochs=progress.epoch)
        console.say(f"{run.path}: finished already, {progress.epoch} epochs; a higher training.epochs trains further")
        return
    best = "none" if result.config.training.fold == "none" else progress.best_metric
    row = (progress.epoch, round(progress.seconds), best, progress.best_epoch)
    header = ("epochs", "seconds", "best validation", "in epoch")
    console.table([row], header)
    console.result(run=run.path, **dict(zip(header, row, strict=True)))
    console.say(f"run: {run.path}")


def _show_experiment(result: "FitResult") -> None:
    from tfmusic.commands import evaluate
    from tfmusic.console import console
    from tfmusic.records.manifest import Manifest

    rows = [
        (name, part.epoch, round(part.seconds), part.kept_metric, part.best_metric, part.best_epoch)
        for name, part in result.progress.items()
    ]
    header = ("run", "epochs", "seconds", "validation, kept", "best", "in epoch")
    console.table(rows, header)
    evaluate.report(result.run, Manifest.read(result.records))
    console.result(run=result.run.path, parts=[dict(zip(header, row, strict=True)) for row in rows])
    console.say(f"run: {result.run.path}")
