"""What stays the same over the epochs of a training: folds, contract, model, batches."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfmusic.config import Config
from tfmusic.contract import Contract
from tfmusic.errors import ConfigError, RecordsError, RunError
from tfmusic.features.embeddings import NAME as EMBEDDING
from tfmusic.inputs import augment, pipeline
from tfmusic.models import BUILDERS, build_model
from tfmusic.pretrained.sources import check_source, check_source_run, find_weights
from tfmusic.pretrained.transplant import Transplant, transplant
from tfmusic.records.manifest import Manifest
from tfmusic.rundir import RunDir, open_run
from tfmusic.training.optimizer import make_loss, make_optimizer, slow_down
from tfmusic.training.stages import Stage


@dataclass(frozen=True)
class Folds:
    """Which splits train and which validate; no validation where every fold trains."""

    training: tuple[str, ...]
    validation: tuple[str, ...]


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
    wanted: dict[str, tuple[Any, Any]] = {
        "task": (config.task_name, stored.task),
        "data.folds": (config.data.folds, manifest.settings.get("folds")),
        "data.seed": (config.data.seed, manifest.settings.get("split_seed")),
    }
    # Embeddings say themselves what they are; the config describes spectrograms.
    wanted |= (
        {}
        if is_embedding(stored)
        else {
            "feature": (config.feature.model_dump(), dict(stored.feature)),
            "record.scale": (config.record.scale, stored.scale["name"]),
            "record.dtype": (config.record.dtype, stored.dtype),
            "record.segment_frames": (config.record.segment_frames, stored.frames),
            "record.hop_frames": (config.record.hop_frames, stored.hop_frames),
        }
    )
    for key, (asked, found) in wanted.items():
        if asked != found:
            raise RecordsError(
                f"{manifest.folder}: {key} must be {asked} as the config says. Received: {found};"
                f" build the records again or change {key}"
            )
    if is_embedding(stored):
        return stored
    return replace(stored, frames=config.input.frames, hop_frames=config.input.hop_frames)


def is_embedding(contract: Contract) -> bool:
    """Returns whether the input is embeddings rather than spectrograms."""
    return bool(contract.feature["name"] == EMBEDDING)


def _build(config: Config, contract: Contract, mean: np.ndarray, variance: np.ndarray) -> keras.Model:
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(config.training.precision)
    try:
        return build_model(
            config.model.name,
            frames=contract.frames,
            n_bins=contract.n_bins,
            n_outputs={head.task: len(head.labels) for head in contract.heads} or len(contract.labels),
            dtype=contract.dtype,
            **_normalisation(config.input.normalize, mean, variance),
            width=None if config.model.width == "default" else config.model.width,
            pooling=None if config.model.pooling == "default" else config.model.pooling,
            dropout=config.model.dropout,
        )
    finally:
        keras.mixed_precision.set_global_policy(before)


def check(config: Config, manifest: Manifest) -> tuple[Contract, Folds]:
    """Returns contract and folds of a training to come.

    Raises:
        ConfigError: no such model, or a loss or weights that are not for this kind of labels.
        RecordsError: the records are not those that the config describes.
    """
    contract, folds = model_contract(config, manifest), choose_folds(manifest, config.training.fold)
    if config.model.name not in BUILDERS:
        raise ConfigError(f"model.name must be one of {', '.join(BUILDERS)}. Received: {config.model.name}")
    if is_embedding(contract) and config.model.name != "mlp":
        raise ConfigError(
            f"model.name must be mlp, as {manifest.folder} holds embeddings. Received: {config.model.name}"
        )
    _make_losses(config, contract)
    check_source(config)
    if config.training.class_weights == "balanced" and contract.kind != "single":
        raise ConfigError("training.class_weights: balanced is for one label a track; several tags want loss: focal")
    return contract, folds


def _make_losses(config: Config, contract: Contract) -> Any:
    """Returns the loss, or that of every task where there are several; raises ConfigError as `make_loss`."""
    losses = {task: make_loss(config.training, part.contract.kind) for task, part in contract.parts().items()}
    return losses if contract.heads else losses[contract.task]


@dataclass(frozen=True)
class Pretrained:
    """Where a trunk comes from.

    Attributes:
        layers: which layers hold its weights.
        track_keys: the tracks that trained it, as `Manifest.track_keys` names them, where they are known.
    """

    layers: Transplant
    track_keys: frozenset[str]


def _load_pretrained(
    config: Config, contract: Contract, model: keras.Model, run: RunDir, *, resume: bool
) -> Pretrained:
    """Returns the trunk that the config asks for, now in the model; a resumed run only reads again what it was.

    Raises:
        ConfigError, RunError: the weights are missing or not for this model.
    """
    if resume:
        known = run.read_json(run.pretrained)
        layers = Transplant(tuple(known["loaded"]), known["skipped"])
        return Pretrained(layers, frozenset(known["track_keys"]))
    keys: frozenset[str] = frozenset()
    if config.model.init_from != "none":
        records = check_source_run(open_run(Path(config.model.init_from)), contract)
        keys = frozenset([*records.get("training_keys", ()), *records.get("trunk_keys", ())])
    layers = transplant(model, find_weights(config.model))
    if not layers.loaded:
        raise RunError(
            f"model.weights={config.model.weights}, model.init_from={config.model.init_from}: must share layers with"
            f" model.name={config.model.name}, model.width={config.model.width}. Received: none\n{layers.describe()}"
        )
    return Pretrained(layers, keys)


@dataclass(frozen=True)
class Job:
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
    pretrained: Pretrained | None

    @classmethod
    def prepare(cls, config: Config, manifest: Manifest, run: RunDir, *, resume: bool = False) -> "Job":
        """Returns the job after all checks; shards are compared with their checksums.

        Raises:
            ConfigError, RecordsError: config and records do not go together, or a shard is damaged.
            RunError: pretrained weights are missing, damaged, or not for this model.
        """
        contract, folds = check(config, manifest)
        manifest.verify([*folds.training, *folds.validation])
        keras.utils.set_random_seed(config.training.seed)
        mean, variance = pipeline.cell_statistics(manifest, folds.training)
        n_segments = sum(manifest.split(name).segments for name in folds.training)
        options = _training_input(config, manifest, folds, n_segments, contract.frames)
        model = _build(config, contract, mean, variance)
        pretrained = (
            _load_pretrained(config, contract, model, run, resume=resume) if config.model.is_pretrained else None
        )
        # A second model over the same weights is compiled, so that the checkpoints hold no optimizer.
        heads = {head.task: model.get_layer(f"logits_{head.task}").output for head in contract.heads}
        training_model = keras.Model(model.input, heads or model.outputs[0])
        steps = n_segments // options.batch_size
        return cls(config, manifest, run, folds, contract, model, training_model, mean, options, steps, pretrained)

    def start_stage(self, stage: Stage) -> None:
        """Makes the model ready for the epochs of a stage: which layers learn, and how fast, from a new optimizer."""
        options, trunk = self.config.training, set(self.pretrained.layers.loaded if self.pretrained else ())
        for layer in self.model.layers:
            layer.trainable = not (stage.is_frozen and layer.name in trunk)
        steps = stage.epochs * self.steps_per_epoch
        warmup_steps = min(math.ceil(options.warmup_epochs * self.steps_per_epoch), steps // 2)
        optimizer = make_optimizer(options, self.training_model, steps, warmup_steps)
        if trunk and not stage.is_frozen:
            in_trunk = [layer.trainable_variables for layer in self.model.layers if layer.name in trunk]
            slow_down(optimizer, [variable for some in in_trunk for variable in some], options.trunk_rate_factor)
        self.training_model.compile(optimizer, _make_losses(self.config, self.contract), jit_compile=options.jit)

    @property
    def predict_fn(self) -> Callable[[np.ndarray], Any]:
        """Codes [batch, frames, n_bins] to logits [batch, n_labels], of all tasks side by side."""
        if not self.contract.heads:
            predict_one: Callable[[np.ndarray], Any] = self.training_model.predict_on_batch
            return predict_one
        tasks = [head.task for head in self.contract.heads]

        def predict(codes: np.ndarray) -> np.ndarray:
            logits = self.training_model.predict_on_batch(codes)
            return np.concatenate([logits[task] for task in tasks], axis=1)

        return predict

    def describe(self) -> str:
        """Returns what will be trained on what, and where its trunk comes from."""
        counts = {
            part: sum(self.manifest.split(name).tracks for name in names)
            for part, names in (("training", self.folds.training), ("validation", self.folds.validation))
        }
        return (
            f"{self.contract.task}: {self.config.model.name}, {self.model.count_params():,} parameters,"
            f" {self._describe_input()}\n{counts['training']:,} training tracks, {counts['validation']:,}"
            f" validation tracks, {self.steps_per_epoch} steps an epoch; run folder {self.run.path}"
            f"{self._describe_trunk()}"
        )

    def _describe_input(self) -> str:
        contract = self.contract
        seconds = contract.frames / contract.frames_per_s
        if is_embedding(contract):
            return f"embeddings of {contract.feature['source']}, {contract.n_bins:,} dimensions for {seconds:.1f} s"
        return f"{contract.frames} frames ({seconds:.1f} s) of {contract.n_bins} bins"

    def _describe_trunk(self) -> str:
        if self.pretrained is None:
            return ""
        section = self.config.model
        origin = section.init_from if section.init_from != "none" else section.weights
        lines = f"\ntrunk from {origin}: {self.pretrained.layers.describe()}"
        seen = len(self.pretrained.track_keys.intersection(self.manifest.track_keys(self.folds.validation)))
        if seen:
            lines += f"\nnote: {seen} of the validation tracks have trained that trunk: new music will score lower"
        return lines


def _normalisation(how: str, mean: np.ndarray, variance: np.ndarray) -> dict[str, np.ndarray | None]:
    if how == "none":
        return {"mean": None, "variance": None}
    if how == "global":  # the variance of all cells is the mean variance and the variance of the means
        total = variance.mean() + mean.var()
        return {"mean": np.full_like(mean, mean.mean()), "variance": np.full_like(mean, total)}
    return {"mean": mean, "variance": variance}


def _training_input(
    config: Config, manifest: Manifest, folds: Folds, n_segments: int, frames: int
) -> pipeline.TrainingInput:
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
    if is_embedding(manifest.contract):  # a mask is for neighbouring bins, which embeddings do not have
        policy = augment.POLICIES["none"]
    return pipeline.TrainingInput(
        frames=frames,
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
