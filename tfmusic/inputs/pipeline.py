"""The order of operations from records to training batches; `core/windows.py` has that of evaluation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import tensorflow as tf

from tfmusic.config.sections import AugmentSection, Config
from tfmusic.core.contract import Contract
from tfmusic.inputs import augment
from tfmusic.inputs.balance import Balance, class_weights
from tfmusic.inputs.metadata import Metadata
from tfmusic.records.format import decode
from tfmusic.records.manifest import Manifest, Statistics

# Explicit parallelism: autotuning stalls for seconds when an iterator is dropped at the end of a training.
_PARALLEL_CALLS = 2
_OPEN_SHARDS = 16
_TOP_SHARE = 0.75  # of the target, for the top genre of a track that has others (the Deep-Music-Tagger's)
_MAX_SEED = (1 << 31) - 1


@dataclass(frozen=True)
class TrainingInput:
    """The records and the config that training batches are made from.

    Attributes:
        config: its sections input, augment, metadata, balance and training say how.
        manifest: the records.
        splits: those to train on.
        contract: what the model's input must be; its windows may be shorter than the stored segments.
        process: number of this process among those that share every batch.
        n_processes: how many there are; each reads shards of its own.
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
    def files(self) -> list[str]:
        """The paths of all training shards."""
        return [str(path) for split in self.splits for path in self.manifest.shard_paths(split)]

    def file_order(self, epoch: int) -> np.ndarray:
        """Returns the numbers of the shards that this process reads in an epoch, in their order, int64."""
        order = np.random.default_rng([self.seed, int(epoch)]).permutation(len(self.files))
        return order[self.process :: self.n_processes].astype(np.int64)


def training_batches(source: TrainingInput, epochs: range) -> tf.data.Dataset:
    """Returns the batches of some epochs (codes [batch, frames, n_bins], targets [batch, n_labels]), or with weights.

    With metadata the first is a pair, codes and tokens [batch, n_tokens]; of several tasks, targets and weights [batch]
    are dicts by task.

    Every stored segment comes once an epoch, or as often as the balance says; only whole batches come, so that the
    training step has one shape. The same seed and epoch give the same batches, so that a resumed run goes on as if it
    had not stopped. The dataset can be read again from its start, as Keras does on JAX and on several devices to see a
    batch's shape.
    """
    # One dataset for all epochs: the shuffle buffer of the next epoch fills while the model validates.
    return _batches(source, tf.data.Dataset.range(epochs.start, epochs.stop), len(epochs))


def epochs_in_turn(source: TrainingInput) -> tf.data.Dataset:
    """Returns the batches of one epoch, as `training_batches`; every time the dataset is read, those of the next."""
    numbers = count()
    epoch = tf.data.Dataset.from_generator(lambda: iter([next(numbers)]), output_signature=tf.TensorSpec([], tf.int64))
    return _batches(source, epoch, 1)


