"""One training: its folds, contract, model, devices and batches."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from tfmusic.config.sections import Config, TrainingSection
from tfmusic.core.contract import Contract
from tfmusic.core.rundir import RunDir
from tfmusic.evaluation.held_out import TrackLogits, score_splits
from tfmusic.inputs.batches import TrainingInput, batch_tracks, batches_ahead, code_statistics
from tfmusic.models import build_model, for_prediction, is_fixed
from tfmusic.pretrained.sources import Pretrained, load_pretrained
from tfmusic.records.format import holds_copies
from tfmusic.records.manifest import Manifest
from tfmusic.training.checks import Folds, find_frontend, make_losses
from tfmusic.training.devices import Devices
from tfmusic.training.frozen import EmbeddingCache, FrozenBackbone, split_backbone
from tfmusic.training.optimizer import build, make_optimizer, state_variables


@dataclass(frozen=True)
class Stage:
    """Epochs with the same trainable layers and one learning-rate schedule, counted from 0; `end` is the next one's."""

    first_epoch: int
    end: int
    is_frozen: bool


def stages(options: TrainingSection) -> tuple[Stage, ...]:
    """Returns the stages of a training in order: epochs with a frozen backbone, if any, then those where all learns."""
    frozen = min(options.freeze_epochs, options.epochs)
    parts = (Stage(0, frozen, True), Stage(frozen, options.epochs, False))
    return tuple(stage for stage in parts if stage.end > stage.first_epoch)


def stage_of(options: TrainingSection, epoch: int) -> Stage:
    """Returns the stage that an epoch, counted from 0, belongs to."""
    return next(stage for stage in reversed(stages(options)) if epoch >= stage.first_epoch)


