"""Training batches as a tf.data.Dataset, made by threads while the model trains."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import tensorflow as tf

from tfmusic.inputs import augment
from tfmusic.inputs.batches import Batch, TrainingInput, as_keras_takes_it

# One thread makes the batches: two of them take turns with Python's lock, and make fewer. (Autotuning would stall for
# seconds when an iterator is dropped at the end of a training.)
_PARALLEL_CALLS = 1


def training_batches(source: TrainingInput, epochs: range) -> tf.data.Dataset:
    """Returns the batches of some epochs (codes [batch, frames, n_bins], targets [batch, n_labels]), or with weights.

    With metadata the first is a pair, codes and tokens [batch, n_tokens]; of several tasks, targets and weights [batch]
    are dicts by task.

    Every stored segment comes once an epoch, or as often as the balance says; only whole batches come, so that the
    training step has one shape. The same seed and epoch give the same batches, so that a resumed run goes on as if it
    had not stopped. The dataset can be read again from its start, as Keras does on JAX and on several devices to see a
    batch's shape.
    """
    # One dataset for all epochs: the next one begins while the model validates.
    return _batches(source, tf.data.Dataset.range(epochs.start, epochs.stop), len(epochs))


def epochs_in_turn(source: TrainingInput) -> tf.data.Dataset:
    """Returns the batches of one epoch, as `training_batches`; every time the dataset is read, those of the next."""
    numbers = count()
    epoch = tf.data.Dataset.from_generator(lambda: iter([next(numbers)]), output_signature=tf.TensorSpec([], tf.int64))
    return _batches(source, epoch, 1)


def segments_in_order(source: TrainingInput) -> tf.data.Dataset:
    """Returns every segment once, in file order: codes [batch, segment_frames, n_bins], targets [batch, n_labels]."""

    def read(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return source.segments.codes(numbers), source.targets(numbers)

    ds = tf.data.Dataset.range(len(source.segments)).batch(source.config.training.batch_size)
    contract = source.contract
    fields = [
        (contract.dtype, (None, source.manifest.segment_frames, contract.n_bins)),
        ("float32", (None, len(contract.labels))),
    ]
    ds = ds.map(lambda numbers: _call(read, [numbers], fields), num_parallel_calls=_PARALLEL_CALLS)
    return ds.prefetch(2).with_options(_deterministic())


def _batches(source: TrainingInput, epochs: tf.data.Dataset, n_epochs: int) -> tf.data.Dataset:
    """Returns the batches of the epochs whose numbers a dataset has."""
    ds = epochs.flat_map(lambda epoch: _epoch(source, epoch))
    ds = ds.map(lambda *numbered: _make_batch(source, *numbered), num_parallel_calls=_PARALLEL_CALLS)
    ds = ds.apply(tf.data.experimental.assert_cardinality(n_epochs * source.steps_per_epoch))
    return ds.prefetch(2).with_options(_deterministic())


def _epoch(source: TrainingInput, epoch: tf.Tensor) -> tf.data.Dataset:
    """Returns (epoch, step, numbers of segments [local_batch_size]) of an epoch."""
    order = tf.numpy_function(source.order, [epoch], tf.int64, stateful=False)
    order = tf.ensure_shape(order, [source.steps_per_epoch, source.local_batch_size])
    return tf.data.Dataset.from_tensor_slices(order).enumerate().map(lambda step, numbers: (epoch, step, numbers))


def _make_batch(source: TrainingInput, epoch: tf.Tensor, step: tf.Tensor, numbers: tf.Tensor) -> tuple[Any, ...]:
    """Returns one batch as Keras takes it."""
    if not source.has_image_warp:
        made = _call_for(source, source.parts, source.batch, [epoch, step, numbers])
    else:  # TensorFlow's warp stands between the halves
        windows = [name for name in source.parts if name != "weights"]
        made = _call_for(source, windows, source.windows, [epoch, step, numbers])
        places = _call(source.warp_points, [epoch, step], [("float32", (source.local_batch_size, 1))] * 2)
        made["codes"] = augment.image_warp(made["codes"], *places)

        def finish(epoch: int, step: int, codes: np.ndarray, *others: np.ndarray) -> Batch:
            given = dict(zip(windows[1:], others, strict=True))
            return source.finish(epoch, step, Batch(codes.copy(), given["targets"], given.get("tokens")))

        made = _call_for(source, source.parts, finish, [epoch, step, *made.values()])
    return as_keras_takes_it(source.contract, made)


def _call_for(
    source: TrainingInput, names: Sequence[str], function: Callable[..., Batch], arguments: Sequence[tf.Tensor]
) -> dict[str, tf.Tensor]:
    """Returns some parts of a batch that a function of numpy makes, as tensors by name."""
    contract, n_batch = source.contract, source.local_batch_size
    fields = {
        "codes": (contract.dtype, (n_batch, contract.frames, contract.n_bins)),
        "targets": ("float32", (n_batch, len(contract.labels))),
        "tokens": ("float32", (n_batch, len(contract.metadata))),
        "weights": ("float32", (n_batch, len(contract.heads)) if contract.heads else (n_batch,)),
    }

    def parts(*values: np.ndarray) -> tuple[np.ndarray, ...]:
        batch = function(*values)
        return tuple(getattr(batch, name) for name in names)

    return dict(zip(names, _call(parts, arguments, [fields[name] for name in names]), strict=True))


def _call(
    function: Callable[..., Any],
    arguments: Sequence[tf.Tensor],
    fields: Sequence[tuple[str, tuple[int | None, ...]]],
) -> tuple[tf.Tensor, ...]:
    """Returns the arrays of a function of numpy as tensors of these types and shapes."""
    tensors = tf.numpy_function(function, arguments, [dtype for dtype, _ in fields], stateful=False)
    for tensor, (_, shape) in zip(tensors, fields, strict=True):
        tensor.set_shape(shape)
    return tuple(tensors)


def _deterministic() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    return options
