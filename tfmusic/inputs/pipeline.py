"""The order of operations from records to training batches; `inference/windows.py` has that of evaluation."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfmusic.core.contract import Contract
from tfmusic.inputs import augment
from tfmusic.inputs.augment import Distortion, distort, random_crop
from tfmusic.inputs.balance import Balance
from tfmusic.inputs.metadata import Metadata
from tfmusic.records.format import decode
from tfmusic.records.manifest import Manifest, Statistics

# Explicit parallelism: autotuning stalls for seconds when an iterator is dropped at the end of an epoch.
_PARALLEL_CALLS = 2
_OPEN_SHARDS = 16

_ReadShard = Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]


@dataclass(frozen=True)
class TrainingInput:
    """How training batches are made.

    Attributes:
        frames: length of the model's input.
        batch_size: segments in a batch.
        shuffle_segments: size of the shuffle buffer, segments.
        policy: SpecAugment parameters.
        mixup_alpha: parameter of mixup's Beta distribution; 0 for none.
        class_weights: weight of every label, of which an example has the mean by its targets; or None.
        seed: with the epoch, decides order, crops and masks.
        distortion: how far tempo, pitch, loudness and timbre may change.
        metadata: that of every track, or None.
        balance: how often every segment comes, or None for once.
        top_share: of one label a track, the target's share of the first where there are others; they share the rest.
        process: number of this process, of those that share every batch.
        n_processes: how many there are; each reads shards of its own.
    """

    frames: int
    batch_size: int
    shuffle_segments: int
    policy: augment.SpecAugment
    mixup_alpha: float
    class_weights: np.ndarray | None
    seed: int
    distortion: Distortion = Distortion()  # noqa: RUF009 - it never changes
    metadata: Metadata | None = None
    balance: Balance | None = None
    top_share: float = 1.0
    process: int = 0
    n_processes: int = 1


class TrainingStream:
    """The training batches of any epoch.

    What happens to a batch is one graph for all epochs: to trace it anew for each takes longer than its first batch,
    and the old graphs wait for Python's garbage collector.

    Args:
        manifest: the records.
        splits: those to train on.
        fill: mean of the stored cells [n_bins], which masks put in.
        options: how batches are made.
    """

    def __init__(self, manifest: Manifest, splits: Sequence[str], fill: np.ndarray, options: TrainingInput) -> None:
        self._manifest, self._splits, self._options = manifest, splits, _of_this_process(options)
        self.steps = count_segments(manifest, splits, options.balance) // options.batch_size
        number = tf.TensorSpec([], tf.int64)
        self._make_batch = tf.function(
            lambda epoch, index, records: _make_batch(epoch, index, records, manifest, fill, self._options),
            input_signature=[number, number, tf.TensorSpec([self._options.batch_size], tf.string)],
        )

    def epoch(self, epoch: int) -> tf.data.Dataset:
        """Returns one epoch, as `for_training`."""
        ds = _dealt(self._manifest, self._splits, self._options, self.steps, epoch)
        ds = ds.batch(self._options.batch_size, drop_remainder=True)
        # Parse and augment whole batches: one call for all instead of one a segment.
        ds = ds.enumerate().map(
            lambda index, records: self._make_batch(tf.constant(epoch, tf.int64), index, records),
            num_parallel_calls=_PARALLEL_CALLS,
        )
        ds = ds.apply(tf.data.experimental.assert_cardinality(self.steps))
        return ds.prefetch(2).with_options(_deterministic())


def for_training(
    manifest: Manifest, splits: Sequence[str], fill: np.ndarray, options: TrainingInput, *, epoch: int
) -> tf.data.Dataset:
    """Returns one epoch of (codes [batch, frames, n_bins], targets [batch, n_labels]) or with weights [batch].

    With metadata the first is a pair, codes and tokens [batch, n_tokens].

    Every stored segment comes once, or as often as the balance says; only whole batches come, so that the training
    step has one shape. The same seed and epoch give the same batches, so that a resumed run goes on as if it had not
    stopped.
    """
    return TrainingStream(manifest, splits, fill, options).epoch(epoch)


def batch_tracks(
    manifest: Manifest, splits: Sequence[str], options: TrainingInput, *, epoch: int, step: int
) -> list[str]:
    """Returns the names of the tracks whose segments `for_training` gives in a step, counted from 0, each once."""
    options = _of_this_process(options)
    ds = _dealt(manifest, splits, options, step + 1, epoch).skip(step * options.batch_size).take(options.batch_size)
    records = ds.with_options(_deterministic()).as_numpy_iterator()
    return list(dict.fromkeys(decode(record)[0].track_id for record in records))


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


def count_segments(manifest: Manifest, splits: Sequence[str], balance: Balance | None) -> int:
    """Returns how many segments come in an epoch of training."""
    return balance.n_segments if balance else sum(manifest.split(name).segments for name in splits)


def _of_this_process(options: TrainingInput) -> TrainingInput:
    """Returns the options with the part of a batch that this process makes."""
    return replace(options, batch_size=options.batch_size // options.n_processes)


def _dealt(
    manifest: Manifest, splits: Sequence[str], options: TrainingInput, steps: int, epoch: int
) -> tf.data.Dataset:
    """Returns the serialized segments of an epoch, or where processes share it those of this one for some steps."""
    files = [str(path) for split in splits for path in manifest.shard_paths(split)]
    order = np.random.default_rng([options.seed, epoch]).permutation(len(files))
    mine = order[options.process :: options.n_processes]
    read_fn = _shard_reader(options.balance, epoch)
    # Made anew whenever it is read: on JAX and on several devices Keras draws a batch first to see its shape, and a
    # dataset that goes on from there would come in another order.
    ds = tf.data.Dataset.range(1).flat_map(lambda _: _shuffled(mine, files, read_fn, options, epoch))
    if options.n_processes > 1:  # shards differ in size, but every process has to make the same steps
        ds = ds.repeat().take(steps * options.batch_size)
    return ds


def _shuffled(
    numbers: np.ndarray, files: list[str], read_fn: _ReadShard, options: TrainingInput, epoch: int
) -> tf.data.Dataset:
    """Returns the serialized segments of some shards, by their numbers among the files, in the order of an epoch."""
    ds = tf.data.Dataset.from_tensor_slices((numbers, [files[i] for i in numbers]))
    # Many shards at once: a shard holds whole tracks, so neighbours in one shard are alike. One thread reads them all:
    # more cost 30 % more CPU time, and one reads 50,000 segments a second.
    ds = ds.interleave(read_fn, cycle_length=_OPEN_SHARDS)
    # Shuffle what is still serialized: strings move by reference.
    return ds.shuffle(options.shuffle_segments, seed=options.seed * 1_000_003 + epoch)


def cell_statistics(manifest: Manifest, splits: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and variance of the stored cells of some splits, float64 [n_bins]."""
    return Statistics.merge([manifest.split(name).statistics for name in splits]).mean_and_variance()


