"""The training of one model: stages, epochs, validation, checkpoints, calibration, and what its folder holds."""

import json
import os
import platform
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfmusic import __version__
from tfmusic.config.loading import to_yaml
from tfmusic.config.sections import Config
from tfmusic.console import Progress, console
from tfmusic.core.contract import Contract
from tfmusic.core.files import write_json, write_text
from tfmusic.core.rundir import RunDir
from tfmusic.errors import RunError, TfmusicError
from tfmusic.evaluation.held_out import TrackLogits, fit_scorer
from tfmusic.inputs.pipeline import naming_shards
from tfmusic.models import for_prediction
from tfmusic.models.surgery import load_saved
from tfmusic.records.format import holds_copies
from tfmusic.scoring.metrics import confusion, headline, headline_name
from tfmusic.scoring.track_scorer import save_scorers
from tfmusic.training.callbacks import InputWatch, MetricsLog, StepWatch
from tfmusic.training.job import Job, Stage, stage_of
from tfmusic.training.optimizer import averages, current_rate
from tfmusic.training.processes import joined


def save_state(path: Path, variables: Sequence[Any], progress: Mapping[str, Any]) -> None:
    """Writes every variable of model and optimizer, random states included, and the progress as JSON."""
    arrays = {f"variable_{i}": np.asarray(variable) for i, variable in enumerate(variables)}
    text = np.frombuffer(json.dumps(dict(progress)).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name("state.tmp.npz")
    with tmp.open("wb") as file:
        np.savez(file, allow_pickle=False, progress=text, **arrays)
        file.flush()
        os.fsync(file.fileno())
    tmp.replace(path)


def load_state(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Returns progress and variables of a saved state.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as state:
            progress: dict[str, Any] = json.loads(bytes(state["progress"]).decode())
            n_variables = sum(name.startswith("variable_") for name in state.files)  # NumPy 1 adds a file of its own
            return progress, [state[f"variable_{i}"] for i in range(n_variables)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(
            f"{path}: damaged: must be the saved state of a training ({error}). Begin it anew, without --resume"
        ) from error


def restore(path: Path, variables: Sequence[Any], values: list[np.ndarray]) -> None:
    """Sets variables of model and optimizer to the values of a state.

    Raises:
        RunError: they are of another model or optimizer; `path` names the state.
    """
    shapes, wanted = [value.shape for value in values], [tuple(variable.shape) for variable in variables]
    if shapes != wanted:
        raise RunError(
            f"{path}: must fit the model and optimizer of the config. Received: {len(shapes)} variables where"
            f" {len(wanted)} are wanted, or other shapes; resume with the config the run began with"
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


@contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Puts the moving average of the weights into the model for a while, where the optimizer keeps one."""
    weights = model.trainable_variables
    found = averages(model.optimizer, weights)
    if not found:
        yield
        return
    raw = [np.array(weight) for weight in weights]
    for weight, average in zip(weights, found, strict=True):
        weight.assign(np.array(average))  # a copy: JAX must not be given one buffer twice
    try:
        yield
    finally:
        for weight, value in zip(weights, raw, strict=True):
            weight.assign(value)


Confusions = dict[str, tuple[np.ndarray, tuple[str, ...]]]


def validate(job: Job) -> tuple[dict[str, Any], Confusions]:
    """Returns the track-level metric on the validation fold, calibrated as the finished model will be.

    Of several tasks: the metric of each, and their mean, which chooses the best epoch. Beside it the confusion matrix
    of every task with one label a track, and the names of its classes.
    """
    scored = job.score_validation()
    found: dict[str, tuple[str, float]] = {}
    confusions: Confusions = {}
    for task, part in job.contract.parts().items():
        contract, tracks = part.contract, scored.part(part.columns)
        predicted = _predicted(job, contract, tracks)
        found[task] = (headline_name(contract.kind), headline(predicted, tracks.targets, contract.kind))
        if contract.kind == "single":
            n = len(contract.labels)
            confusions[task] = (confusion(predicted.argmax(1), tracks.targets.argmax(1), n), contract.labels)
    return _numbers(job, found), confusions


def _predicted(job: Job, contract: Contract, tracks: TrackLogits) -> np.ndarray:
    """Returns the predicted labels of the validation tracks, bool [n_tracks, n_labels]."""
    options = job.config.evaluation
    scorer = options.scorer(contract.kind)
    if options.calibrate:
        scorer = scorer.fit(tracks.logits, tracks.targets, (options.aggregator,))
    return scorer.decide(np.stack([scorer.track_scores(logits) for logits in tracks.logits]))


def _numbers(job: Job, found: dict[str, tuple[str, float]]) -> dict[str, Any]:
    if not job.contract.heads:
        name, value = found[job.contract.task]
        return {"metric": name, "validation": value}
    numbers: dict[str, Any] = {f"validation_{task}": value for task, (_, value) in found.items()}
    return {"metric": "mean", "validation": float(np.mean(list(numbers.values())))} | numbers


def calibrate(job: Job) -> None:
    """Fits the scorer of the best checkpoint on the validation tracks and stores it, uncalibrated without them."""
    options, parts = job.config.evaluation, job.contract.parts()
    folds: list[TrackLogits] = []
    has_tags = any(part.contract.kind == "multi" for part in parts.values())
    if job.folds.validation and has_tags and options.calibrate:
        best = load_saved(job.run.checkpoint("best"))
        folds = [job.score_with(for_prediction(best).predict_on_batch)]
    scorers = {
        task: fit_scorer(options, part.contract.kind, [fold.part(part.columns) for fold in folds])
        for task, part in parts.items()
    }
    save_scorers(scorers, job.run.calibration)


@dataclass
class TrainingProgress:
    """How far a training has come; stored with its state."""

    epoch: int = 0
    best_metric: float = -1.0
    best_epoch: int = 0
    kept_metric: float | None = None
    seconds: float = 0.0
    was_finished: bool = False

    def has_ended(self, config: Config) -> bool:
        """Returns whether all epochs are done, or the last few, frozen ones aside, brought no better validation."""
        options = config.training
        patience = options.early_stopping_epochs
        is_stuck = bool(patience) and self.epoch - max(self.best_epoch, options.freeze_epochs) >= patience
        return is_stuck or self.epoch >= options.epochs


@contextmanager
def resumable(run: RunDir) -> Iterator[None]:
    """Prints after an interrupt how to finish a run; removes one without a finished epoch."""
    try:
        yield
    except KeyboardInterrupt:
        if not joined().index:  # the first process prints it; folders of others are temporary
            _print_what_is_kept(run)
        raise


def _print_what_is_kept(run: RunDir) -> None:
    if run.can_resume:
        console.say(f"finished epochs are kept: go on with --resume --out {run.path}")
        return
    if run.calibration.is_file():  # an older, finished run that was not replaced yet
        return
    shutil.rmtree(run.path, ignore_errors=True)
    console.say("no epoch had ended: nothing is kept. Run it again without --resume")


def train(job: Job, *, resume: bool) -> TrainingProgress:
    """Trains a model into its run folder and returns how it went; `resumable` prints how to go on after an interrupt.

    An existing run folder is replaced unless it is resumed.

    Raises:
        RunError: the loss became NaN, or the state to resume is not of this model or these records.
    """
    config, run = job.config, job.run
    progress = _load_progress(job) if resume else TrainingProgress()
    if progress.has_ended(config) and run.calibration.is_file():
        progress.was_finished = True
        if not run.check():  # it was killed between the last two files
            run.seal()
        return progress
    stage = _enter_stage(job, progress.epoch) if progress.epoch and not progress.has_ended(config) else None
    description = job.describe()
    _clear_folder(run, resume=resume)
    _write_folder(job)
    console.log_path = run.log
    try:
        console.say(description)
        _train_stages(job, progress, stage)
        calibrate(job)
        run.seal()
    except KeyboardInterrupt:
        if not run.state.is_file():
            shutil.rmtree(run.path, ignore_errors=True)
        raise
    except (TfmusicError, OSError):
        _clear_leftovers(run)
        if not run.state.is_file():
            shutil.rmtree(run.path, ignore_errors=True)
        raise
    finally:
        console.log_path = None
    return progress


def _load_progress(job: Job) -> TrainingProgress:
    """Returns how far the run had come; raises RunError where it began with other records."""
    run, records = job.run, job.manifest
    has_other_tracks = run.read_json(run.records).get("tracks_sha256") != records.tracks_sha256
    if has_other_tracks or Contract.load(run.contract).metadata != job.contract.metadata:
        what = "other tracks or folds" if has_other_tracks else "other metadata"
        raise RunError(
            f"{run.path}: must be resumed with the records it began with. Received: {records.folder}, which has {what}"
        )
    return TrainingProgress(**load_state(run.state)[0])


def _train_stages(job: Job, progress: TrainingProgress, stage: Stage | None) -> None:
    """Trains the epochs that are left, with one `fit` for each stage; `stage` is the one entered already, if any."""
    config, run = job.config, job.run
    log = MetricsLog(run.metrics, run.tensorboard if config.training.tensorboard else None, keep_epochs=progress.epoch)
    with console.progress("fit", config.training.epochs * job.source.steps_per_epoch, "steps") as bar:
        bar.advance(progress.epoch * job.source.steps_per_epoch)
        while not progress.has_ended(config):
            if stage is None or progress.epoch >= stage.end:
                stage = _enter_stage(job, progress.epoch)
            _fit(job, stage, progress, log, bar)


def _enter_stage(job: Job, epoch: int) -> Stage:
    """Returns the stage of an epoch; model and optimizer are as the stored state has them.

    Every stage but the first begins with the stored weights: Keras leaves their moving averages in the model when
    `fit` returns.
    """
    stage = stage_of(job.config.training, epoch)
    if not epoch:
        job.start_stage(stage)
        return stage
    _, values = load_state(job.run.state)
    # Model first: a cached backbone embeds the tracks when its stage starts.
    restore(job.run.state, job.model.variables, values[: len(job.model.variables)])
    job.start_stage(stage)
    if epoch > stage.first_epoch:
        restore(job.run.state, job.variables, values)
    return stage


def _fit(job: Job, stage: Stage, progress: TrainingProgress, log: MetricsLog, bar: Progress) -> None:
    """Trains the epochs of a stage that are left."""
    epochs, inputs = range(progress.epoch, stage.end), InputWatch()
    ds = job.batches(epochs)
    if job.frozen is None and not job.devices.are_several:  # several devices fetch ahead of a step
        ds = inputs.watched(ds)
    callbacks = [
        StepWatch(bar, job.tracks_of, shows_steps=job.frozen is None),
        _EpochEnd(job, progress, inputs, log, bar),
    ]
    with naming_shards(job.manifest, job.folds.training), job.devices.training(job.learner):
        job.learner.fit(
            job.devices.distribute(ds),
            initial_epoch=epochs.start,
            epochs=epochs.stop,
            steps_per_epoch=job.steps_per_epoch,
            shuffle=False,  # the batches are shuffled already; Keras 3 warns otherwise
            verbose=0,
            callbacks=callbacks,
        )


class _EpochEnd(keras.callbacks.Callback):
    """Validates after every epoch and saves checkpoints, metrics and the state to resume from."""

    def __init__(
        self, job: Job, progress: TrainingProgress, inputs: InputWatch, log: MetricsLog, bar: Progress
    ) -> None:
        super().__init__()
        self.job, self.progress, self.inputs, self.log, self.bar = job, progress, inputs, log, bar
        self.begin_s = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the clocks."""
        self.begin_s = time.monotonic()
        self.inputs.begin_epoch()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Ends the epoch, and the training where nothing is left to do."""
        loss = float(logs["loss"])
        self.job.devices.run_on_one(lambda: self._end_epoch(loss))
        if self.progress.has_ended(self.job.config):
            self.model.stop_training = True

    def _end_epoch(self, loss: float) -> None:
        job, progress = self.job, self.progress
        progress.epoch += 1
        wait_share = self.inputs.wait_share
        numbers: dict[str, Any] = {"epoch": progress.epoch, "loss": loss}
        numbers["learning_rate"] = current_rate(job.learner.optimizer)
        with averaged_weights(job.learner):
            if job.folds.validation:
                scores, confusions = validate(job)
                numbers |= scores
                self.log.show_confusion(confusions, progress.epoch)
            _keep_checkpoints(job, progress, numbers.get("validation"))
        if self.inputs.codes is not None:
            numbers["input_wait"] = wait_share
            self.log.show_inputs(self.inputs.codes, progress.epoch)
        numbers["seconds"] = time.monotonic() - self.begin_s
        progress.seconds += numbers["seconds"]
        if job.frozen:
            self.bar.advance(job.source.steps_per_epoch)
        self.log.write(numbers)
        save_state(job.run.state, job.variables, vars(progress))
        # Shown last, when the epoch can no longer be lost.
        console.say(_epoch_line(numbers, job.config.training.epochs, progress))


def _keep_checkpoints(job: Job, progress: TrainingProgress, metric: float | None) -> None:
    """Saves the model as `last`, and as `best` where it is the one to keep so far."""
    _save_model(job, "last")
    is_best = metric is None or metric > progress.best_metric
    if is_best or job.config.training.select == "last":
        _save_model(job, "best")
        progress.kept_metric = metric
    if is_best:
        progress.best_epoch = progress.epoch
        progress.best_metric = metric if metric is not None else -1.0


def _save_model(job: Job, name: str) -> None:
    path = job.run.checkpoint(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f"{name}.tmp.keras")
    with job.devices.unsynchronized(job.model):
        job.model.save(tmp)
    tmp.replace(path)


def _epoch_line(numbers: dict[str, Any], epochs: int, progress: TrainingProgress) -> str:
    """Returns the line of an epoch, at most 95 columns."""
    line = f"epoch {numbers['epoch']:3d}/{epochs}  loss {numbers['loss']:.4f}"
    if "validation" in numbers:
        line += f"  val {numbers['metric']} {numbers['validation']:.4f}  best {progress.best_epoch}"
    if numbers.get("input_wait") is not None:
        line += f"  wait {100 * numbers['input_wait']:.1f} %"  # for the input, of the time of the steps
    return f"{line}  lr {numbers['learning_rate']:.1e}  {numbers['seconds']:.1f} s"


def _write_folder(job: Job) -> None:
    run = job.run
    write_text(run.config, to_yaml(job.config))
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
        origin = {"loaded": layers.loaded, "skipped": layers.skipped, "track_ids": sorted(job.pretrained.track_ids)}
        write_json(run.pretrained, origin)
    write_json(run.environment, environment())


def environment() -> dict[str, Any]:
    """Returns versions of Python and packages, backend and kind of machine."""
    backend = keras.backend.backend()
    packages = dict.fromkeys(("tensorflow", "keras", "numpy", "pandas", "google-crc32c", backend))
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "backend": backend,
        "packages": {"tfmusic": __version__} | {name: metadata.version(name) for name in packages},
    }


def _clear_folder(run: RunDir, *, resume: bool) -> None:
    """Removes what a new start, or training further, makes false: the model is about to change."""
    if not resume:
        shutil.rmtree(run.path, ignore_errors=True)
        return
    run.unseal()
    for folder in run.evaluations():
        console.warn(f"{folder}: removed, and an export of {run.path} is out of date: the model changes")
        shutil.rmtree(folder)
    _clear_leftovers(run)


def _clear_leftovers(run: RunDir) -> None:
    for leftover in run.path.rglob("*.tmp*"):
        leftover.unlink()
