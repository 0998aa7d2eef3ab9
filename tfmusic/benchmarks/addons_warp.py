"""The time warp of tensorflow-addons, as SpecAugment's users called it; needs TensorFlow 2.15."""

from typing import Any

import tensorflow as tf

from tfmusic.benchmarks.clock import Bench, repeating
from tfmusic.core.addons import sparse_image_warp


def warp(batch_size: int, frames: int, n_bins: int, warp_frames: int) -> Bench:
    """Returns `sparse_image_warp` on a batch: one point moves along time, corners and middles of the edges stay."""
    images = tf.random.stateless_uniform([batch_size, frames, n_bins, 1], [0, 0])
    reach, middle = min(warp_frames, (frames - 1) // 2), tf.fill([batch_size, 1], n_bins / 2)

    @tf.function  # type: ignore[untyped-decorator]
    def call() -> Any:
        point = tf.random.uniform([batch_size, 1], reach, frames - reach)
        moved = point + tf.random.uniform([batch_size, 1], -reach, reach)
        source, target = (tf.stack([place, middle], axis=-1) for place in (point, moved))  # [batch, 1, 2]
        return sparse_image_warp(images, source, target)

    return Bench({"warp": repeating(call, batch_size)})
