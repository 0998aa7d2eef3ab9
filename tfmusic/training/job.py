"""What stays the same over the epochs of a training: folds, contract, model, batches."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfmusic.config import Config
from tfmusic.contract import Contract
from tfmusic.inputs import augment, pipeline
from tfmusic.models import build_model
from tfmusic.records.manifest import Manifest
from tfmusic.rundir import RunDir
from tfmusic.training.checks import Folds, check, is_embedding, make_losses
from tfmusic.training.optimizer import make_optimizer
from tfmusic.training.stages import Stage
from tfmusic.training.trunk import Pretrained, load_pretrained


def _build(config: Config, contract: Contract, mean: np.ndarray, variance: np.ndarray) -> keras.Model:
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


def _training_model(model: keras.Model, contract: Contract) -> keras.Model:
    """Returns a second model over the same weights, which is compiled, so that checkpoints hold no optimizer."""
    heads = {head.task: model.get_layer(f"logits_{head.task}").output for head in contract.heads}
    return keras.Model(model.input, heads or model.outputs[0])


@contextmanager
def _precision(policy: str) -> Iterator[None]:
    """Builds under a policy; a model made under mixed_float16 also scales its loss."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


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
        contract, folds = check(config, manifest, resume=resume)
        manifest.verify([*folds.training, *folds.validation])
        keras.utils.set_random_seed(config.training.seed)
        mean, variance = pipeline.cell_statistics(manifest, folds.training)
        n_segments = sum(manifest.split(name).segments for name in folds.training)
        options = _training_input(config, manifest, folds, n_segments, contract.frames)
        with _precision(config.training.precision):
            model = _build(config, contract, mean, variance)
            training_model = _training_model(model, contract)
        pretrained = load_pretrained(config, model, run, resume=resume) if config.model.is_pretrained else None
        steps = n_segments // options.batch_size
        return cls(config, manifest, run, folds, contract, model, training_model, mean, options, steps, pretrained)

    def start_stage(self, stage: Stage) -> None:
        """Makes the model ready for the epochs of a stage: which layers learn, and how fast, from a new optimizer."""
        options, trunk = self.config.training, set(self.pretrained.layers.loaded if self.pretrained else ())
        for layer in self.model.layers:
            layer.trainable = not (stage.is_frozen and layer.name in trunk)
        steps = stage.epochs * self.steps_per_epoch
        warmup_steps = min(math.ceil(options.warmup_epochs * self.steps_per_epoch), steps // 2)
        in_trunk = [layer.trainable_variables for layer in self.model.layers if layer.name in trunk]
        slow = [variable for some in in_trunk for variable in some]
        optimizer = make_optimizer(options, self.training_model, steps, warmup_steps, slow)
        jit = options.jit or keras.backend.backend() == "jax"  # JAX without XLA calls every operation by itself
        self.training_model.compile(optimizer, make_losses(self.config, self.contract), jit_compile=jit)
        self.training_model.optimizer.build(self.training_model.trainable_variables)  # what scales the loss, if any

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
            f"{self._describe_trunk()}{self._describe_leak()}"
        )

    @property
    def trunk_tracks(self) -> frozenset[str]:
        """Names of the tracks that trained what this model begins with: its trunk, or what made its embeddings."""
        return self.manifest.trunk_tracks | (self.pretrained.track_ids if self.pretrained else frozenset())

    def _describe_input(self) -> str:
        contract = self.contract
        seconds = contract.frames / contract.frames_per_s
        if is_embedding(contract):
            return f"embeddings of {contract.feature['source']}, {contract.n_bins:,} dimensions for {seconds:.1f} s"
        mean = ", of which an mlp sees the mean alone" if self.config.model.name == "mlp" else ""
        return f"{contract.frames} frames ({seconds:.1f} s) of {contract.n_bins} bins{mean}"

    def _describe_trunk(self) -> str:
        if self.pretrained is None:
            return ""
        section = self.config.model
        lines = f"\ntrunk from {section.origin}: {self.pretrained.layers.describe()}"
        if section.weights.endswith(".keras") and not self.pretrained.track_ids:
            lines += "\nnote: which tracks have trained it is not known; where some validate, new music scores lower"
        return lines

    def _describe_leak(self) -> str:
        seen = len(self.trunk_tracks.intersection(self.manifest.track_ids(self.folds.validation)))
        what = "these embeddings" if is_embedding(self.contract) else "that trunk"
        note = (
            f"\nnote: tracks of the same names as {seen} of the validation tracks have trained {what}:"
            " if they are the same, new music will score lower"
        )
        return note if seen else ""


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
