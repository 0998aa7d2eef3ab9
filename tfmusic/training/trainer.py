"""The training of one model: stages, epochs, validation, checkpoints, calibration, and what its folder holds."""

import json
import platform
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfmusic import __version__
from tfmusic.config.loading import to_yaml
from tfmusic.config.sections import Config, TrainingSection
from tfmusic.console import Progress, console
from tfmusic.core.contract import Contract
from tfmusic.core.files import append_line, is_temporary, replacing, write_json, write_text
from tfmusic.core.rundir import RunDir
from tfmusic.errors import RunError, TfmusicError
from tfmusic.evaluation.held_out import TrackLogits, fit_scorer
from tfmusic.features.npy import open_arrays
from tfmusic.inputs.batches import naming_shards
from tfmusic.models import for_prediction
from tfmusic.models.surgery import load_saved, save
from tfmusic.records.format import holds_copies
from tfmusic.scoring.metrics import confusion, headline_name
from tfmusic.scoring.ranking import validation_metric
from tfmusic.scoring.track_scorer import save_scorers
from tfmusic.training.callbacks import InputWatch, MetricsLog, StepWatch
from tfmusic.training.job import Job, Stage, stage_of
from tfmusic.training.optimizer import averages, current_rate
from tfmusic.training.processes import joined, noting_interrupt


def save_state(path: Path, variables: Sequence[Any], progress: Mapping[str, Any]) -> None:
    """Writes every variable of model and optimizer, random states included, and the progress as JSON."""
    arrays = {f"variable_{i}": np.asarray(variable) for i, variable in enumerate(variables)}
    text = np.frombuffer(json.dumps(dict(progress)).encode(), np.uint8)
    with replacing(path) as tmp, tmp.open("wb") as file:
        np.savez(file, allow_pickle=False, progress=text, **arrays)