def _shard_reader(balance: Balance | None, epoch: int) -> _ReadShard:
    """Returns what reads the serialized records of a shard, given its number and path, each as often as it comes."""
    if balance is None:
        return lambda _, path: tf.data.TFRecordDataset(path)
    bounds, times = tf.constant(balance.bounds), tf.constant(balance.times(epoch))

    def read(number: tf.Tensor, path: tf.Tensor) -> tf.data.Dataset:
        mine = tf.data.Dataset.from_tensor_slices(times[bounds[number] : bounds[number + 1]])
        pairs = tf.data.Dataset.zip((tf.data.TFRecordDataset(path), mine))
        return pairs.flat_map(lambda record, count: tf.data.Dataset.from_tensors(record).repeat(count))

    return read


def _make_batch(
    epoch: tf.Tensor,
    index: tf.Tensor,
    records: tf.Tensor,
    manifest: Manifest,
    fill: np.ndarray,
    options: TrainingInput,
) -> tuple[Any, ...]:
    """Returns one augmented batch; targets by task where there are several.

    The order: crop, distort, warp and mask, mix.
    """
    contract = manifest.contract
    codes, targets, rows = _parse(records, manifest, options.top_share)
    index = index * options.n_processes + options.process  # no two processes draw alike
    seed = tf.random.experimental.stateless_fold_in(tf.stack([tf.constant(options.seed, tf.int64), epoch]), index)
    crop_seed, distort_seed, mask_seed, mix_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
    codes = random_crop(codes, options.frames, options.distortion, crop_seed)
    codes = distort(codes, options.distortion, contract, distort_seed)
    codes.set_shape([options.batch_size, options.frames, contract.n_bins])
    cells = tf.constant(np.round(fill) if contract.dtype == "uint8" else fill, contract.dtype)
    codes = augment.spec_augment(codes, cells, options.policy, mask_seed)
    weights = _weights(targets, options.class_weights)
    present = _present(targets, contract, is_mixed=bool(options.mixup_alpha))
    tokens = options.metadata.draw(rows, distort_seed) if options.metadata else tf.zeros([options.batch_size, 0])
    if options.mixup_alpha:  # metadata is mixed as the targets are
        codes, both = augment.mixup(codes, tf.concat([targets, tokens], 1), options.mixup_alpha, mix_seed)
        targets, tokens = both[:, : len(contract.labels)], both[:, len(contract.labels) :]
    if contract.heads:
        return codes, {task: targets[:, part.columns] for task, part in contract.parts().items()}, present
    inputs = (codes, tokens) if options.metadata else codes
    return (inputs, targets) if weights is None else (inputs, targets, weights)


