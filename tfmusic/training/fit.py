"""The training of one model: epochs, checkpoints, calibration, and what its folder holds."""

import gc
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras

from tfmusic.config.loading import to_yaml
from tfmusic.config.sections import Config
from tfmusic.console import console
from tfmusic.core.contract import Contract
from tfmusic.core.files import write_json, write_text
from tfmusic.core.rundir import RunDir
from tfmusic.errors import RunError, TfmusicError
from tfmusic.records.format import holds_copies
from tfmusic.records.manifest import Manifest
from tfmusic.training.callbacks import InputWatch, MetricsLog, StepWatch
from tfmusic.training.distribution import joined
from tfmusic.training.environment import environment
from tfmusic.training.frozen import BackboneCache
from tfmusic.training.job import Job
from tfmusic.training.optimizer import current_rate, state_variables
from tfmusic.training.stages import stage_of, stages
from tfmusic.training.state import averaged_weights, load_state, restore, save_state
from tfmusic.training.validation import calibrate, validate


@dataclass
class TrainingProgress:
    """How far a training has come; stored with its state."""

    epoch: int = 0
    best_metric: float = -1.0
    best_epoch: int = 0
    kept_metric: float | None = None
    seconds: float = 0.0
    was_finished: bool = False


def fit(
    config: Config,
    manifest: Manifest,
    run: RunDir,
    *,
    resume: bool,
    cache: BackboneCache | None = None,
    whole: RunDir | None = None,
) -> TrainingProgress:
    """Trains a model into a run folder and returns how it went.

    An existing run folder is replaced, unless it is to be resumed, once all checks are passed. `cache` keeps what a
    frozen backbone makes of the tracks for other trainings on the same records; `whole` is the run to resume where this
    one is a part of it.

    Raises:
        ConfigError, RecordsError: config and records do not go together.
        RunError: the loss became NaN, or the state to resume is not of this model or these records.
    """
    job = Job.prepare(config, manifest, run, resume=resume, cache=cache)
    progress = _resume(job) if resume else TrainingProgress()
    if _has_ended(progress, config) and run.calibration.is_file():
        progress.was_finished = True
        if not run.check():  # it was killed between the last two files
            run.seal()
        return progress
    description = job.describe()
    _clear_folder(run, resume=resume)
    _write_folder(config, job, run)
    console.log_path = run.log
    try:
        console.say(description)
        _train(job, progress)
    except KeyboardInterrupt:
        _say_what_is_kept(run, whole or run)
        raise
    except (TfmusicError, OSError):
        _clear_leftovers(run)
        if not run.state.is_file():
            shutil.rmtree(run.path, ignore_errors=True)
        raise
    finally:
        console.log_path = None
    return progress


def _resume(job: Job) -> TrainingProgress:
    """Returns how far the run had come; model and optimizer are as they were then."""
    _check_same_tracks(job, job.run)
    fields, values = load_state(job.run.state)
    progress = TrainingProgress(**fields)
    if Contract.load(job.run.contract).metadata != job.contract.metadata:
        raise RunError(
            f"{job.run.path}: must be resumed with the records it began with: {job.manifest.folder} has other metadata"
        )
    restore(
        job.run.state, job.model.variables, values[: len(job.model.variables)]
    )  # a backbone to be cached, above all
    job.start_stage(stage_of(job.config.training, progress.epoch - 1))
    restore(job.run.state, _variables(job), values)
    return progress


def _train(job: Job, progress: TrainingProgress) -> None:
    """Trains the epochs that are left, then calibrates the best model."""
    config, run = job.config, job.run
    first_epochs = {stage.first_epoch: stage for stage in stages(config.training)}
    log = MetricsLog(run.metrics, run.tensorboard if config.training.tensorboard else None, keep_epochs=progress.epoch)
    total = config.training.epochs * job.steps_per_epoch
    with console.progress("fit", total, "steps") as bar, _cleared() as clear:
        bar.advance(progress.epoch * job.steps_per_epoch)
        while not _has_ended(progress, config):
            if progress.epoch in first_epochs:
                job.start_stage(first_epochs[progress.epoch])
            numbers = _train_epoch(
                job, progress, StepWatch(bar, progress.epoch, job.tracks_of, shown=job.frozen is None), log
            )
            if job.frozen:
                bar.advance(job.steps_per_epoch)
            clear()
            log.write(numbers)
            save_state(run.state, _variables(job), vars(progress))
            console.say(_epoch_line(numbers, config.training.epochs, progress))  # shown when it cannot be lost
    calibrate(job)
    run.seal()


@contextmanager
def _cleared() -> Iterator[Callable[[], None]]:
    """Yields what gives back the graph of an epoch's input, whose parts refer to each other.

    Python alone would look for such parts only after many epochs. What stands after the first epoch (half a million
    objects) is left out of the search, which then takes a moment.
    """

    def clear() -> None:
        gc.collect()
        if not gc.get_freeze_count():
            gc.freeze()

    try:
        yield clear
    finally:
        gc.unfreeze()