def load_state(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Returns progress and variables of a saved state.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        with open_arrays(path) as state:
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


_LEAST_GAIN = 1e-4  # of a validation score or a loss, for training.schedule=plateau; that of Keras

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
        predicted, scores = _predicted(job, contract, tracks)
        name = job.config.training.monitor or headline_name(contract.kind)
        found[task] = (name, validation_metric(name, predicted, scores, tracks.targets))
        if contract.kind == "single":
            n = len(contract.labels)
            confusions[task] = (confusion(predicted.argmax(1), tracks.targets.argmax(1), n), contract.labels)
    return _numbers(job, found), confusions


def _predicted(job: Job, contract: Contract, tracks: TrackLogits) -> tuple[np.ndarray, np.ndarray]:
    """Returns the predicted labels of the validation tracks, bool [n_tracks, n_labels], and their scores."""
    options = job.config.evaluation
    scorer = options.scorer(contract.kind)
    if options.calibrate:
        scorer = scorer.fit(tracks.logits, tracks.targets, (options.aggregator,))
    scores = np.stack([scorer.track_scores(logits) for logits in tracks.logits])
    return scorer.decide(scores), scores


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
    plateau_best: float | None = None
    plateau_epochs: int = 0
    rate_factor: float = 1.0

    def follow_plateau(self, value: float, options: TrainingSection) -> None:
        """Notes a validation score, or minus a loss; lets the rate fall after `plateau_epochs` without a better one."""
        self.plateau_epochs += 1
        if self.plateau_best is None or value > self.plateau_best + _LEAST_GAIN:
            self.plateau_best, self.plateau_epochs = value, 0
        elif self.plateau_epochs >= options.plateau_epochs:
            self.rate_factor, self.plateau_epochs = self.rate_factor * options.plateau_factor, 0

    def set_rate(self, optimizer: Any, options: TrainingSection) -> None:
        """Sets the learning rate of an optimizer as the plateaus so far want it."""
        if options.schedule == "plateau":
            optimizer.learning_rate = options.learning_rate * self.rate_factor

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


def train(job: Job, *, resume: bool, callbacks: Sequence[keras.callbacks.Callback] = ()) -> TrainingProgress:
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
    console.log_fn = partial(append_line, run.log)
    try:
        console.say(*description.split("\n"))
        _train_stages(job, progress, stage, callbacks)
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
        console.log_fn = None
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


def _train_stages(
    job: Job, progress: TrainingProgress, stage: Stage | None, callbacks: Sequence[keras.callbacks.Callback]
) -> None:
    """Trains the epochs that are left, with one `fit` for each stage; `stage` is the one entered already, if any."""
    config, run = job.config, job.run
    log = MetricsLog(run.metrics, run.tensorboard if config.training.tensorboard else None, keep_epochs=progress.epoch)
    n_steps = config.training.epochs * job.source.steps_per_epoch
    with console.progress("fit", n_steps, "steps") as bar, noting_interrupt() as interrupt:
        bar.advance(progress.epoch * job.source.steps_per_epoch)
        while not progress.has_ended(config):
            if stage is None or progress.epoch >= stage.end:
                stage = _enter_stage(job, progress.epoch)
            _fit(job, stage, progress, log, bar, [*callbacks, _EndByHand(interrupt)])
            if job.learner.stop_training:
                break
    if not progress.has_ended(config):
        console.say(
            f"ended by hand after epoch {progress.epoch} of {config.training.epochs}: the run is complete;"
            f" --resume --out {run.path} trains the others"
        )


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


def _fit(
    job: Job,
    stage: Stage,
    progress: TrainingProgress,
    log: MetricsLog,
    bar: Progress,
    own: Sequence[keras.callbacks.Callback],
) -> None:
    """Trains the epochs of a stage that are left."""
    if progress.epoch == stage.first_epoch:
        progress.plateau_best, progress.plateau_epochs, progress.rate_factor = None, 0, 1.0
    progress.set_rate(job.learner.optimizer, job.config.training)
    epochs, inputs = range(progress.epoch, stage.end), InputWatch()
    end = _EpochEnd(job, progress, inputs, log, bar)
    if job.config.training.optimizer == "lbfgs":
        watching = keras.callbacks.CallbackList([end, *own], model=job.learner, epochs=1, steps=1)
        watching.on_train_begin()
        watching.on_epoch_begin(epochs.start)
        assert job.frozen is not None  # the config wants the cache
        watching.on_epoch_end(epochs.start, {"loss": job.frozen.solve_head()})
        watching.on_train_end()
        return
    ds = job.batches(epochs)
    if job.frozen is None and not job.devices.are_several:  # several devices fetch ahead of a step
        ds = inputs.watched(ds)
    callbacks = [
        StepWatch(bar, job.tracks_of, shows_steps=job.frozen is None),
        end,
        *own,  # last: they see the numbers of the epoch in `logs`
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


class _EndByHand(keras.callbacks.Callback):
    """Ends the training after the epoch in which an event was set."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self.event = event

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Ends the training."""
        if self.event.is_set():
            self.model.stop_training = True


class _EpochEnd(keras.callbacks.Callback):
    """Validates after every epoch and saves checkpoints, metrics and the state to resume from."""

    def __init__(
        self, job: Job, progress: TrainingProgress, inputs: InputWatch, log: MetricsLog, bar: Progress
    ) -> None:
        super().__init__()
        self.job, self.progress, self.inputs, self.log, self.bar = job, progress, inputs, log, bar
        self.begin_s = time.monotonic()
        self.numbers: dict[str, Any] = {}  # of the last epoch, as in metrics.jsonl

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the clocks."""
        self.begin_s = time.monotonic()
        self.inputs.begin_epoch()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Ends the epoch, and the training where nothing is left to do."""
        loss = float(logs["loss"])
        self.job.devices.run_on_one(lambda: self._end_epoch(loss))
        logs.update(self.numbers)
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
        self.numbers = numbers
        progress.follow_plateau(numbers.get("validation", -loss), job.config.training)
        progress.set_rate(job.learner.optimizer, job.config.training)
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
    with replacing(job.run.checkpoint(name)) as tmp, job.devices.unsynchronized(job.model):
        save(job.model, tmp)


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
    """Returns versions of Python and installed packages, backend and kind of machine."""
    backend, versions = keras.backend.backend(), {"tfmusic": __version__}
    for name in ("tensorflow", "keras", "numpy", "pandas", "google-crc32c", backend):
        with suppress(metadata.PackageNotFoundError):  # JAX needs no TensorFlow
            versions[name] = metadata.version(name)
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "backend": backend,
        "packages": versions,
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
    for leftover in filter(is_temporary, run.path.rglob(".*")):
        leftover.unlink()
