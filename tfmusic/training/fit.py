"""The training of one model: prepare, epochs, calibration."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import keras
import numpy as np

from tfmusic.config import Config
from tfmusic.configfile import to_yaml
from tfmusic.console import console
from tfmusic.contract import Contract
from tfmusic.errors import ConfigError, RecordsError
from tfmusic.inputs import augment, pipeline
from tfmusic.inputs.tracks import TrackLogits, score_splits
from tfmusic.models import BUILDERS, build_model
from tfmusic.records.manifest import Manifest
from tfmusic.rundir import RunDir, write_json
from tfmusic.scoring.calibrate import Calibration, best_threshold
from tfmusic.scoring.metrics import headline, headline_name
from tfmusic.training.callbacks import MetricsLog, StepWatch
from tfmusic.training.optimizer import make_loss, make_optimizer
from tfmusic.training.state import averaged_weights, load_state, save_state


@dataclass(frozen=True)
class Folds:
    """Which splits train and which validate; no validation where every fold trains."""

    training: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass
class Progress:
    """How far a training has come; stored with its state."""

    epoch: int = 0
    best_metric: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0


def choose_folds(manifest: Manifest, fold: int | str) -> Folds:
    """Returns the splits of a fold: it validates, all others train; `none` trains on all.

    Raises:
        RecordsError: the records lack that fold.
    """
    names = tuple(name for name in manifest.splits if name.startswith("fold"))
    if fold == "none":
        return Folds(names, ())
    manifest.split(f"fold{fold}")
    return Folds(tuple(name for name in names if name != f"fold{fold}"), (f"fold{fold}",))


def model_contract(config: Config, manifest: Manifest) -> Contract:
    """Returns the contract of the model to be trained.

    Raises:
        RecordsError: the records were built for another task, feature, scale or segment than the config says.
    """
    stored = manifest.contract
    wanted = {
        "task": (config.task, stored.task),
        "feature": (config.feature.model_dump(), dict(stored.feature)),
        "record.scale": (config.record.scale, stored.scale["name"]),
        "record.dtype": (config.record.dtype, stored.dtype),
        "record.segment_frames": (config.record.segment_frames, stored.frames),
        "record.hop_frames": (config.record.hop_frames, stored.hop_frames),
    }
    for key, (asked, found) in wanted.items():
        if asked != found:
            raise RecordsError(
                f"{manifest.folder}: {key} must be {asked} as the config says. Received: {found};"
                f" build the records again or change {key}"
            )
    return Contract(
        task=stored.task,
        kind=stored.kind,
        labels=stored.labels,
        feature=stored.feature,
        scale=stored.scale,
        dtype=stored.dtype,
        frames=config.input.frames,
        hop_frames=config.input.hop_frames,
    )


def fit(config: Config, manifest: Manifest, run: RunDir, *, resume: bool) -> Progress:
    """Trains a model into a run folder and returns how it went.

    Raises:
        ConfigError, RecordsError: config and records do not go together.
        RunError: the loss became NaN, or the state to resume is not of this model.
    """
    job = _Job.prepare(config, manifest, run)
    progress = Progress(**load_state(run.state, job.training_model)) if resume else Progress()
    if not resume:
        _write_folder(config, job, run)
    console.log_path = run.log
    console.say(job.describe())
    log = MetricsLog(run.metrics, run.tensorboard if config.training.tensorboard else None, keep_epochs=progress.epoch)
    total = config.training.epochs * job.steps_per_epoch
    with console.progress("fit", total, "steps") as bar:
        bar.advance(progress.epoch * job.steps_per_epoch)
        while progress.epoch < config.training.epochs and not _is_stuck(progress, config):
            numbers = _train_epoch(job, progress, StepWatch(bar, progress.epoch))
            log.write(numbers)
            console.say(_epoch_line(numbers, config.training.epochs, progress, job))
            save_state(run.state, job.training_model, vars(progress))
    _calibrate(job, run)
    return progress


@dataclass(frozen=True)
class _Job:
    """All that stays the same over the epochs of a training."""

    config: Config
    manifest: Manifest
    run: RunDir
    folds: Folds
    contract: Contract
    model: keras.Model
    training_model: keras.Model
    fill: np.ndarray
    input: pipeline.TrainingInput
    steps_per_epoch: int

    @classmethod
    def prepare(cls, config: Config, manifest: Manifest, run: RunDir) -> "_Job":
        contract, folds = model_contract(config, manifest), choose_folds(manifest, config.training.fold)
        _check_names(config, contract)
        manifest.verify([*folds.training, *folds.validation])
        keras.utils.set_random_seed(config.training.seed)
        keras.config.set_dtype_policy(config.training.precision)
        mean, variance = pipeline.mean_codes(manifest, folds.training)
        n_segments = sum(manifest.split(name).segments for name in folds.training)
        options = _training_input(config, manifest, folds, n_segments)
        model = build_model(
            config.model.name,
            frames=contract.frames,
            n_bins=contract.n_bins,
            n_outputs=len(contract.labels),
            dtype=contract.dtype,
            **_normalisation(config.input.normalize, mean, variance),
            width=None if config.model.width == "default" else config.model.width,
            pooling=config.model.pooling,
            dropout=config.model.dropout,
        )
        # A second model over the same weights is compiled, so that the checkpoints hold no optimizer.
        training_model = keras.Model(model.inputs, model.outputs[0])
        steps = n_segments // options.batch_size
        training_model.compile(
            make_optimizer(config.training, training_model, steps),
            make_loss(config.training, contract.kind),
            jit_compile=config.training.jit,
        )
        return cls(config, manifest, run, folds, contract, model, training_model, mean, options, steps)

    def describe(self) -> str:
        """Returns what will be trained on what, in two lines."""
        counts = {
            part: sum(self.manifest.split(name).tracks for name in names)
            for part, names in (("training", self.folds.training), ("validation", self.folds.validation))
        }
        return (
            f"{self.contract.task}: {self.config.model.name}, {self.model.count_params():,} parameters,"
            f" {self.contract.frames} frames ({self.contract.frames / self.contract.frames_per_s:.1f} s) of"
            f" {self.contract.n_bins} bins\n{counts['training']:,} training tracks, {counts['validation']:,}"
            f" validation tracks, {self.steps_per_epoch} steps an epoch; run folder {self.run.path}"
        )


def _check_names(config: Config, contract: Contract) -> None:
    if config.model.name not in BUILDERS:
        raise ConfigError(f"model.name must be one of {', '.join(BUILDERS)}. Received: {config.model.name}")
    make_loss(config.training, contract.kind)
    if config.training.class_weights == "balanced" and contract.kind == "multi":
        raise ConfigError("training.class_weights: balanced is for one label a track; several tags want loss: focal")


def _normalisation(how: str, mean: np.ndarray, variance: np.ndarray) -> dict[str, np.ndarray | None]:
    if how == "none":
        return {"mean": None, "variance": None}
    if how == "global":  # the variance of all cells is the mean variance and the variance of the means
        total = variance.mean() + mean.var()
        return {"mean": np.full_like(mean, mean.mean()), "variance": np.full_like(mean, total)}
    return {"mean": mean, "variance": variance}


def _training_input(config: Config, manifest: Manifest, folds: Folds, n_segments: int) -> pipeline.TrainingInput:
    section = config.augment
    policy = (
        augment.SpecAugment(
            section.time_warp_frames,
            section.freq_mask_bins,
            section.n_freq_masks,
            section.time_mask_frames,
            section.time_mask_fraction,
            section.n_time_masks,
        )
        if section.policy == "custom"
        else augment.POLICIES[section.policy]
    )
    return pipeline.TrainingInput(
        frames=config.input.frames,
        batch_size=min(config.training.batch_size, n_segments),
        shuffle_segments=min(config.input.shuffle_segments, n_segments),
        policy=policy,
        mixup_alpha=section.mixup_alpha,
        class_weights=_class_weights(manifest, folds) if config.training.class_weights == "balanced" else None,
        seed=config.training.seed,
    )


def _class_weights(manifest: Manifest, folds: Folds) -> np.ndarray:
    """Returns the weight of every class: total / (classes x count), so that the mean weight is 1."""
    counts = pipeline.count_labels(manifest, folds.training)
    return np.asarray(counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1)))


def _train_epoch(job: _Job, progress: Progress, watch: StepWatch) -> dict[str, Any]:
    """Trains one epoch, validates, keeps the checkpoints, and returns the numbers of the epoch."""
    begin = time.monotonic()
    ds = pipeline.for_training(job.manifest, job.folds.training, job.fill, job.input, epoch=progress.epoch)
    history = job.training_model.fit(
        ds, initial_epoch=progress.epoch, epochs=progress.epoch + 1, verbose=0, shuffle=False, callbacks=[watch]
    )
    progress.epoch += 1
    numbers: dict[str, Any] = {"epoch": progress.epoch, "loss": float(history.history["loss"][0])}
    numbers["learning_rate"] = float(np.asarray(job.training_model.optimizer.learning_rate))
    with averaged_weights(job.training_model):
        if job.folds.validation:
            numbers["metric"] = headline_name(job.contract.kind)
            numbers["validation"] = _validate(job)
        _keep_checkpoints(job, progress, numbers.get("validation"))
    numbers["seconds"] = time.monotonic() - begin
    progress.seconds += numbers["seconds"]
    return numbers


def _validate(job: _Job) -> float:
    """Returns the track-level metric on the validation fold; several tags at their best single threshold."""
    scored = _score_validation(job, job.training_model.predict_on_batch)
    calibration = Calibration()
    options = job.config.evaluation
    scores = np.stack(
        [
            calibration.track_scores(logits, kind=job.contract.kind, aggregator=options.aggregator, top_k=options.top_k)
            for logits in scored.logits
        ]
    )
    if job.contract.kind == "multi" and options.calibrate:
        return best_threshold(scores, scored.targets)[1]
    return headline(scores, scored.targets, job.contract.kind)


def _score_validation(job: _Job, predict_fn: Callable[[np.ndarray], Any]) -> TrackLogits:
    return score_splits(
        job.manifest,
        job.folds.validation,
        predict_fn,
        frames=job.contract.frames,
        hop_frames=job.contract.hop_frames,
        batch_size=job.config.evaluation.batch_size,
    )


def _keep_checkpoints(job: _Job, progress: Progress, metric: float | None) -> None:
    _save_model(job.model, job.run, "last")
    if metric is None or metric > progress.best_metric:
        _save_model(job.model, job.run, "best")
        progress.best_epoch = progress.epoch
        progress.best_metric = metric if metric is not None else -1.0


def _save_model(model: keras.Model, run: RunDir, which: str) -> None:
    path = run.checkpoint(which)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f"{which}.tmp.keras")
    model.save(tmp)
    tmp.replace(path)


def _is_stuck(progress: Progress, config: Config) -> bool:
    patience = config.training.early_stopping_epochs
    return bool(patience) and progress.epoch - progress.best_epoch >= patience


def _calibrate(job: _Job, run: RunDir) -> None:
    """Fits the calibration of the best checkpoint on the validation tracks and stores it."""
    calibration = Calibration()
    if job.contract.kind == "multi" and job.config.evaluation.calibrate and job.folds.validation:
        best = keras.saving.load_model(run.checkpoint("best"), compile=False, safe_mode=True)
        best.compile(jit_compile=False)
        scored = _score_validation(job, best.predict_on_batch)
        calibration = Calibration.fit(scored.logits, scored.targets, top_k=job.config.evaluation.top_k)
    calibration.save(run.calibration)


def _epoch_line(numbers: dict[str, Any], epochs: int, progress: Progress, job: _Job) -> str:
    line = f"epoch {numbers['epoch']:3d}/{epochs}  loss {numbers['loss']:.4f}"
    if "validation" in numbers:
        line += f"  validation {numbers['metric']} {numbers['validation']:.4f}"
        line += f"  best {progress.best_metric:.4f} (epoch {progress.best_epoch})"
    rate = job.steps_per_epoch * job.input.batch_size / numbers["seconds"]
    return f"{line}  lr {numbers['learning_rate']:.2e}  {numbers['seconds']:.1f} s, {rate:,.0f} segments/s"


def _write_folder(config: Config, job: _Job, run: RunDir) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    run.config.write_text(to_yaml(config), encoding="utf-8")
    job.contract.save(run.contract)
    records = {
        "folder": str(job.manifest.folder),
        "training": job.folds.training,
        "validation": job.folds.validation,
        "tracks_sha256": job.manifest.tracks_sha256,
    }
    write_json(records, run.records)
    write_json(environment(), run.environment)


def environment() -> dict[str, Any]:
    """Returns versions of Python and packages, backend and kind of machine."""
    packages = ("tfmusic", "tensorflow", "keras", "numpy", "pandas", "google-crc32c")
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "backend": keras.config.backend(),
        "packages": {name: metadata.version(name) for name in packages},
    }
