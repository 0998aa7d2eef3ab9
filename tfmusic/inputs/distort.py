"""Distortions that leave the music what it is: tempo, pitch, loudness and timbre, on code batches.

Random resized crops follow Inception's (Szegedy et al. 2015, arXiv 1409.4842), random equaliser curves FilterAugment
(Nam et al. 2022, arXiv 2110.03282). As in `augment`, everything works on a whole batch [batch, frames, n_bins] in its
storage dtype and draws from stateless seeds.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf

from tfmusic.contract import Contract
from tfmusic.inputs.augment import whole_below

_CURVE_POINTS = 6  # of an equaliser curve, evenly over the bins


@dataclass(frozen=True)
class Distortion:
    """How far each distortion may go; 0 switches it off, and 1 piece is a plain crop.

    Attributes:
        crop_pieces: a window is put together from this many pieces of its stored segment.
        time_stretch: tempo changes by a factor of 1 - s to 1 + s.
        freq_stretch: the bins spread by a factor of 1 - s to 1 + s around the middle one.
        freq_shift_bins: the spectrum moves by -n to n bins.
        gain_db: loudness changes by -g to g dB.
        equalizer_db: a curve through six points of -e to e dB is added over the bins.
    """

    crop_pieces: int = 1
    time_stretch: float = 0.0
    freq_stretch: float = 0.0
    freq_shift_bins: int = 0
    gain_db: float = 0.0
    equalizer_db: float = 0.0


def random_crop(codes: tf.Tensor, frames: int, distortion: Distortion, seed: tf.Tensor) -> tf.Tensor:
    """Returns windows of `frames` frames at random places of the segments [batch, >= frames, n_bins].

    Pieces follow each other in the window, each from a place of its own. A stretch that the segment is too short for
    is cut down to what it holds.
    """
    codes = tf.convert_to_tensor(codes)
    if codes.shape[1] == frames and distortion.crop_pieces == 1 and not distortion.time_stretch:
        return codes  # there is one place
    n_batch, n_frames = tf.shape(codes)[0], tf.shape(codes)[1]
    rows = []
    rate = _rate(n_batch, distortion.time_stretch, tf.random.experimental.stateless_fold_in(seed, 0))
    for piece, length in enumerate(_lengths(frames, distortion.crop_pieces)):
        longest = tf.cast(n_frames - 1, tf.float32) / max(length - 1, 1)
        steps = tf.minimum(rate, longest) * tf.range(length, dtype=tf.float32)[None, :]
        offsets = tf.cast(tf.round(steps), tf.int32)
        place = tf.random.experimental.stateless_fold_in(seed, piece + 1)
        start = whole_below(tf.random.stateless_uniform([n_batch, 1], place), n_frames - offsets[:, -1:])
        rows.append(start + offsets)
    return tf.gather(codes, tf.concat(rows, axis=1), batch_dims=1)


def distort(codes: tf.Tensor, distortion: Distortion, contract: Contract, seed: tf.Tensor) -> tf.Tensor:
    """Returns the batch with pitch, loudness and timbre changed, same shape and dtype."""
    pitch_seed, colour_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    if distortion.freq_stretch or distortion.freq_shift_bins:
        codes = _move_bins(codes, distortion, pitch_seed)
    if distortion.gain_db or distortion.equalizer_db:
        codes = _colour(codes, distortion, contract, colour_seed)
    return codes


def _lengths(frames: int, pieces: int) -> list[int]:
    ends = [round(i * frames / pieces) for i in range(pieces + 1)]
    return [end - begin for begin, end in pairwise(ends) if end > begin]


def _rate(n_batch: Any, stretch: float, seed: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform([n_batch, 1], seed, 1.0 - stretch, 1.0 + stretch)


def _move_bins(codes: tf.Tensor, distortion: Distortion, seed: tf.Tensor) -> tf.Tensor:
    """Returns every output bin from the nearest bin that it shows; what lies beyond the ends repeats the last one."""
    n_batch, n_bins = tf.shape(codes)[0], tf.shape(codes)[2]
    rate_seed, shift_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    shift = distortion.freq_shift_bins
    moved = whole_below(tf.random.stateless_uniform([n_batch, 1], shift_seed), 2 * shift + 1) - shift
    middle = tf.cast(n_bins - 1, tf.float32) / 2.0
    from_middle = tf.range(n_bins, dtype=tf.float32)[None, :] - middle
    source = middle + from_middle * _rate(n_batch, distortion.freq_stretch, rate_seed) - tf.cast(moved, tf.float32)
    columns = tf.clip_by_value(tf.cast(tf.round(source), tf.int32), 0, n_bins - 1)
    return tf.gather(codes, columns, axis=2, batch_dims=1)


def _colour(codes: tf.Tensor, distortion: Distortion, contract: Contract, seed: tf.Tensor) -> tf.Tensor:
    """Returns the batch with a gain and an equaliser curve added, in dB, within the range of the scale."""
    n_batch = tf.shape(codes)[0]
    gain_seed, curve_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    low, high = float(contract.scale["low"]), float(contract.scale["high"])
    is_coded = contract.dtype == "uint8"
    gain = tf.random.stateless_uniform([n_batch, 1], gain_seed, -distortion.gain_db, distortion.gain_db)
    points = tf.random.stateless_uniform(
        [n_batch, _CURVE_POINTS], curve_seed, -distortion.equalizer_db, distortion.equalizer_db
    )
    added = (gain + points @ tf.constant(_curve_basis(contract.n_bins)))[:, None, :]
    per_code, offset = ((high - low) / 255.0, low) if is_coded else (1.0, 0.0)
    scaled = tf.cast(codes, tf.float32) * per_code + offset
    louder = tf.clip_by_value(_amplify(scaled, added, contract.scale["name"]), low, high)
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
