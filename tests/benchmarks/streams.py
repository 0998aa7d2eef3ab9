"""The streams of tfmusic, and the raw reading of its shards, as benches; part `read` counts segments."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.clock import Bench, pulling, repeating
from tfmusic.config.sections import Config
from tfmusic.inputs import augment
from tfmusic.inputs.batches import TrainingInput, batches_ahead
from tfmusic.records.manifest import Manifest

_EPOCHS = 2000  # so that a stream does not end while it is measured


def raw(records: str, batch_size: int) -> Bench:
    """Returns serialized records of the shards, one file after the other: no parsing, no shuffling."""
    import tensorflow as tf

    manifest = Manifest.read(Path(records))
    files = [str(path) for split in manifest.splits for path in manifest.shard_paths(split)]
    ds = tf.data.TFRecordDataset(files).repeat().batch(batch_size).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    return Bench({"read": pulling(iter(ds.with_options(options)), batch_size)})


def ours(records: str, batch_size: int, frames: int | None, policy: str) -> Bench:
    """Returns the training stream as tf.data; frames None is whole stored segments."""
    from tfmusic.inputs.pipeline import training_batches

    source = _source(records, batch_size, frames, policy)
    return Bench({"read": pulling(iter(training_batches(source, range(_EPOCHS))), batch_size)})


def without_tensorflow(records: str, batch_size: int, frames: int | None, policy: str) -> Bench:
    """Returns the training stream as JAX reads it, without TensorFlow."""
    source = _source(records, batch_size, frames, policy)
    return Bench({"read": pulling(batches_ahead(source, range(_EPOCHS)), batch_size)})


def _source(records: str, batch_size: int, frames: int | None, policy: str) -> TrainingInput:
    manifest = Manifest.read(Path(records))
    config = Config.model_validate(
        {
            "task": "q1",
            "data": {"question": "q1"},
            "augment": {"policy": policy},
            "training": {"batch_size": batch_size},
        }
    )
    contract = replace(manifest.contract, frames=frames or manifest.segment_frames, metadata=())
    return TrainingInput(config, manifest, tuple(manifest.splits), contract)


def warp(batch_size: int, frames: int, n_bins: int, warp_frames: int) -> Bench:
    """Returns the time warp alone on a batch of codes."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (batch_size, frames, n_bins), np.uint8)

    def call() -> Any:
        rows = augment.warp_rows(frames, *augment.warp_points(batch_size, frames, warp_frames, rng))
        return [segment.take(mine, 0) for segment, mine in zip(codes, rows, strict=True)]

    return Bench({"warp": repeating(call, batch_size)})
