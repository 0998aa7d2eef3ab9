"""The original TFRecord project's way: lists of floats an example, parsed and augmented one example after the other.

`warp` is the time warp of tensorflow-addons, as SpecAugment's users called it; it needs TensorFlow 2.15.
"""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tests.benchmarks.clock import Bench, Clock, pulling, repeating
from tfmusic.core.addons import sparse_image_warp
from tfmusic.core.windows import slice_windows

EXAMPLES_PER_FILE = 1000


def write(data: str, out: str, frames: int) -> Bench:
    """Returns a bench of converting tracks in turn, part `write`, in MB of source, with the bytes that it wrote."""
    paths = cycle(sorted(Path(data).rglob("*.npy")))
    target = Path(out)

    def convert(clock: Clock, seconds: float) -> float:
        n_bytes = 0
        with clock:
            with tf.io.TFRecordWriter(str(target)) as writer:
                while clock.elapsed_s < seconds:
                    mel = np.load(next(paths))
                    n_bytes += mel.nbytes
                    for segment in _segments(mel[0], frames):
                        writer.write(_example(segment, label=0))
            clock.bytes_out = target.stat().st_size
        target.unlink()
        return n_bytes / 1e6

    return Bench({"write": convert})


def write_files(data: str, out: str, frames: int, n_examples: int) -> Bench:
    """Writes so many segments, `EXAMPLES_PER_FILE` a file, as the original stored them; for reading them back."""
    segments: Iterator[Any] = (
        segment for path in cycle(sorted(Path(data).rglob("*.npy"))) for segment in _segments(np.load(path)[0], frames)
    )
    Path(out).mkdir()
    for first in range(0, n_examples, EXAMPLES_PER_FILE):
        with tf.io.TFRecordWriter(str(Path(out) / f"{first:06d}.tfrecord")) as writer:
            for index in range(first, min(first + EXAMPLES_PER_FILE, n_examples)):
                writer.write(_example(next(segments), label=index % 4))
    return Bench({})


def _segments(mel: np.ndarray, frames: int) -> Iterator[np.ndarray]:
    """Yields windows [frames, n_bins] of dB, the same that tfmusic stores."""
    yield from slice_windows(10.0 * np.log10(np.maximum(mel, 1e-10)).T, frames=frames, hop_frames=frames)[0]


def _example(segment: np.ndarray, *, label: int) -> bytes:
    values = tf.train.FloatList(value=segment.reshape(-1))
    feature = {
        "parameters": tf.train.Feature(float_list=values),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    encoded: bytes = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    return encoded


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


def warp(batch_size: int, frames: int, n_bins: int, warp_frames: int) -> Bench:
    """Returns `sparse_image_warp` on a batch: one point moves along time, corners and middles of the edges stay."""
    images = tf.random.stateless_uniform([batch_size, frames, n_bins, 1], [0, 0])
    reach, middle = min(warp_frames, (frames - 1) // 2), tf.fill([batch_size, 1], n_bins / 2)

    @tf.function
    def call() -> Any:
        point = tf.random.uniform([batch_size, 1], reach, frames - reach)
        moved = point + tf.random.uniform([batch_size, 1], -reach, reach)
        source, target = (tf.stack([place, middle], axis=-1) for place in (point, moved))  # [batch, 1, 2]
        return sparse_image_warp(images, source, target)

    return Bench({"warp": repeating(call, batch_size)})