@dataclass
class Job:
    """One training.

    Attributes:
        model: what is saved; codes to logits.
        training_model: a compiled model over the same layers, so that checkpoints hold no optimizer.
        source: the records and the config that batches are made from.
        pretrained: where the backbone comes from, if it is pretrained.
        cache: embeddings that trainings with the same frozen backbone share.
        single: where several devices train, a copy of the model that validates on one of them.
        frozen: in a stage with `training.cache_frozen`, the embeddings and the head that learns.
    """

    config: Config
    manifest: Manifest
    run: RunDir
    folds: Folds
    contract: Contract
    model: keras.Model
    training_model: keras.Model
    source: TrainingInput
    pretrained: Pretrained | None
    cache: EmbeddingCache
    devices: Devices
    single: keras.Model | None
    frozen: FrozenBackbone | None = None

    @classmethod
    def prepare(
        cls,
        config: Config,
        manifest: Manifest,
        run: RunDir,
        *,
        contract: Contract,
        folds: Folds,
        resume: bool = False,
        cache: EmbeddingCache | None = None,
    ) -> "Job":
        """Returns a training after `training.checks.check` has returned its contract and folds.

        Raises:
            ConfigError: too few devices, a batch that they cannot share, or a backbone that cannot be split off.
            RunError: pretrained weights are missing, damaged, or not for this model.
        """
        keras.utils.set_random_seed(config.training.seed)
        devices = Devices.find(config.training.devices)
        processes = devices.processes
        source = TrainingInput(config, manifest, folds.training, contract, processes.index, processes.count)
        devices.check_batch(source.batch_size)
        with devices.scope(), _precision(config.training.precision):
            model = _build(config, contract, *code_statistics(manifest, folds.training))
            training_model = _training_model(model, contract)
        single = _training_model(keras.models.clone_model(model), contract) if devices.are_several else None
        pretrained = load_pretrained(config, model, run, resume=resume) if config.model.is_pretrained else None
        if config.training.cache_frozen:
            split_backbone(model, pretrained.layers.loaded if pretrained else ())  # raises now rather than after hours
        return cls(
            config=config,
            manifest=manifest,
            run=run,
            folds=folds,
            contract=contract,
            model=model,
            training_model=training_model,
            source=source,
            pretrained=pretrained,
            cache=cache or EmbeddingCache(),
            devices=devices,
            single=single,
        )

    def start_stage(self, stage: Stage) -> None:
        """Makes the model ready for the epochs of a stage: which layers learn, and how fast, from a new optimizer."""
        options, backbone = self.config.training, set(self.pretrained.layers.loaded if self.pretrained else ())
        for layer in self.model.layers:
            layer.trainable = not is_fixed(layer) and not (stage.is_frozen and layer.name in backbone)
        self.frozen = self._freeze() if stage.is_frozen and options.cache_frozen else None
        steps = (stage.end - stage.first_epoch) * self.steps_per_epoch
        warmup_steps = min(math.ceil(options.warmup_epochs * self.steps_per_epoch), steps // 2)
        slow = [v for layer in self.model.layers if layer.name in backbone for v in layer.trainable_variables]
        learner = self.learner
        jit = options.jit or keras.backend.backend() == "jax"  # JAX without XLA calls every operation by itself
        with self.devices.scope():
            optimizer = make_optimizer(options, learner, steps, warmup_steps, slow)
            learner.compile(optimizer, make_losses(self.config, self.contract), jit_compile=jit)
            build(learner.optimizer, learner.trainable_variables)  # what scales the loss, if any

    @property
    def learner(self) -> keras.Model:
        """What the epochs of the stage train: the model, or its head alone on cached embeddings."""
        return self.frozen.head if self.frozen else self.training_model

    @property
    def steps_per_epoch(self) -> int:
        """How many batches an epoch of the stage has."""
        return self.frozen.steps_per_epoch if self.frozen else self.source.steps_per_epoch

    @property
    def variables(self) -> list[Any]:
        """All that a resumed training needs: the variables of the whole model and of the stage's optimizer."""
        return [*self.model.variables, *state_variables(self.learner.optimizer)]

    def batches(self, epochs: range) -> Any:
        """Returns the batches of some epochs: a tf.data.Dataset, or on JAX an iterator, which needs no TensorFlow."""
        if self.frozen:
            return self.frozen.batches(epochs)
        if keras.backend.backend() != "tensorflow":
            return batches_ahead(self.source, epochs)
        from tfmusic.inputs.pipeline import training_batches

        return training_batches(self.source, epochs)

    def tracks_of(self, epoch: int, step: int) -> list[str]:
        """Returns the names of the tracks in a step of an epoch, both counted from 0; none of cached embeddings."""
        return [] if self.frozen else batch_tracks(self.source, epoch=epoch, step=step)

    def score_validation(self) -> TrackLogits:
        """Returns the logits of every validation track, of all tasks side by side."""
        return self.frozen.score_validation() if self.frozen else self.score_with(self.predict_fn)

    @property
    def predict_fn(self) -> Callable[[np.ndarray], Any]:
        """Codes [batch, frames, n_bins] to logits [batch, n_labels], of all tasks side by side."""
        model = self.training_model
        if self.single is not None:  # one device predicts, with the current weights
            model = for_prediction(self.single)
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
        """Returns the logits of the validation tracks; `predict_fn` maps codes [batch, frames, n_bins] to logits."""
        return score_splits(
            self.manifest,
            self.folds.validation,
            predict_fn,
            self.contract,
            batch_size=self.config.evaluation.batch_size,
        )

    def _freeze(self) -> FrozenBackbone:
        with _precision(self.config.training.precision):
            return FrozenBackbone(
                self.model,
                loaded=self.pretrained.layers.loaded if self.pretrained else (),
                source=self.source,
                validation=self.folds.validation,
                cache=self.cache,
            )

    def describe(self) -> str:
        """Returns the lines shown before training: the model, its data, and where its backbone comes from."""
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
            f" validation tracks, {self.source.steps_per_epoch} steps an epoch; run folder {self.run.path}"
            f"{self._describe_metadata()}{self._describe_backbone()}{self._describe_leak()}"
            + (f"\n{self.source.balance.describe()}" if self.source.balance else "")
        )

    @property
    def backbone_tracks(self) -> frozenset[str]:
        """Names of the tracks that trained the pretrained backbone, or the model that computed the embeddings."""
        return self.manifest.backbone_tracks | (self.pretrained.track_ids if self.pretrained else frozenset())

    def _describe_input(self) -> str:
        contract = self.contract
        seconds = contract.frames / contract.frames_per_s
        if contract.is_embedding:
            return f"embeddings of {contract.feature.source}, {contract.n_bins:,} dimensions for {seconds:.1f} s"
        mean = ", of which an mlp sees only the mean" if self.config.model.name == "mlp" else ""
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
        validation = set(self.manifest.track_ids(self.folds.validation))
        seen = len(self.backbone_tracks & validation)
        same = len(self.manifest.duplicates_of(self.manifest.track_ids(self.folds.training)) & validation)
        what = "these embeddings" if self.contract.is_embedding else "that backbone"
        notes = (
            f"\nnote: tracks of the same names as {seen} of the validation tracks have trained {what}:"
            " if they are the same, new music will score lower",
            f"\nnote: {same} of the validation tracks are the same music as training tracks of other names: new music"
            " will score lower",
        )
        return "".join(note for note, count in zip(notes, (seen, same), strict=True) if count)


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


def _normalisation(how: str, mean: np.ndarray, variance: np.ndarray) -> dict[str, np.ndarray | None]:
    if how == "none":
        return {"mean": None, "variance": None}
    if how == "global":  # the variance of all values is the mean variance and the variance of the means
        total = variance.mean() + mean.var()
        return {"mean": np.full_like(mean, mean.mean()), "variance": np.full_like(mean, total)}
    return {"mean": mean, "variance": variance}


def _training_model(model: keras.Model, contract: Contract) -> keras.Model:
    """Returns a second model over the same layers, with a dict of outputs where there are several tasks."""
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
