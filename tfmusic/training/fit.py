"""`fit`: trains everything a config asks for into a run folder."""

import atexit
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmusic.config.loading import find_config, load_config
from tfmusic.config.sections import Config
from tfmusic.core.files import check_own_files, check_target, locked, resolved
from tfmusic.core.rundir import RunDir, new_run_dir, unfinished_run_dir
from tfmusic.core.runtime import start_tensorflow
from tfmusic.errors import RunError
from tfmusic.records.manifest import Manifest
from tfmusic.training.processes import Processes, ended_together, join, supervise_in_child_process

if TYPE_CHECKING:
    from tfmusic.training.trainer import TrainingProgress

RUNS = Path("runs")


@dataclass(frozen=True)
class FitResult:
    """What came out of a training.

    Attributes:
        run: the run folder.
        records: the records folder.
        config: the config of the run; of a resumed one, that which it began with.
        progress: how each training went, by its folder in the run, a single one by the empty name; empty of a dry run.
        description: what was trained on what.
    """

    run: RunDir
    records: Path
    config: Config
    progress: Mapping[str, "TrainingProgress"]
    description: str


def fit(
    config: Config,
    *,
    records: Path,
    run_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    processes: Processes = Processes(),  # noqa: B008 - it never changes
    callbacks: Sequence[Any] = (),
) -> FitResult:
    """Trains a config's model, or those of all folds and partners, and returns how it went.

    Args:
        config: the config.
        records: the records folder.
        run_dir: the run folder; by default `runs/TASK/MODEL-N`, to resume the last that was interrupted.
        resume: whether to finish an interrupted run, with the config that it began with.
        overwrite: whether to replace an existing run.
        overrides: of a resumed run, overrides of its config; `training.epochs` alone may change.
        dry_run: whether to check everything and train nothing.
        processes: those that train together; each calls this function, and the first writes the run.
        callbacks: Keras callbacks that are called after the training's own, in every training of several.

    Raises:
        ConfigError, RecordsError: config and records do not go together.
        RunError: there is nothing to resume, the run began with another config or other records, or holds a link.
        UsageError: the run folder exists, or another process writes it.
    """
    manifest = Manifest.read(records)
    run = _choose_run(config, run_dir and resolved(run_dir), resume=resume)
    if resume:
        check_own_files(run.path)
    if not (resume or processes.index or run.has_no_finished_epoch):  # one killed in its first epoch is replaced
        check_target(run.path, overwrite=overwrite, marker="config.yaml", what="run folders")
    if resume:
        config = _resumed_config(config, run, overrides)
    if processes.index:
        run = _temporary_run(run, resume=resume)
    partners = {name: _partner(name, run, resume=resume) for name in config.ensemble.partners}
    supervise_in_child_process(processes)
    # TensorFlow and JAX are imported from here on: they are slow, and a fork would break their threads.
    start_tensorflow()
    with ended_together():
        join(processes)
        from tfmusic.training.devices import for_this_device
        from tfmusic.training.experiment import Experiment

        if not resume:
            config = for_this_device(config)
            partners = {name: for_this_device(partner) for name, partner in partners.items()}
        experiment = Experiment(config, partners, manifest, run, tuple(callbacks))
        parts = experiment.check(resume=resume)
        description = experiment.describe(parts)
        if dry_run:
            experiment.verify_records(parts)
            return FitResult(run, records, config, {}, description)
        with locked(run.path):
            return FitResult(run, records, config, experiment.run(parts, resume=resume), description)


def _choose_run(config: Config, run_dir: Path | None, *, resume: bool) -> RunDir:
    """Returns the run folder to write or to resume; raises RunError where there is nothing to resume."""
    if not resume:
        return RunDir(run_dir) if run_dir else new_run_dir(RUNS, config.task_name, config.model.name)
    run = RunDir(run_dir) if run_dir else unfinished_run_dir(RUNS, config.task_name)
    if not run.can_resume:
        raise RunError(f"{run.path}: nothing to resume: no finished epoch. Leave out --resume")
    return run


def _resumed_config(config: Config, run: RunDir, overrides: Sequence[str]) -> Config:
    """Returns the config that the run began with; overrides must agree with it, but may change its epochs."""
    begun, resumed = load_config(run.config), load_config(run.config, overrides)
    but_epochs = {"training": {"epochs"}}
    is_same = begun.model_dump(exclude=but_epochs) == resumed.model_dump(exclude=but_epochs)
    if not is_same or begun.task != config.task:
        raise RunError(
            f"{run.path}: must be resumed with the config it began with, {run.config}; training.epochs alone may change"
        )
    return resumed


def _temporary_run(run: RunDir, *, resume: bool) -> RunDir:
    """Returns a folder for a process that is not the first; it is removed at exit, as the first writes the same."""
    folder = tempfile.mkdtemp(prefix="tfmusic-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if resume:
        shutil.copytree(run.path, Path(folder) / "run")
    return RunDir(Path(folder) / "run")


def _partner(name: str, run: RunDir, *, resume: bool) -> Config:
    """Returns the config of a partner; of a resumed run the one that it began with."""
    begun = run.path / Path(name).stem / "config.yaml"
    return load_config(begun if resume and begun.is_file() else find_config(name))
