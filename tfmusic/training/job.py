"""What stays the same over the epochs of a training: folds, contract, model, batches."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import keras
import numpy as np

from tfmusic.config.sections import Config
from tfmusic.core.contract import Contract
from tfmusic.core.rundir import RunDir
from tfmusic.evaluation.held_out import TrackLogits, score_splits
from tfmusic.inputs import augment, pipeline
from tfmusic.inputs.augment import Distortion
from tfmusic.inputs.balance import Balance, class_weights
from tfmusic.inputs.metadata import Metadata
from tfmusic.inputs.pipeline import Epochs
from tfmusic.models import build_model, for_prediction
from tfmusic.models.frontends import FRONTEND_LAYER
from tfmusic.pretrained.sources import Pretrained, load_pretrained
from tfmusic.records.format import holds_copies
from tfmusic.records.manifest import Manifest
from tfmusic.training.callbacks import InputWatch
from tfmusic.training.checks import Folds, check, is_embedding, make_losses
from tfmusic.training.distribution import Devices
from tfmusic.training.frontend import find_frontend
from tfmusic.training.frozen import BackboneCache, FrozenBackbone, split_backbone
from tfmusic.training.optimizer import build, make_optimizer
from tfmusic.training.stages import Stage

TOP_SHARE = 0.75  # of the target, for the top genre of a track that has others (the Deep-Music-Tagger's)


def _build(config: Config, contract: Contract, mean: np.ndarray, variance: np.ndarray) -> keras.Model:
    section = config.model
    return build_model(
        section.name,
        frames=contract.frames,
        n_bins=contract.n_bins,
        n_outputs={head.task: len(head.labels) for head in contract.heads} or len(contract.labels),
        dtype=contract.dtype,
        **_normalisation(config.input.normalize, mean, variance),
        frontend=find_frontend(config.input.frontend, contract),
        **section.builder_options,
        n_tokens=len(contract.metadata),
        token_width=config.metadata.width,
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


@dataclass
class Job:
    """All that stays the same over the epochs of a training, and the frozen backbone, where its answers are cached.

    Where several devices train, `twin` is the model that validates, on one of them.
    """

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
    cache: BackboneCache
    devices: Devices
    twin: keras.Model | None
    frozen: FrozenBackbone | None = None

    @classmethod
    def prepare(
        cls,
        config: Config,
        manifest: Manifest,
        run: RunDir,
        *,
        resume: bool = False,
        cache: BackboneCache | None = None,
    ) -> "Job":
        """Returns the job after all checks; shards are compared with their checksums.

        Raises:
            ConfigError, RecordsError: config and records do not go together, or a shard is damaged.
            RunError: pretrained weights are missing, damaged, or not for this model.
        """
        contract, folds = check(config, manifest, resume=resume)
        manifest.verify([*folds.training, *folds.validation])
        keras.utils.set_random_seed(config.training.seed)
        mean, variance = pipeline.cell_statistics(manifest, folds.training)
        balance = Balance.of(manifest, folds.training, config.balance, config.training.seed)
        n_segments = pipeline.count_segments(manifest, folds.training, balance)
        options = _training_input(config, manifest, folds, balance, contract)
        devices = Devices.find(config.training.devices)
        devices.check_batch(options.batch_size)
        options = replace(options, process=devices.processes.index, n_processes=devices.processes.count)
        with devices.scope(), _precision(config.training.precision):
            model = _build(config, contract, mean, variance)
            training_model = _training_model(model, contract)
        twin = _training_model(keras.models.clone_model(model), contract) if devices.are_several else None
        pretrained = load_pretrained(config, model, run, resume=resume) if config.model.is_pretrained else None
        steps = n_segments // options.batch_size
        if pretrained is not None and config.training.cache_frozen:
            split_backbone(model, pretrained.layers.loaded)  # says now what could not be done later
        parts = (folds, contract, model, training_model, mean, options, steps, pretrained, cache or BackboneCache())
        return cls(config, manifest, run, *parts, devices, twin)

    def start_stage(self, stage: Stage) -> None:
        """Makes the model ready for the epochs of a stage: which layers learn, and how fast, from a new optimizer."""
        options, backbone = self.config.training, set(self.pretrained.layers.loaded if self.pretrained else ())
        for layer in self.model.layers:
            layer.trainable = layer.name != FRONTEND_LAYER and not (stage.is_frozen and layer.name in backbone)
        self.frozen = self._freeze() if stage.is_frozen and options.cache_frozen else None
        steps_per_epoch = len(self.frozen) // self.frozen.batch_size if self.frozen else self.steps_per_epoch
        steps = stage.epochs * steps_per_epoch
        warmup_steps = min(math.ceil(options.warmup_epochs * steps_per_epoch), steps // 2)
        in_backbone = [layer.trainable_variables for layer in self.model.layers if layer.name in backbone]
        slow = [variable for some in in_backbone for variable in some]
        learner = self.learner
        jit = options.jit or keras.backend.backend() == "jax"  # JAX without XLA calls every operation by itself
        with self.devices.scope():
            optimizer = make_optimizer(options, learner, steps, warmup_steps, slow)
            learner.compile(optimizer, make_losses(self.config, self.contract), jit_compile=jit)
            build(learner.optimizer, learner.trainable_variables)  # what scales the loss, if any

    @property
    def learner(self) -> keras.Model:
        """What the epochs of the stage train: the model, or its head alone while the backbone's answers are cached."""
        return self.frozen.head if self.frozen else self.training_model

    def train_epoch(self, epoch: int, callbacks: list[keras.callbacks.Callback], inputs_seen: InputWatch) -> float:
        """Trains one epoch, counted from 0, and returns its loss; `inputs_seen` watches batches that are read."""
        with pipeline.naming_shards(self.manifest, self.folds.training):
            if self.frozen:
                inputs, targets = self.frozen.epoch(epoch)
                arguments: dict[str, Any] = {"x": inputs, "y": targets, "batch_size": self.frozen.batch_size}
            else:
                ds = self.epochs.read(epoch)
                # Several devices fetch ahead of a step: there is no wait for a batch to be measured.
                ds = ds if self.devices.are_several else inputs_seen.watched(ds)
                arguments = self.devices.deal(ds, self.steps_per_epoch)
            with self.devices.training(self.learner):
                history = self.learner.fit(
                    **arguments, initial_epoch=epoch, epochs=epoch + 1, verbose=0, shuffle=False, callbacks=callbacks
                )
        if not self.frozen and epoch + 1 < self.config.training.epochs:
            self.epochs.begin(epoch + 1)  # while this one is validated
        return float(history.history["loss"][0])

    @cached_property
    def epochs(self) -> Epochs:
        """What makes the batches of every epoch."""
        stream = pipeline.TrainingStream(self.manifest, self.folds.training, self.fill, self.input)
        # Elsewhere Keras draws a batch first to see its shape, which would be missing then.
        return Epochs(stream, early=keras.backend.backend() == "tensorflow" and not self.devices.are_several)

    def tracks_of(self, epoch: int, step: int) -> list[str]:
        """Returns the names of the tracks in a step of an epoch, both counted from 0; none of a frozen backbone."""
        if self.frozen:
            return []
        return pipeline.batch_tracks(self.manifest, self.folds.training, self.input, epoch=epoch, step=step)

    def score_validation(self) -> TrackLogits:
        """Returns the logits of every validation track, of all tasks side by side."""
        return self.frozen.score_validation() if self.frozen else self.score_with(self.predict_fn)

    @property
    def predict_fn(self) -> Callable[[np.ndarray], Any]:
        """Codes [batch, frames, n_bins] to logits [batch, n_labels], of all tasks side by side."""
        model = self.training_model
        if self.twin is not None:  # one device answers, with the weights of now
            model = for_prediction(self.twin)
            model.set_weights(self.training_model.get_weights())
        if not self.contract.heads:
            predict_one: Callable[[np.ndarray], Any] = model.predict_on_batch
            return predict_one
        tasks = [head.task for head in self.contract.heads]

        def predict(codes: np.ndarray) -> np.ndarray:
            logits = model.predict_on_batch(codes)
            return np.concatenate([logits[task] for task in tasks], axis=1)

        return predict

    def score_with(self, predict_fn: Callable[[np.ndarray], Any]) -> TrackLogits:
        """Returns what another model says of the validation tracks; codes [batch, frames, n_bins] to logits."""
        return score_splits(
            self.manifest,
            self.folds.validation,
            predict_fn,
            self.contract,
            batch_size=self.config.evaluation.batch_size,
        )

    def _freeze(self) -> FrozenBackbone:
        assert self.pretrained is not None  # the config allows frozen epochs of a pretrained backbone alone
        splits = (self.folds.training, self.folds.validation)
        return FrozenBackbone(
            self.model, self.pretrained.layers.loaded, self.contract, self.manifest, splits, self.cache, self.input
        )

    def describe(self) -> str:
        """Returns what will be trained on what, and where its backbone comes from."""
        counts = {
            part: sum(self.manifest.split(name).tracks for name in names)
            for part, names in (
                ("training", [name for name in self.folds.training if not holds_copies(name)]),
                ("copies", [name for name in self.folds.training if holds_copies(name)]),
                ("validation", self.folds.validation),
            )
        }
        copies = f" and {counts['copies']:,} changed copies" if counts["copies"] else ""
        return (
            f"{self.contract.task}: {self.config.model.name}, {self.model.count_params():,} parameters,"
            f" {self._describe_input()}\n{counts['training']:,} training tracks{copies}, {counts['validation']:,}"
            f" validation tracks, {self.steps_per_epoch} steps an epoch; run folder {self.run.path}"
            f"{self._describe_metadata()}{self._describe_backbone()}{self._describe_leak()}"
            + (f"\n{self.input.balance.describe()}" if self.input.balance else "")
        )

    @property
    def backbone_tracks(self) -> frozenset[str]:
        """Names of the tracks that trained what this model begins with: its backbone, or what made its embeddings."""
        return self.manifest.backbone_tracks | (self.pretrained.track_ids if self.pretrained else frozenset())

    def _describe_input(self) -> str:
        contract = self.contract
        seconds = contract.frames / contract.frames_per_s
        if is_embedding(contract):
            return f"embeddings of {contract.feature.source}, {contract.n_bins:,} dimensions for {seconds:.1f} s"
        mean = ", of which an mlp sees the mean alone" if self.config.model.name == "mlp" else ""
        return f"{contract.frames} frames ({seconds:.1f} s) of {contract.n_bins} bins{mean}"

    def _describe_metadata(self) -> str:
        fields = self.config.metadata.fields
        if not fields:
            return ""
        if not self.contract.metadata:
            return f"\nnote: no training track has metadata of {', '.join(fields)}: the model has its spectrogram alone"
        return f"\nmetadata: {len(self.contract.metadata)} values of {', '.join(fields)}"

    def _describe_backbone(self) -> str:
        if self.pretrained is None:
            return ""
        section = self.config.model
        lines = f"\nbackbone from {section.origin}: {self.pretrained.layers.describe()}"
        if section.weights.endswith(".keras") and not self.pretrained.track_ids:
            lines += "\nnote: which tracks have trained it is not known; where some validate, new music scores lower"
        return lines

    def _describe_leak(self) -> str:
        seen = len(self.backbone_tracks.intersection(self.manifest.track_ids(self.folds.validation)))
        what = "these embeddings" if is_embedding(self.contract) else "that backbone"
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
    config: Config, manifest: Manifest, folds: Folds, balance: Balance | None, contract: Contract
) -> pipeline.TrainingInput:
    section, n_segments = config.augment, pipeline.count_segments(manifest, folds.training, balance)
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
    policy = replace(policy, warp_by=section.time_warp)
    distortion = Distortion(
        crop_pieces=section.n_crops,
        time_stretch=section.time_stretch,
        freq_stretch=section.freq_stretch,
        freq_shift_bins=section.freq_shift_bins,
        gain_db=section.gain_db,
        equalizer_db=section.equalizer_db,
    )
    if is_embedding(manifest.contract):  # these are for neighbouring bins, which embeddings do not have
        policy, distortion = augment.POLICIES["none"], Distortion()
    is_weighted = config.training.class_weights != "none"
    return pipeline.TrainingInput(
        frames=contract.frames,
        batch_size=min(config.training.batch_size, n_segments),
        shuffle_segments=min(config.input.shuffle_segments, n_segments),
        distortion=distortion,
        policy=policy,
        mixup_alpha=section.mixup_alpha,
        metadata=Metadata.of(manifest, contract, config.metadata.dropout),
        class_weights=class_weights(manifest, folds.training, balance) if is_weighted else None,
        balance=balance,
        top_share=TOP_SHARE if config.training.target == "soft_top" else 1.0,
        seed=config.training.seed,
    )
