"""The design of the original TFRecord project: a list of floats an example, through TensorFlow's objects and writer."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmusic.benchmarks.clock import Bench, Clock
from tfmusic.core.windows import cut

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
    yield from cut(10.0 * np.log10(np.maximum(mel, 1e-10)).T, frames=frames, hop_frames=frames)[0]


def _example(segment: np.ndarray, *, label: int) -> bytes:
    values = tf.train.FloatList(value=segment.reshape(-1))
    feature = {
        "parameters": tf.train.Feature(float_list=values),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    encoded: bytes = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    return encoded