def _parse(records: tf.Tensor, manifest: Manifest, top_share: float) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns what serialized records hold.

    Codes [batch, segment_frames, n_bins], targets [batch, n_labels], rows of the tracks [batch].
    """
    contract = manifest.contract
    features = tf.io.parse_example(
        records,
        {
            "mel": tf.io.FixedLenFeature([], tf.string),
            "label": tf.io.RaggedFeature(tf.int64),
            "track": tf.io.FixedLenFeature([], tf.int64),
        },
    )
    cells = tf.io.decode_raw(features["mel"], contract.dtype)
    codes = tf.reshape(cells, [-1, manifest.segment_frames, contract.n_bins])
    one_hot = tf.one_hot(features["label"].to_tensor(default_value=-1), len(contract.labels))
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


class Epochs:
    """The epochs of a stream; with `early` one may be begun before it is wanted, and then be read once."""

    def __init__(self, stream: TrainingStream, *, early: bool) -> None:
        self._stream, self._early = stream, early
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="epoch")
        self._begun: dict[int, Future[tuple[Any, Any]]] = {}

    def begin(self, epoch: int) -> None:
        """Starts an epoch, counted from 0, on a thread of its own; one that was begun before is dropped."""
        if self._early:
            self._begun = {epoch: self._thread.submit(self._start, epoch)}

    def read(self, epoch: int) -> tf.data.Dataset:
        """Returns an epoch, as `TrainingStream.epoch`; raises what went wrong when it was begun."""
        if epoch not in self._begun:
            return self._stream.epoch(epoch)
        first, others = self._begun.pop(epoch).result()
        rest = tf.data.Dataset.range(self._stream.steps - 1).map(lambda _: others.get_next())
        ds = tf.data.Dataset.from_tensors(first).concatenate(rest)
        return ds.apply(tf.data.experimental.assert_cardinality(self._stream.steps))

    def _start(self, epoch: int) -> tuple[Any, Any]:
        """Returns the first batch and the iterator over the others, which are made from now on."""
        batches = iter(self._stream.epoch(epoch))
        return next(batches), batches
