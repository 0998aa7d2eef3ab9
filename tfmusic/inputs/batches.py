"""The order of operations from records to training batches, in numpy; `core/windows.py` has that of evaluation."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tfmusic.config.sections import AugmentSection, Config
from tfmusic.core.contract import Contract
from tfmusic.inputs import augment
from tfmusic.inputs.balance import Balance, class_weights
from tfmusic.inputs.metadata import Metadata
from tfmusic.records.manifest import Manifest, Statistics
from tfmusic.records.segments import Segments

_TOP_SHARE = 0.75  # of the target, for the top genre of a track that has others (the Deep-Music-Tagger's)

_BATCHES_AHEAD = 4
_OPERATIONS = ("rows", "distort", "tokens", "warp", "masks", "mixup")  # each draws from a generator of its own


@dataclass(frozen=True)
class Batch:
    """What a step trains on.

    Attributes:
        codes: [batch, frames, n_bins].
        targets: float32 [batch, n_labels].
        tokens: metadata, float32 [batch, n_tokens]; None for a model without.
        weights: float32 [batch], or [batch, n_tasks] of several tasks; None where all examples weigh the same.
    """

    codes: np.ndarray
    targets: np.ndarray
    tokens: np.ndarray | None
    weights: np.ndarray | None = None


@dataclass(frozen=True)
class TrainingInput:
    """The records and the config that training batches are made from.

    Attributes:
        config: its sections input, augment, metadata, balance and training say how.
        manifest: the records.
        splits: those to train on.
        contract: what the model's input must be; its windows may be shorter than the stored segments.
        process: number of this process among those that share every batch.
        n_processes: how many there are; each reads segments of its own.
    """

    config: Config
    manifest: Manifest
    splits: tuple[str, ...]
    contract: Contract
    process: int = 0
    n_processes: int = 1

    @cached_property
    def balance(self) -> Balance | None:
        """How often every segment comes in an epoch; None where each comes once."""
        return Balance.of(self.manifest, self.splits, self.config.balance, self.seed)

    @cached_property
    def metadata(self) -> Metadata | None:
        """The metadata of every track, or None for a model without."""
        return Metadata.of(self.manifest, self.contract, self.config.metadata.dropout)

    @cached_property
    def class_weights(self) -> np.ndarray | None:
        """The weight of every class [n_labels]; None where all examples weigh the same."""
        if self.config.training.class_weights == "none":
            return None
        return class_weights(self.manifest, self.splits, self.balance)

    @cached_property
    def augment(self) -> AugmentSection:
        """What happens to a batch. Embeddings are mixed alone: they have no neighbouring bins or frames."""
        section = augment.resolve(self.config.augment)
        return augment.only_mixup(section) if self.contract.is_embedding else section

    @cached_property
    def fill(self) -> np.ndarray:
        """The mean of the stored codes of the training splits [n_bins], which masks put in, in the records' dtype."""
        mean, _ = code_statistics(self.manifest, self.splits)
        dtype = self.contract.dtype
        return np.asarray(np.round(mean) if dtype == "uint8" else mean, dtype)

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The attributes of `Batch` that the batches have."""
        has_weights = bool(self.contract.heads) or self.class_weights is not None
        return ("codes", "targets", *(["tokens"] if self.metadata else []), *(["weights"] if has_weights else []))

    @property
    def has_image_warp(self) -> bool:
        """Whether TensorFlow Addons' time warp comes between both halves of a batch."""
        return bool(self.augment.time_warp_frames) and self.augment.time_warp != "gather"

    @property
    def seed(self) -> int:
        """With the epoch, it decides the order of the segments, their crops and their masks."""
        return self.config.training.seed

    @cached_property
    def n_segments(self) -> int:
        """How many segments come in an epoch."""
        if self.balance:
            return self.balance.n_segments
        return sum(self.manifest.split(name).segments for name in self.splits)

    @property
    def batch_size(self) -> int:
        """Segments in a batch of all processes together: as many as asked for, or all where there are fewer."""
        return min(self.config.training.batch_size, self.n_segments)

    @property
    def local_batch_size(self) -> int:
        """Segments in this process's part of a batch."""
        return self.batch_size // self.n_processes

    @property
    def steps_per_epoch(self) -> int:
        """How many whole batches there are in an epoch."""
        return self.n_segments // self.batch_size

    @cached_property
    def segments(self) -> Segments:
        """The stored segments of the training splits."""
        return Segments(self.manifest, self.splits)

    def order(self, epoch: int) -> np.ndarray:
        """Returns the numbers of the segments that this process reads in each step of an epoch, in a random order.

        Returns:
            int64 [steps_per_epoch, local_batch_size]. Every segment comes once in all processes together, or as often
            as the balance says; some of less than a batch are left out, other ones in each epoch.

        Raises:
            RecordsError: a shard is missing, or has another size than at its building.
        """
        self.segments.prepare()
        times = self.balance.times(int(epoch)) if self.balance else 1
        numbers = np.repeat(np.arange(len(self.segments)), times)
        order = np.random.default_rng([self.seed, int(epoch)]).permutation(numbers)
        steps = order[: self.steps_per_epoch * self.batch_size].reshape(self.steps_per_epoch, self.batch_size)
        begin = self.process * self.local_batch_size
        return steps[:, begin : begin + self.local_batch_size].astype(np.int64)

    def batch(self, epoch: int, step: int, numbers: np.ndarray) -> Batch:
        """Returns the augmented batch of some segments [n]: cropped and warped, distorted, masked, mixed.

        Epoch, step and seed decide what happens to it; no two processes draw alike.

        Raises:
            RecordsError: a shard is damaged.
        """
        return self.finish(epoch, step, self.windows(epoch, step, numbers))

    def windows(self, epoch: int, step: int, numbers: np.ndarray) -> Batch:
        """Returns the first half of `batch`: windows of the segments, distorted, their metadata and targets."""
        contract, section = self.contract, self.augment
        n_frames, rng = self.manifest.segment_frames, self._rng(epoch, step, "rows")
        rows = augment.draw_rows(len(numbers), n_frames, contract.frames, section, rng)
        codes = augment.distort(
            self.segments.codes(numbers, rows), section, contract, self._rng(epoch, step, "distort")
        )
        if self.metadata is None:
            return Batch(codes, self.targets(numbers), None)
        tracks = self.segments.table.track[numbers]
        return Batch(codes, self.targets(numbers), self.metadata.draw(tracks, self._rng(epoch, step, "tokens")))

    def finish(self, epoch: int, step: int, batch: Batch) -> Batch:
        """Returns the second half of `batch`: masks, mixup, weights; the codes are changed."""
        codes, targets, tokens, alpha = batch.codes, batch.targets, batch.tokens, self.augment.mixup_alpha
        if augment.masks(self.augment):
            augment.mask(codes, self.fill, self.augment, self._rng(epoch, step, "masks"))
        weights = self._weights(targets)
        if alpha:  # metadata is mixed as the targets are
            both = targets if tokens is None else np.concatenate([targets, tokens], 1)
            codes, both = augment.mixup(codes, both, alpha, self._rng(epoch, step, "mixup"))
            targets = both[:, : targets.shape[1]]
            tokens = None if tokens is None else both[:, targets.shape[1] :]
        return Batch(codes, targets, tokens, weights)

    def warp_points(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the points of TensorFlow Addons' time warp and where it moves them, float32 [n, 1] each."""
        rng, frames = self._rng(epoch, step, "warp"), self.contract.frames
        point, moved = augment.warp_points(self.local_batch_size, frames, self.augment.time_warp_frames, rng)
        return point.astype(np.float32), moved.astype(np.float32)

    def targets(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the targets of some segments, float32 [n, n_labels]."""
        return self.segments.targets(numbers, _TOP_SHARE if self.config.training.target == "soft_top" else 1.0)

    def _rng(self, epoch: int, step: int, operation: str) -> np.random.Generator:
        """Returns the generator of one operation on a batch: those that are switched off do not change the others."""
        number = int(step) * self.n_processes + self.process
        return np.random.default_rng([self.seed, int(epoch), number, _OPERATIONS.index(operation)])

    def _weights(self, targets: np.ndarray) -> np.ndarray | None:
        """Returns the weight of every example [n]; of several tasks, [n, n_tasks]: 0 for one that it has no labels of.

        Of a mixed pair both must have labels.
        """
        if self.contract.heads:
            parts = self.contract.parts().values()
            present = np.stack([targets[:, part.columns].max(1) for part in parts], 1)
            return present * np.roll(present, 1, axis=0) if self.augment.mixup_alpha else present
        return None if self.class_weights is None else np.asarray(targets @ self.class_weights, np.float32)


def batches_ahead(source: TrainingInput, epochs: range) -> Iterator[tuple[Any, ...]]:
    """Yields the batches of some epochs as Keras takes them; a thread makes the next ones while a step computes.

    They are those of `inputs.pipeline.training_batches`; TensorFlow is not needed.
    """
    steps = ((epoch, step, numbers) for epoch in epochs for step, numbers in enumerate(source.order(epoch)))
    ahead: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for one in steps:
            ahead.append(pool.submit(source.batch, *one))
            if len(ahead) > _BATCHES_AHEAD:
                yield as_keras_takes_it(source.contract, vars(ahead.popleft().result()))
        for batch in ahead:
            yield as_keras_takes_it(source.contract, vars(batch.result()))


def as_keras_takes_it(contract: Contract, parts: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the parts of a batch, arrays or tensors, as inputs, targets and, if there are some, weights.

    With metadata the inputs are a pair; of several tasks, targets and weights are dicts by task.
    """
    targets, tokens, weights = parts["targets"], parts.get("tokens"), parts.get("weights")
    inputs = parts["codes"] if tokens is None else (parts["codes"], tokens)
    if contract.heads:
        assert weights is not None
        tasks = contract.parts()
        by_task = {task: targets[:, part.columns] for task, part in tasks.items()}
        return inputs, by_task, {task: weights[:, i] for i, task in enumerate(tasks)}
    return (inputs, targets) if weights is None else (inputs, targets, weights)


def batch_tracks(source: TrainingInput, *, epoch: int, step: int) -> list[str]:
    """Returns the names of the tracks whose segments a step of an epoch trains on, both from 0, each name once."""
    return list(dict.fromkeys(source.segments.header(number).track_id for number in source.order(epoch)[step].tolist()))


@contextmanager
def naming_shards(manifest: Manifest, splits: Sequence[str]) -> Iterator[None]:
    """Turns the failure of a pipeline whose shards have changed since it began into the name of the shard.

    Raises:
        RecordsError: a shard is missing or damaged by now.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("tensorflow."):  # which keeps the text of an error, not its type
            manifest.verify(splits)
        raise


def code_statistics(manifest: Manifest, splits: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and variance of the stored codes of some splits, float64 [n_bins]."""
    return Statistics.merge([manifest.split(name).statistics for name in splits]).mean_and_variance()
