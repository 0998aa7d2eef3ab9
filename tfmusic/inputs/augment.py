"""SpecAugment (Park et al. 2019, arXiv 1904.08779) and mixup (Zhang et al. 2018, arXiv 1710.09412) on code batches.

All work on a whole batch [batch, frames, n_bins] in its storage dtype, and draw from stateless seeds: the same seed,
the same batch, called directly or inside tf.data. Integers are drawn as the paper has it: 0 included, the
parameter itself excluded.
"""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfmusic.addons import sparse_image_warp

_BYTES_A_WORD = 8


@dataclass(frozen=True)
class SpecAugment:
    """The six parameters of the paper; 0 switches a part off.

    Attributes:
        time_warp_frames: W, the warp moves a point by -W+1 to W-1 frames.
        freq_mask_bins: F, a frequency mask has 0 to F-1 bins.
        n_freq_masks: mF.
        time_mask_frames: T, a time mask has 0 to T-1 frames,
        time_mask_fraction: p, and at most p times the input's length.
        n_time_masks: mT.
        warp_by: `gather`, or `addons/sparse_image_warp`.
    """

    time_warp_frames: int = 0
    freq_mask_bins: int = 0
    n_freq_masks: int = 0
    time_mask_frames: int = 0
    time_mask_fraction: float = 1.0
    n_time_masks: int = 0
    warp_by: str = "gather"


# The policies of the paper: LibriSpeech basic and double, Switchboard mild and strong.
POLICIES = {
    "none": SpecAugment(),
    "LB": SpecAugment(80, 27, 1, 100, 1.0, 1),
    "LD": SpecAugment(80, 27, 2, 100, 1.0, 2),
    "SM": SpecAugment(40, 15, 2, 70, 0.2, 2),
    "SS": SpecAugment(40, 27, 2, 70, 0.2, 2),
}


def spec_augment(codes: tf.Tensor, fill: tf.Tensor, policy: SpecAugment, seed: tf.Tensor) -> tf.Tensor:
    """Returns the batch warped in time and masked, same shape and dtype.

    Args:
        codes: [batch, frames, n_bins].
        fill: value of masked cells, [n_bins], same dtype: the codes of the training mean.
        policy: the six parameters.
        seed: [2] integers.
    """
    codes = tf.convert_to_tensor(codes)
    if policy.time_warp_frames:
        warp = time_warp if policy.warp_by == "gather" else image_warp
        codes = warp(codes, policy.time_warp_frames, _fold_in(seed, 1))
    if not policy.n_freq_masks and not policy.n_time_masks:
        return codes
    shape = tf.shape(codes)
    n_batch, n_frames, n_bins = shape[0], shape[1], shape[2]
    longest = tf.minimum(
        policy.time_mask_frames - 1, tf.cast(policy.time_mask_fraction * tf.cast(n_frames, tf.float32), tf.int32)
    )
    in_freq = random_masks(n_batch, n_bins, policy.n_freq_masks, policy.freq_mask_bins - 1, _fold_in(seed, 2))
    in_time = random_masks(n_batch, n_frames, policy.n_time_masks, longest, _fold_in(seed, 3))
    return _fill_in(codes, fill, in_freq, in_time)


def _fill_in(codes: tf.Tensor, fill: tf.Tensor, in_freq: tf.Tensor, in_time: tf.Tensor) -> tf.Tensor:
    """Returns the batch with the fill in masked bins [batch, n_bins] and frames [batch, frames].

    Bytes are filled eight bins at a time, as bits of a word: half the time of a `where`.
    """
    n_bins = codes.shape[2]
    if codes.dtype != tf.uint8 or n_bins is None or n_bins % _BYTES_A_WORD:
        return tf.where(tf.logical_or(in_freq[:, None, :], in_time[:, :, None]), fill, codes)
    every, none = tf.constant(255, tf.uint8), tf.constant(0, tf.uint8)
    in_words = _words(tf.where(in_freq, every, none))  # [batch, n_bins / 8]
    masked = tf.bitwise.bitwise_or(in_words[:, None, :], -tf.cast(in_time, tf.int64)[:, :, None])
    words = _words(codes)
    change = tf.bitwise.bitwise_and(tf.bitwise.bitwise_xor(words, _words(fill)), masked)
    return tf.reshape(tf.bitcast(tf.bitwise.bitwise_xor(words, change), tf.uint8), tf.shape(codes))


