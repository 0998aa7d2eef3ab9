"""The input of the original TFRecord project: floats parsed and augmented one example after the other."""

from pathlib import Path
from typing import Any

import tensorflow as tf

from tfmusic.benchmarks.clock import Bench, pulling

_SHARE = 0.1  # of the length: how far the warp moves, and how wide a mask is
_N_MASKS = 2


def stream(files: str, batch_size: int, stored_frames: int, frames: int, n_bins: int) -> Bench:
    """Returns batches of crops [frames, n_bins] of FloatList examples, warped and masked."""
    paths = sorted(str(path) for path in Path(files).glob("*.tfrecord"))

    def read(record: Any) -> Any:
        kinds = {
            "parameters": tf.io.FixedLenFeature([stored_frames * n_bins], tf.float32),
            "label": tf.io.FixedLenFeature([], tf.int64),
        }
        example = tf.io.parse_single_example(record, kinds)
        crop = tf.image.random_crop(tf.reshape(example["parameters"], [stored_frames, n_bins]), [frames, n_bins])
        return _mask(_mask(_warp(crop, frames), frames, axis=0), n_bins, axis=1), example["label"]

    ds = tf.data.TFRecordDataset(paths).repeat().shuffle(1000).map(read, num_parallel_calls=tf.data.AUTOTUNE)
    return Bench({"read": pulling(iter(ds.batch(batch_size).prefetch(tf.data.AUTOTUNE)), batch_size)})


def _warp(crop: Any, frames: int) -> Any:
    """Returns the crop with one point moved; a gather, which is kind: the original used `sparse_image_warp`."""
    reach = max(int(_SHARE * frames), 1)
    point = tf.random.uniform([], reach, frames - reach)
    moved = point + tf.random.uniform([], -reach + 1, reach - 1)
    frame = tf.range(frames, dtype=tf.float32)
    after = point + (frame - moved) * (frames - 1 - point) / (frames - 1 - moved)
    rows = tf.where(frame <= moved, frame * point / moved, after)
    return tf.gather(crop, tf.clip_by_value(tf.cast(tf.round(rows), tf.int32), 0, frames - 1))


def _mask(crop: Any, length: int, *, axis: int) -> Any:
    cells = tf.range(length)
    for _ in range(_N_MASKS):
        width = tf.random.uniform([], 0, max(int(_SHARE * length), 1), tf.int32)
        start = tf.random.uniform([], 0, length - width, tf.int32)
        is_masked = (cells >= start) & (cells < start + width)
        crop = tf.where(is_masked[:, None] if axis == 0 else is_masked[None, :], 0.0, crop)
    return crop
