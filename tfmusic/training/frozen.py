"""A frozen backbone whose embeddings are computed once: what is left to train is a small head on them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import keras
import numpy as np

from tfmusic.core.contract import Contract
from tfmusic.errors import ConfigError
from tfmusic.evaluation.held_out import TrackLogits, score_splits
from tfmusic.inputs.batches import TrainingInput
from tfmusic.models import for_prediction, is_fixed
from tfmusic.models.surgery import split_at_embedding
from tfmusic.records.format import without_copies
from tfmusic.records.manifest import Manifest
from tfmusic.training.linear import inner_folds, solve_head


@dataclass(frozen=True)
class EmbeddingCache:
    """Embeddings by backbone and split; the folds of a cross-validation share them where their backbone is the same."""

    embeddings: dict[tuple[str, str], TrackLogits] = field(default_factory=dict)


class FrozenBackbone:
    """The embeddings of all windows under a frozen backbone, and the head that learns from them.

    Attributes:
        head: embeddings [batch, n_dims] to logits; its layers are those of the whole model.
        training: embeddings [n_windows, n_dims] of every training track.
        validation: those of every validation track; empty without a validation fold.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        loaded: Sequence[str],
        source: TrainingInput,
        validation: Sequence[str],
        cache: EmbeddingCache,
    ) -> None:
        """Embeds the training and validation splits; raises ConfigError where the model cannot be split."""
        backbone, self.head = split_backbone(model, loaded)
        key = _digest(backbone, source.contract)
        for split in (*source.splits, *validation):
            if (key, split) not in cache.embeddings:
                cache.embeddings[key, split] = _embed(backbone, source.contract, source.manifest, split)
        self.training, self.validation = (
            _join([cache.embeddings[key, split] for split in splits]) for splits in (source.splits, validation)
        )
        self._source = source
        self._split_of = [
            split for split in source.splits for _ in cache.embeddings[key, split].rows
        ]  # of every training track
        self._counts = [len(track) for track in self.training.logits]

    def __len__(self) -> int:
        """Number of training windows."""
        return sum(self._counts)

    @cached_property
    def _examples(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Embeddings, rows of tracks.csv and targets of all training windows, in memory; a solved head needs none."""
        return (
            np.concatenate(self.training.logits),
            np.repeat(self.training.rows, self._counts),
            np.repeat(self.training.targets, self._counts, axis=0).astype(np.float32),
        )

    @property
    def batch_size(self) -> int:
        """Windows in a batch: as many as asked for, or all where there are fewer."""
        return min(self._source.batch_size, len(self))

    @property
    def steps_per_epoch(self) -> int:
        """How many whole batches there are in an epoch."""
        return len(self) // self.batch_size

    def solve_head(self) -> float:
        """Solves a linear head, with the folds of the records as inner folds; returns its loss on the training tracks.

        Raises:
            ConfigError: the head is not linear.
        """
        groups = self._source.manifest.groups(self._source.splits)
        names = self.training.track_ids
        folds = inner_folds(
            [without_copies(split) for split in self._split_of], [groups[name] for name in names], names
        )
        return solve_head(self.head, self.training, folds, self._source.contract.kind)

    def batches(self, epochs: range) -> Any:
        """Returns the batches of some epochs, mixed if the config says so: the head's inputs and its targets.

        A tf.data.Dataset, or an iterator on backends other than TensorFlow.
        """
        if keras.backend.backend() != "tensorflow":
            return (batch for epoch in epochs for batch in self._batches(epoch))
        import tensorflow as tf

        examples = self._epoch(epochs.start)
        types = [tf.as_dtype(part.dtype) for part in examples]

        def read(epoch: tf.Tensor) -> tf.data.Dataset:
            parts = tf.numpy_function(self._epoch, [epoch], types, stateful=False)
            parts = [tf.ensure_shape(part, example.shape) for part, example in zip(parts, examples, strict=True)]
            return tf.data.Dataset.from_tensor_slices(_as_pair(parts)).batch(self.batch_size, drop_remainder=True)

        ds = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(read)
        return ds.apply(tf.data.experimental.assert_cardinality(len(epochs) * self.steps_per_epoch)).prefetch(2)

    def _batches(self, epoch: int) -> Iterator[tuple[Any, Any]]:
        parts = self._epoch(epoch)
        for begin in range(0, self.steps_per_epoch * self.batch_size, self.batch_size):
            yield _as_pair([part[begin : begin + self.batch_size] for part in parts])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, ...]:
        """Returns windows, the metadata of a model with some, and targets in the order of an epoch, mixed."""
        alpha = self._source.config.augment.mixup_alpha
        rng = np.random.default_rng([self._source.seed, int(epoch)])
        order = rng.permutation(len(self))[: self.steps_per_epoch * self.batch_size]
        windows, rows, targets = self._examples
        parts = [windows[order], targets[order]]
        if self._source.metadata:
            parts.insert(1, self._source.metadata.draw(rows[order], rng.spawn(1)[0]))
        if alpha:
            share = rng.beta(alpha, alpha, (len(order), 1)).astype(np.float32)
            share, partner = np.maximum(share, 1.0 - share), rng.permutation(len(order))
            parts = [share * part + (1.0 - share) * part[partner] for part in parts]
        return tuple(parts)

    def score_validation(self) -> TrackLogits:
        """Returns the logits of every validation track."""
        counts = [len(track) for track in self.validation.logits]
        inputs: Any = np.concatenate(self.validation.logits)
        if self._source.metadata:
            inputs = [inputs, self._source.metadata.table[np.repeat(self.validation.rows, counts)]]
        logits = self.head.predict(inputs, batch_size=256, verbose=0)
        return replace(self.validation, logits=tuple(np.split(logits, np.cumsum(counts)[:-1])))


def _as_pair(parts: Sequence[Any]) -> tuple[Any, Any]:
    """Returns the inputs, a pair with metadata, and the targets."""
    *inputs, targets = parts
    return (tuple(inputs) if len(inputs) > 1 else inputs[0]), targets


def split_backbone(model: keras.Model, loaded: Sequence[str]) -> tuple[keras.Model, keras.Model]:
    """Returns the part of a model up to its pooling, and the part after it.

    Raises:
        ConfigError: the model has no such place, or layers before it are not pretrained and so would have to learn.
    """
    halves = split_at_embedding(model)
    if halves is None:
        raise ConfigError(
            f"training.cache_frozen is for models that pool at the end of their backbone; {model.name} does not: set it"
            " to false"
        )
    backbone, head = for_prediction(halves[0]), halves[1]
    has_learned = {*loaded, "normalise"}
    new = [
        layer.name
        for layer in backbone.layers
        if layer.weights and not is_fixed(layer) and layer.name not in has_learned
    ]
    if new:
        raise ConfigError(
            f"training.cache_frozen needs a backbone that is pretrained to its last layer. Not loaded: {', '.join(new)}"
        )
    return backbone, head


def _embed(backbone: keras.Model, contract: Contract, manifest: Manifest, split: str) -> TrackLogits:
    without_metadata = replace(contract, metadata=())  # the head alone reads metadata
    predict = backbone.predict_on_batch
    return score_splits(manifest, [split], predict, without_metadata, batch_size=64, takes_copies=True)


def _join(parts: Sequence[TrackLogits]) -> TrackLogits:
    if not parts:
        return TrackLogits((), (), (), np.zeros((0, 0), bool))
    return TrackLogits(
        tuple(row for part in parts for row in part.rows),
        tuple(track_id for part in parts for track_id in part.track_ids),
        tuple(track for part in parts for track in part.logits),
        np.concatenate([part.targets for part in parts]),
    )


def _digest(model: keras.Model, contract: Contract) -> str:
    """Returns a digest of a backbone: its layers with their constants, its weights, and its windows."""
    config = {key: value for key, value in model.get_config().items() if key != "name"}  # Keras numbers its models
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(f"{contract.frames} {contract.hop_frames}".encode())
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()