def _words(values: tf.Tensor) -> tf.Tensor:
    """Returns bytes [..., n] as int64 [..., n / 8]."""
    shape = tf.concat([tf.shape(values)[:-1], [values.shape[-1] // _BYTES_A_WORD, _BYTES_A_WORD]], 0)
    return tf.bitcast(tf.reshape(values, shape), tf.int64)


def random_masks(n_batch: Any, length: Any, n_masks: int, widest: Any, seed: tf.Tensor) -> tf.Tensor:
    """Returns which cells of an axis are masked, bool [batch, length].

    Each mask has 0 to `widest` cells (never more than the axis) and begins at 0 to length - width - 1.
    """
    widest = tf.clip_by_value(tf.cast(widest, tf.int32), 0, tf.cast(length, tf.int32) - 1)
    draw = tf.random.stateless_uniform([2, n_batch, n_masks, 1], seed)
    width = whole_below(draw[0], widest + 1)
    start = whole_below(draw[1], tf.cast(length, tf.int32) - width)
    cells = tf.range(length, dtype=tf.int32)
    return tf.reduce_any((cells >= start) & (cells < start + width), axis=1)


def time_warp(codes: tf.Tensor, warp_frames: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns the batch with time stretched on one side of a random point and squeezed on the other.

    The point c lies in [W, frames - W) and moves by w in (-W, W); both sides stay linear, the ends stay where they
    are. Rows are gathered from the nearest frame, which in time-major layout is a copy of contiguous bytes. On inputs
    of 2 W frames or fewer W shrinks until a point is left.
    """
    point, moved = _warp_points(codes, warp_frames, seed)
    return tf.gather(codes, warp_rows(tf.shape(codes)[1], point, moved), batch_dims=1)


def image_warp(codes: tf.Tensor, warp_frames: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns the batch with the same random points moved by the same frames, by TensorFlow Addons' sparse image warp.

    The point is that of the middle bin; frames and bins around it follow a spline, as in the paper's own code.
    """
    middle = tf.cast(tf.shape(codes)[2], tf.float32) / 2.0
    source, target = (
        tf.stack([tf.cast(place, tf.float32), tf.fill(tf.shape(place), middle)], axis=-1)  # [batch, 1, 2]
        for place in _warp_points(codes, warp_frames, seed)
    )
    warped = sparse_image_warp(tf.cast(codes, tf.float32)[..., None], source, target)[..., 0]
    if not codes.dtype.is_integer:
        return tf.cast(warped, codes.dtype)
    return tf.cast(tf.clip_by_value(tf.round(warped), codes.dtype.min, codes.dtype.max), codes.dtype)


def _warp_points(codes: tf.Tensor, warp_frames: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a random frame of every example and where it moves, int32 [batch, 1] each."""
    n_batch, n_frames = tf.shape(codes)[0], tf.shape(codes)[1]
    reach = tf.minimum(warp_frames, (n_frames - 1) // 2)
    draw = tf.random.stateless_uniform([2, n_batch, 1], seed)
    point = reach + whole_below(draw[0], n_frames - 2 * reach)
    return point, point + whole_below(draw[1], tf.maximum(2 * reach - 1, 1)) - tf.maximum(reach - 1, 0)


def warp_rows(n_frames: Any, point: tf.Tensor, moved: tf.Tensor) -> tf.Tensor:
    """Returns which input frame each output frame shows, int32 [batch, frames]; frame `moved` shows `point`."""
    frame = tf.range(n_frames, dtype=tf.float32)[None, :]
    source, target, last = (tf.cast(value, tf.float32) for value in (point, moved, n_frames - 1))
    before = frame * source / tf.maximum(target, 1.0)
    after = source + (frame - target) * (last - source) / tf.maximum(last - target, 1.0)
    rows = tf.where(frame <= target, before, after)
    return tf.clip_by_value(tf.cast(tf.round(rows), tf.int32), 0, n_frames - 1)


def mixup(codes: tf.Tensor, targets: tf.Tensor, alpha: float, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the batch and its targets mixed with their neighbours; lambda ~ Beta(alpha, alpha), one an example.

    Codes are mixed on their (logarithmic) scale and rounded back, so that the batch keeps its dtype.
    """
    codes = tf.convert_to_tensor(codes)
    draw = tf.random.stateless_gamma([2, tf.shape(codes)[0]], seed, alpha=alpha)
    share = (draw[0] + 1e-12) / (draw[0] + draw[1] + 2e-12)
    share = tf.maximum(share, 1.0 - share)  # the example itself leads, so a batch keeps its labels' balance
    here = share[:, None, None]
    values = tf.cast(codes, tf.float32)
    mixed = here * values + (1.0 - here) * tf.roll(values, 1, axis=0)
    mixed = tf.cast(tf.round(mixed), codes.dtype) if codes.dtype.is_integer else tf.cast(mixed, codes.dtype)
    here = share[:, None]
    return mixed, here * targets + (1.0 - here) * tf.roll(targets, 1, axis=0)


def whole_below(uniform: tf.Tensor, limit: Any) -> tf.Tensor:
    """Returns whole numbers 0 to limit - 1 of uniform numbers in [0, 1)."""
    limit = tf.cast(limit, tf.int32)
    # A float32 just below 1 times a large limit may round up to the limit itself.
    return tf.minimum(tf.cast(uniform * tf.cast(limit, tf.float32), tf.int32), limit - 1)


def _fold_in(seed: tf.Tensor, number: int) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(seed, number)
