"""The streams of tfmusic, and the raw reading of its shards, as benches; part `read` counts segments."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tests.benchmarks.clock import Bench, pulling, repeating
from tfmusic.config.sections import Config
from tfmusic.inputs import augment, pipeline
from tfmusic.records.manifest import Manifest

_EPOCHS = 2000  # so that a stream does not end while it is measured


def raw(records: str, batch_size: int) -> Bench:
    """Returns serialized records of the shards, one file after the other: no parsing, no shuffling."""
    manifest = Manifest.read(Path(records))
    files = [str(path) for split in manifest.splits for path in manifest.shard_paths(split)]
    ds = tf.data.TFRecordDataset(files).repeat().batch(batch_size).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    return Bench({"read": pulling(iter(ds.with_options(options)), batch_size)})


def ours(records: str, batch_size: int, frames: int | None, policy: str, shuffle_segments: int) -> Bench:
    """Returns the training stream; frames None is whole stored segments."""
    manifest = Manifest.read(Path(records))
    config = Config.model_validate(
        {
            "task": "q1",
            "data": {"question": "q1"},
            "input": {"shuffle_segments": shuffle_segments},
            "augment": {"policy": policy},
            "training": {"batch_size": batch_size},
        }
    )
    contract = replace(manifest.contract, frames=frames or manifest.segment_frames, metadata=())
    source = pipeline.TrainingInput(config, manifest, tuple(manifest.splits), contract)
    ds = pipeline.training_batches(source, range(_EPOCHS))
    return Bench({"read": pulling(iter(ds), batch_size)})


def warp(batch_size: int, frames: int, n_bins: int, warp_frames: int) -> Bench:
    """Returns the time warp alone on a batch of codes."""
    codes = tf.constant(np.random.default_rng(0).integers(0, 256, (batch_size, frames, n_bins), np.uint8))
    seed = tf.Variable([0, 0])

    @tf.function
    def call() -> Any:
        seed.assign_add([1, 0])
        return augment.time_warp(codes, warp_frames, seed)

    return Bench({"warp": repeating(call, batch_size)})