def _train_epoch(job: Job, progress: TrainingProgress, watch: StepWatch, log: MetricsLog) -> dict[str, Any]:
    """Trains one epoch, validates, keeps the checkpoints, and returns the numbers of the epoch."""
    begin = time.monotonic()
    inputs = InputWatch()
    loss = job.train_epoch(progress.epoch, [watch], inputs)
    progress.epoch += 1
    wait_share = inputs.wait_share
    numbers: dict[str, Any] = {"epoch": progress.epoch, "loss": loss}
    numbers["learning_rate"] = current_rate(job.learner.optimizer)
    with averaged_weights(job.learner):
        if job.folds.validation:
            found, confusions = validate(job)
            numbers |= found
            log.show_confusion(confusions, progress.epoch)
        _keep_checkpoints(job, progress, numbers.get("validation"))
    if inputs.codes is not None:
        numbers["input_wait"] = wait_share
        log.show_inputs(inputs.codes, progress.epoch)
    numbers["seconds"] = time.monotonic() - begin
    progress.seconds += numbers["seconds"]
    return numbers


def _variables(job: Job) -> list[Any]:
    """Returns all that a resumed training needs: the variables of the whole model and of the optimizer at work."""
    return [*job.model.variables, *state_variables(job.learner.optimizer)]


def _keep_checkpoints(job: Job, progress: TrainingProgress, metric: float | None) -> None:
    """Saves the model as `last`, and as `best` where it is the one to keep so far."""
    _save_model(job.model, job.run, "last")
    is_best = metric is None or metric > progress.best_metric
    if is_best or job.config.training.select == "last":
        _save_model(job.model, job.run, "best")
        progress.kept_metric = metric
    if is_best:
        progress.best_epoch = progress.epoch
        progress.best_metric = metric if metric is not None else -1.0


def _save_model(model: keras.Model, run: RunDir, which: str) -> None:
    path = run.checkpoint(which)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f"{which}.tmp.keras")
    model.save(tmp)
    tmp.replace(path)


def _has_ended(progress: TrainingProgress, config: Config) -> bool:
    """Returns whether all epochs are done, or none of the last few was the best since the backbone is free."""
    patience = config.training.early_stopping_epochs
    is_stuck = bool(patience) and progress.epoch - max(progress.best_epoch, config.training.freeze_epochs) >= patience
    return is_stuck or progress.epoch >= config.training.epochs


def _say_what_is_kept(run: RunDir, whole: RunDir) -> None:
    """Says how to go on; a folder without a finished epoch is of no use and goes."""
    if joined().index:  # the first process says so of the run; this folder is for the moment
        return
    if not run.state.is_file():
        console.log_path = None
        shutil.rmtree(run.path, ignore_errors=True)
    if whole.has_begun:
        console.say(f"finished epochs are kept: go on with --resume --out {whole.path}")
        return
    shutil.rmtree(whole.path, ignore_errors=True)
    console.say("no epoch had ended: nothing is kept. Run it again without --resume")


def _epoch_line(numbers: dict[str, Any], epochs: int, progress: TrainingProgress) -> str:
    """Returns the line of an epoch, at most 95 columns."""
    line = f"epoch {numbers['epoch']:3d}/{epochs}  loss {numbers['loss']:.4f}"
    if "validation" in numbers:
        line += f"  val {numbers['metric']} {numbers['validation']:.4f}  best {progress.best_epoch}"
    if numbers.get("input_wait") is not None:
        line += f"  wait {100 * numbers['input_wait']:.1f} %"  # for the input, of the time of the steps
    return f"{line}  lr {numbers['learning_rate']:.1e}  {numbers['seconds']:.1f} s"


def _write_folder(config: Config, job: Job, run: RunDir) -> None:
    write_text(run.config, to_yaml(config))
    job.contract.save(run.contract)
    records = {
        "folder": str(job.manifest.folder.resolve()),
        "training": job.folds.training,
        "validation": job.folds.validation,
        "tracks_sha256": job.manifest.tracks_sha256,
        "training_tracks": job.manifest.track_ids([name for name in job.folds.training if not holds_copies(name)]),
        "backbone_tracks": sorted(job.backbone_tracks),
    }
    write_json(run.records, records)
    if job.pretrained is not None:
        layers = job.pretrained.layers
        known = {"loaded": layers.loaded, "skipped": layers.skipped, "track_ids": sorted(job.pretrained.track_ids)}
        write_json(run.pretrained, known)
    write_json(run.environment, environment())


def _check_same_tracks(job: Job, run: RunDir) -> None:
    """Refuses to go on with records that were dealt anew: what validated before would now train."""
    if run.read_json(run.records).get("tracks_sha256") != job.manifest.tracks_sha256:
        raise RunError(
            f"{run.path}: must be resumed with the records it began with. Received: {job.manifest.folder}, which"
            " holds other tracks or deals them otherwise"
        )


def _clear_folder(run: RunDir, *, resume: bool) -> None:
    """Removes what a new start, or going on, makes false: the model is about to change."""
    if not resume:
        shutil.rmtree(run.path, ignore_errors=True)
        return
    run.unseal()
    if run.evaluation.is_dir():
        console.warn(f"{run.evaluation}: removed, and an export of {run.path} is out of date: the model changes")
        shutil.rmtree(run.evaluation)
    _clear_leftovers(run)


def _clear_leftovers(run: RunDir) -> None:
    for leftover in run.path.rglob("*.tmp*"):
        leftover.unlink()
