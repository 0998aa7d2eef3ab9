"""A frozen backbone whose answers are computed once: what is left to train is a small head on embeddings."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmusic.core.contract import Contract
from tfmusic.errors import ConfigError
from tfmusic.evaluation.held_out import TrackLogits, score_splits
from tfmusic.inputs.pipeline import TrainingInput
from tfmusic.models import for_prediction
from tfmusic.models.frontends import FRONTEND_LAYER
from tfmusic.models.surgery import split_at_embedding
from tfmusic.records.manifest import Manifest

_WITHOUT_TRAINING = {FRONTEND_LAYER, "normalise"}


@dataclass(frozen=True)
class BackboneCache:
    """Embeddings by backbone and split; the folds of a cross-validation share them where their backbone is the same."""

    known: dict[tuple[str, str], TrackLogits] = field(default_factory=dict)


class FrozenBackbone:
    """The embeddings that a frozen backbone makes of all windows, and the head that learns from them.

    Attributes:
        head: embeddings [batch, n_dims] to logits; its layers are those of the whole model.
        training: embeddings [n_windows, n_dims] of every training track.
        validation: those of every validation track; empty without a validation fold.
    """

    def __init__(
        self,
        model: keras.Model,
        loaded: Sequence[str],
        contract: Contract,
        manifest: Manifest,
        splits: tuple[Sequence[str], Sequence[str]],
        cache: BackboneCache,
        options: TrainingInput,
    ) -> None:
        """Embeds the training and validation splits; raises ConfigError where the backbone cannot be cut off."""
        backbone, self.head = split_backbone(model, loaded)
        key = _digest(backbone, contract)
        for split in (*splits[0], *splits[1]):
            if (key, split) not in cache.known:
                cache.known[key, split] = _embed(backbone, contract, manifest, split)
        self.training, self.validation = (_join([cache.known[key, split] for split in part]) for part in splits)
        self.options = options
        self._windows = np.concatenate(self.training.logits)
        repeats = [len(track) for track in self.training.logits]
        self._rows = np.repeat(self.training.rows, repeats)
        self._targets = np.repeat(self.training.targets, repeats, axis=0).astype(np.float32)

    def __len__(self) -> int:
        """Number of training windows."""
        return len(self._windows)

    @property
    def batch_size(self) -> int:
        """Windows in a batch: as many as asked for, or all where there are fewer."""
        return min(self.options.batch_size, len(self))

    def epoch(self, epoch: int) -> tuple[Any, np.ndarray]:
        """Returns the head's inputs and targets of whole batches in the order of an epoch, mixed if asked."""
        options = self.options
        rng = np.random.default_rng([options.seed, epoch])
        order = rng.permutation(len(self))[: len(self) // self.batch_size * self.batch_size]
        parts = [self._windows[order], self._targets[order]]
        if options.metadata:
            seed = tf.constant([options.seed, epoch], tf.int64)
            parts.append(options.metadata.draw(tf.constant(self._rows[order]), seed).numpy())
        if options.mixup_alpha:
            share = rng.beta(options.mixup_alpha, options.mixup_alpha, (len(order), 1)).astype(np.float32)
            share, partner = np.maximum(share, 1.0 - share), rng.permutation(len(order))
            parts = [share * part + (1.0 - share) * part[partner] for part in parts]
        windows, targets, *tokens = parts
        return [windows, *tokens] if tokens else windows, targets

    def score_validation(self) -> TrackLogits:
        """Returns the logits of every validation track."""
        counts = [len(track) for track in self.validation.logits]
        inputs: Any = np.concatenate(self.validation.logits)
        if self.options.metadata:
            inputs = [inputs, self.options.metadata.table[np.repeat(self.validation.rows, counts)]]
        logits = self.head.predict(inputs, batch_size=256, verbose=0)
        return replace(self.validation, logits=tuple(np.split(logits, np.cumsum(counts)[:-1])))


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
    new = [layer.name for layer in backbone.layers if layer.weights and layer.name not in {*loaded, *_WITHOUT_TRAINING}]
    if new:
        raise ConfigError(
            f"training.cache_frozen needs a backbone that is pretrained to its last layer. Not loaded: {', '.join(new)}"
        )
    return backbone, head


def _embed(backbone: keras.Model, contract: Contract, manifest: Manifest, split: str) -> TrackLogits:
    alone = replace(contract, metadata=())  # a backbone hears, the head reads
    return score_splits(manifest, [split], backbone.predict_on_batch, alone, batch_size=64, takes_copies=True)


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
    digest = hashlib.sha256(json.dumps(model.get_config(), sort_keys=True, default=str).encode())
    digest.update(f"{contract.frames} {contract.hop_frames}".encode())
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()