def segments_in_order(source: TrainingInput) -> tf.data.Dataset:
    """Returns every segment once, in file order: codes [batch, segment_frames, n_bins], targets [batch, n_labels]."""
    ds = tf.data.TFRecordDataset(source.files).batch(source.config.training.batch_size)
    ds = ds.map(lambda records: _parse(records, source)[:2], num_parallel_calls=_PARALLEL_CALLS)
    ds = ds.apply(tf.data.experimental.assert_cardinality(-(-source.n_segments // source.config.training.batch_size)))
    return ds.prefetch(2).with_options(_deterministic())


def _batches(source: TrainingInput, epochs: tf.data.Dataset, n_epochs: int) -> tf.data.Dataset:
    """Returns the batches of the epochs whose numbers a dataset has."""
    ds = epochs.flat_map(lambda epoch: _epoch(source, epoch))
    # Parse and augment whole batches: one call for all instead of one a segment.
    ds = ds.map(lambda *numbered: _make_batch(source, *numbered), num_parallel_calls=_PARALLEL_CALLS)
    ds = ds.apply(tf.data.experimental.assert_cardinality(n_epochs * source.steps_per_epoch))
    return ds.prefetch(2).with_options(_deterministic())


def _epoch(source: TrainingInput, epoch: tf.Tensor) -> tf.data.Dataset:
    """Returns (epoch, step, serialized segments [local_batch_size]) of an epoch."""
    numbers = tf.ensure_shape(tf.numpy_function(source.file_order, [epoch], tf.int64, stateful=False), [None])
    ds = tf.data.Dataset.from_tensor_slices((numbers, tf.gather(source.files, numbers)))
    # Many shards at once: a shard holds whole tracks, so neighbours in one shard are alike. One thread reads them all:
    # more cost 30 % more CPU time, and one reads 50,000 segments a second.
    ds = ds.interleave(_shard_reader(source.balance, epoch), cycle_length=_OPEN_SHARDS)
    # Shuffle what is still serialized: strings move by reference.
    ds = _shuffle(ds, min(source.config.input.shuffle_segments, source.n_segments), source.seed, epoch)
    if source.n_processes > 1:  # shards differ in size, but every process has to make the same steps
        ds = ds.repeat().take(source.steps_per_epoch * source.local_batch_size)
    ds = ds.batch(source.local_batch_size, drop_remainder=True)
    return ds.enumerate().map(lambda step, records: (epoch, step, records))


def _shuffle(ds: tf.data.Dataset, buffer_size: int, seed: int, epoch: tf.Tensor) -> tf.data.Dataset:
    """Returns the dataset shuffled as Dataset.shuffle does, which cannot take a seed that is a tensor in a graph."""
    global_seed, op_seed = seed % _MAX_SEED, (seed * 1_000_003 + epoch) % _MAX_SEED
    if not global_seed:  # C++ takes two zeros for "no seed"
        op_seed = tf.where(op_seed == 0, tf.constant(_MAX_SEED, tf.int64), op_seed)
    shuffled = tf.raw_ops.ShuffleDatasetV3(
        input_dataset=tf.data.experimental.to_variant(ds),
        buffer_size=buffer_size,
        seed=global_seed,
        seed2=op_seed,
        seed_generator=tf.raw_ops.DummySeedGenerator(),
        output_types=[tf.string],
        output_shapes=[[]],
    )
    return tf.data.experimental.from_variant(shuffled, ds.element_spec)


def _shard_reader(balance: Balance | None, epoch: tf.Tensor) -> Any:
    """Returns a function from a shard's number and path to its serialized records, each as often as it comes."""
    if balance is None:
        return lambda _, path: tf.data.TFRecordDataset(path)
    bounds = tf.constant(balance.bounds)
    times = tf.ensure_shape(tf.numpy_function(balance.times, [epoch], tf.int64, stateful=False), [len(balance.track)])

    def read(number: tf.Tensor, path: tf.Tensor) -> tf.data.Dataset:
        counts = tf.data.Dataset.from_tensor_slices(times[bounds[number] : bounds[number + 1]])
        pairs = tf.data.Dataset.zip((tf.data.TFRecordDataset(path), counts))
        return pairs.flat_map(lambda record, count: tf.data.Dataset.from_tensors(record).repeat(count))

    return read


def _make_batch(source: TrainingInput, epoch: tf.Tensor, step: tf.Tensor, records: tf.Tensor) -> tuple[Any, ...]:
    """Returns one augmented batch: crop, distort, warp and mask, mix."""
    contract, section = source.contract, source.augment
    codes, targets, rows = _parse(records, source)
    step = step * source.n_processes + source.process  # no two processes draw alike
    seed = tf.random.experimental.stateless_fold_in(tf.stack([tf.constant(source.seed, tf.int64), epoch]), step)
    crop_seed, distort_seed, mask_seed, mix_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
    codes = augment.random_crop(codes, contract.frames, section, crop_seed)
    codes = augment.distort(codes, section, contract, distort_seed)
    codes.set_shape([source.local_batch_size, contract.frames, contract.n_bins])
    codes = augment.spec_augment(codes, tf.constant(source.fill), section, mask_seed)
    weights = _weights(targets, source.class_weights)
    present = _present(targets, contract, is_mixed=bool(section.mixup_alpha))
    tokens = source.metadata.draw(rows, distort_seed) if source.metadata else tf.zeros([source.local_batch_size, 0])
    if section.mixup_alpha:  # metadata is mixed as the targets are
        codes, both = augment.mixup(codes, tf.concat([targets, tokens], 1), section.mixup_alpha, mix_seed)
        targets, tokens = both[:, : len(contract.labels)], both[:, len(contract.labels) :]
    if contract.heads:
        return codes, {task: targets[:, part.columns] for task, part in contract.parts().items()}, present
    inputs = (codes, tokens) if source.metadata else codes
    return (inputs, targets) if weights is None else (inputs, targets, weights)


def _parse(records: tf.Tensor, source: TrainingInput) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the contents of serialized records.

    Codes [batch, segment_frames, n_bins], targets [batch, n_labels], rows of the tracks [batch].
    """
    contract = source.contract
    features = tf.io.parse_example(
        records,
        {
            "mel": tf.io.FixedLenFeature([], tf.string),
            "label": tf.io.RaggedFeature(tf.int64),
            "track": tf.io.FixedLenFeature([], tf.int64),
        },
    )
    flat_codes = tf.io.decode_raw(features["mel"], contract.dtype)
    codes = tf.reshape(flat_codes, [-1, source.manifest.segment_frames, contract.n_bins])
    one_hot = tf.one_hot(features["label"].to_tensor(default_value=-1), len(contract.labels))
    top_share = _TOP_SHARE if source.config.training.target == "soft_top" else 1.0
    targets = _soft(one_hot, top_share) if contract.kind == "single" else tf.reduce_max(one_hot, axis=1)
    return codes, targets, features["track"]


def _soft(one_hot: tf.Tensor, top_share: float) -> tf.Tensor:
    """Returns targets [batch, n_labels] that sum to 1: the share of the first label, and the rest for the others.

    `one_hot` is [batch, n_stored, n_labels], zeros where a track has fewer labels. A track of one label has 1 there.
    """
    first, others = one_hot[:, 0], tf.reduce_sum(one_hot[:, 1:], axis=1)
    n_others = tf.reduce_sum(others, axis=1, keepdims=True)
    share = tf.where(n_others > 0, top_share, 1.0)
    return share * first + (1.0 - share) * tf.math.divide_no_nan(others, n_others)


def _present(targets: tf.Tensor, contract: Contract, *, is_mixed: bool) -> dict[str, tf.Tensor]:
    """Returns 1 for examples that a task has labels for, else 0, [batch] by task; of a mixed pair both must have."""
    present = {task: tf.reduce_max(targets[:, part.columns], axis=1) for task, part in contract.parts().items()}
    return {task: value * tf.roll(value, 1, axis=0) if is_mixed else value for task, value in present.items()}


def _weights(targets: tf.Tensor, class_weights: np.ndarray | None) -> tf.Tensor | None:
    if class_weights is None:
        return None
    return tf.reduce_sum(targets * tf.constant(class_weights, tf.float32), axis=1)


def _deterministic() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    return options


def batch_tracks(source: TrainingInput, *, epoch: int, step: int) -> list[str]:
    """Returns the names of the tracks whose segments a step of an epoch trains on, both from 0, each name once."""
    ds = tf.data.Dataset.range(epoch, epoch + 1).flat_map(lambda number: _epoch(source, number))
    batches = ds.skip(step).take(1).with_options(_deterministic()).as_numpy_iterator()
    return list(dict.fromkeys(decode(record)[0].track_id for _, _, records in batches for record in records))


@contextmanager
def naming_shards(manifest: Manifest, splits: Sequence[str]) -> Iterator[None]:
    """Turns the failure of a pipeline whose shards have changed since it began into the name of the shard.

    Raises:
        RecordsError: a shard is missing or damaged by now.
    """
    try:
        yield
    except tf.errors.OpError:
        manifest.verify(splits)
        raise


def code_statistics(manifest: Manifest, splits: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and variance of the stored codes of some splits, float64 [n_bins]."""
    return Statistics.merge([manifest.split(name).statistics for name in splits]).mean_and_variance()
