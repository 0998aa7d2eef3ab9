"""Augmentation of code batches: crops and distortions, SpecAugment, mixup.

Distortions leave the music what it is: tempo, pitch, loudness and timbre change. Random resized crops follow
Inception's (Szegedy et al. 2015, arXiv 1409.4842), random equaliser curves FilterAugment (Nam et al. 2022, arXiv
2110.03282). SpecAugment is Park et al. 2019 (arXiv 1904.08779), mixup Zhang et al. 2018 (arXiv 1710.09412).

Every function works on a whole batch [batch, frames, n_bins] in its storage dtype, takes the config's section `augment`
and draws from a stateless seed.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf

from tfmusic.config.sections import AugmentSection
from tfmusic.core.addons import sparse_image_warp
from tfmusic.core.contract import Contract

_CURVE_POINTS = 6  # of an equaliser curve, evenly over the bins
_BYTES_A_WORD = 8

# SpecAugment's parameters in table 1 of the paper: LibriSpeech basic and double, Switchboard mild and strong.
_POLICY_KEYS = (
    "time_warp_frames", "freq_mask_bins", "n_freq_masks", "time_mask_frames", "time_mask_fraction", "n_time_masks",
)  # fmt: skip
_POLICIES: dict[str, tuple[float, ...]] = {
    "none": (0, 0, 0, 0, 1.0, 0),
    "LB": (80, 27, 1, 100, 1.0, 1),
    "LD": (80, 27, 2, 100, 1.0, 2),
    "SM": (40, 15, 2, 70, 0.2, 2),
    "SS": (40, 27, 2, 70, 0.2, 2),
}


def resolve(section: AugmentSection) -> AugmentSection:
    """Returns the section with the SpecAugment parameters of its policy; `custom` has its own."""
    if section.policy == "custom":
        return section
    return section.model_copy(update=dict(zip(_POLICY_KEYS, _POLICIES[section.policy], strict=True)))


def only_mixup(section: AugmentSection) -> AugmentSection:
    """Returns a section that mixes examples as `section` does and changes nothing else."""
    return resolve(AugmentSection(policy="none", mixup_alpha=section.mixup_alpha))


def random_crop(codes: tf.Tensor, frames: int, section: AugmentSection, seed: tf.Tensor) -> tf.Tensor:
    """Returns windows of `frames` frames at random places of the segments [batch, >= frames, n_bins].

    Pieces follow each other in the window, each from a place of its own. A stretch that the segment is too short for
    is cut down to what it holds.
    """
    codes = tf.convert_to_tensor(codes)
    if codes.shape[1] == frames and section.n_crops == 1 and not section.time_stretch:
        return codes  # there is one place
    n_batch, n_frames = tf.shape(codes)[0], tf.shape(codes)[1]
    rows = []
    rate = _rate(n_batch, section.time_stretch, tf.random.experimental.stateless_fold_in(seed, 0))
    for piece, length in enumerate(_lengths(frames, section.n_crops)):
        longest = tf.cast(n_frames - 1, tf.float32) / max(length - 1, 1)
        steps = tf.minimum(rate, longest) * tf.range(length, dtype=tf.float32)[None, :]
        offsets = tf.cast(tf.round(steps), tf.int32)
        place = tf.random.experimental.stateless_fold_in(seed, piece + 1)
        start = whole_below(tf.random.stateless_uniform([n_batch, 1], place), n_frames - offsets[:, -1:])
        rows.append(start + offsets)
    return tf.gather(codes, tf.concat(rows, axis=1), batch_dims=1)


def distort(codes: tf.Tensor, section: AugmentSection, contract: Contract, seed: tf.Tensor) -> tf.Tensor:
    """Returns the batch with pitch, loudness and timbre changed, same shape and dtype."""
    pitch_seed, colour_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    if section.freq_stretch or section.freq_shift_bins:
        codes = _move_bins(codes, section, pitch_seed)
    if section.gain_db or section.equalizer_db:
        codes = _colour(codes, section, contract, colour_seed)
    return codes


def _lengths(frames: int, pieces: int) -> list[int]:
    ends = [round(i * frames / pieces) for i in range(pieces + 1)]
    return [end - begin for begin, end in pairwise(ends) if end > begin]


def _rate(n_batch: Any, stretch: float, seed: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform([n_batch, 1], seed, 1.0 - stretch, 1.0 + stretch)


def _move_bins(codes: tf.Tensor, section: AugmentSection, seed: tf.Tensor) -> tf.Tensor:
    """Returns every output bin from the nearest bin that it shows; what lies beyond the ends repeats the last one."""
    n_batch, n_bins = tf.shape(codes)[0], tf.shape(codes)[2]
    rate_seed, shift_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    shift = section.freq_shift_bins
    moved = whole_below(tf.random.stateless_uniform([n_batch, 1], shift_seed), 2 * shift + 1) - shift
    middle = tf.cast(n_bins - 1, tf.float32) / 2.0
    from_middle = tf.range(n_bins, dtype=tf.float32)[None, :] - middle
    source = middle + from_middle * _rate(n_batch, section.freq_stretch, rate_seed) - tf.cast(moved, tf.float32)
    columns = tf.clip_by_value(tf.cast(tf.round(source), tf.int32), 0, n_bins - 1)
    return tf.gather(codes, columns, axis=2, batch_dims=1)


def _colour(codes: tf.Tensor, section: AugmentSection, contract: Contract, seed: tf.Tensor) -> tf.Tensor:
    """Returns the batch with a gain and an equaliser curve added, in dB, within the range of the scale."""
    n_batch = tf.shape(codes)[0]
    gain_seed, curve_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    low, high = contract.scale.low, contract.scale.high
    is_coded = contract.dtype == "uint8"
    gain = tf.random.stateless_uniform([n_batch, 1], gain_seed, -section.gain_db, section.gain_db)
    points = tf.random.stateless_uniform(
        [n_batch, _CURVE_POINTS], curve_seed, -section.equalizer_db, section.equalizer_db
    )
    added = (gain + points @ tf.constant(_curve_basis(contract.n_bins)))[:, None, :]
    per_code, offset = ((high - low) / 255.0, low) if is_coded else (1.0, 0.0)
    scaled = tf.cast(codes, tf.float32) * per_code + offset
    louder = tf.clip_by_value(_amplify(scaled, added, contract.scale.name), low, high)
    return tf.cast(tf.round((louder - offset) / per_code) if is_coded else louder, codes.dtype)


def _amplify(scaled: tf.Tensor, gain_db: tf.Tensor, scale: str) -> tf.Tensor:
    """Returns scaled values of power that is multiplied by a gain: a sum in dB, exact on log10(1 + a m) as well."""
    if scale == "db":
        return scaled + gain_db
    ln10 = math.log(10.0)
    return tf.math.log1p(tf.exp(gain_db * (ln10 / 10.0)) * tf.math.expm1(scaled * ln10)) / ln10


def _curve_basis(n_bins: int) -> np.ndarray:
    """Returns how much of every point a bin has, [points, n_bins]: straight lines between neighbouring points."""
    place = np.linspace(0, _CURVE_POINTS - 1, n_bins)
    distance = np.abs(place[None, :] - np.arange(_CURVE_POINTS)[:, None])
    return np.asarray(np.maximum(1.0 - distance, 0.0), np.float32)


def spec_augment(codes: tf.Tensor, fill: tf.Tensor, section: AugmentSection, seed: tf.Tensor) -> tf.Tensor:
    """Returns the batch warped in time and masked, same shape and dtype.

    Args:
        codes: [batch, frames, n_bins].
        fill: value of masked bins or frames, [n_bins], same dtype: the codes of the training mean.
        section: with SpecAugment's six parameters; 0 switches a part off. A mask over bins has 0 to
            `freq_mask_bins` - 1 of them; one over frames 0 to `time_mask_frames` - 1, and at most
            `time_mask_fraction` of the input's length.
        seed: [2] integers.
    """
    codes = tf.convert_to_tensor(codes)
    if section.time_warp_frames:
        warp = time_warp if section.time_warp == "gather" else image_warp
        codes = warp(codes, section.time_warp_frames, _fold_in(seed, 1))
    if not section.n_freq_masks and not section.n_time_masks:
        return codes
    shape = tf.shape(codes)
    n_batch, n_frames, n_bins = shape[0], shape[1], shape[2]
    longest = tf.minimum(
        section.time_mask_frames - 1, tf.cast(section.time_mask_fraction * tf.cast(n_frames, tf.float32), tf.int32)
    )
    in_freq = random_masks(n_batch, n_bins, section.n_freq_masks, section.freq_mask_bins - 1, _fold_in(seed, 2))
    in_time = random_masks(n_batch, n_frames, section.n_time_masks, longest, _fold_in(seed, 3))
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
    """Returns which bins or frames are masked, bool [batch, length].

    Each mask has 0 to `widest` of them (never all of the axis) and begins at 0 to length - width - 1.
    """
    widest = tf.clip_by_value(tf.cast(widest, tf.int32), 0, tf.cast(length, tf.int32) - 1)
    draw = tf.random.stateless_uniform([2, n_batch, n_masks, 1], seed)
    width = whole_below(draw[0], widest + 1)
    start = whole_below(draw[1], tf.cast(length, tf.int32) - width)
    places = tf.range(length, dtype=tf.int32)
    return tf.reduce_any((places >= start) & (places < start + width), axis=1)


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
