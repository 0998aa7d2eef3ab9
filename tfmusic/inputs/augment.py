"""Augmentation of code batches: crops and distortions, SpecAugment, mixup; in numpy.

Distortions leave the music what it is: tempo, pitch, loudness and timbre change. Random resized crops follow
Inception's (Szegedy et al. 2015, arXiv 1409.4842), random equaliser curves FilterAugment (Nam et al. 2022, arXiv
2110.03282). SpecAugment is Park et al. 2019 (arXiv 1904.08779), mixup Zhang et al. 2018 (arXiv 1710.09412).

Functions work on a whole batch [batch, frames, n_bins] in its storage dtype, take the config's section `augment` and
draw from a generator of their own. One example after the other is changed: it fits into the cache of a core.
"""

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tfmusic.config.sections import AugmentSection
from tfmusic.core.addons import sparse_image_warp
from tfmusic.core.contract import Contract

if TYPE_CHECKING:
    import tensorflow as tf

_CURVE_POINTS = 6  # of an equaliser curve, evenly over the bins

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


def distorts(section: AugmentSection) -> bool:
    """Returns whether `distort` changes anything."""
    return any((section.freq_stretch, section.freq_shift_bins, section.gain_db, section.equalizer_db))


def masks(section: AugmentSection) -> bool:
    """Returns whether `mask` changes anything."""
    return bool(section.n_freq_masks or section.n_time_masks)


def chooses_rows(n_frames: int, frames: int, section: AugmentSection) -> bool:
    """Returns whether a window is anything else than its whole segment."""
    return _is_cropped(n_frames, frames, section) or _is_warped(section)


def draw_rows(
    n_batch: int, n_frames: int, frames: int, section: AugmentSection, rng: np.random.Generator
) -> np.ndarray:
    """Returns which frames of its segment each window shows, int64 [batch, frames].

    Crop and time warp only choose frames, so that one reading of the shard does both.

    Args:
        n_batch: how many windows.
        n_frames: length of a segment.
        frames: length of a window.
        section: with the rules of the crop and of the warp.
        rng: where the numbers come from.
    """
    if not _is_cropped(n_frames, frames, section):
        rows = np.broadcast_to(np.arange(frames), (n_batch, frames))
    else:
        rows = crop_rows(n_batch, n_frames, frames, section, rng)
    if not _is_warped(section):
        return rows
    return np.take_along_axis(rows, warp_rows(frames, *warp_points(n_batch, frames, section.time_warp_frames, rng)), 1)


def _is_cropped(n_frames: int, frames: int, section: AugmentSection) -> bool:
    return n_frames != frames or section.n_crops > 1 or section.time_stretch > 0


def _is_warped(section: AugmentSection) -> bool:
    return section.time_warp_frames > 0 and section.time_warp == "gather"


def crop_rows(
    n_batch: int, n_frames: int, frames: int, section: AugmentSection, rng: np.random.Generator
) -> np.ndarray:
    """Returns the frames of windows at random places of the segments, int64 [batch, frames].

    Pieces follow each other in the window, each from a place of its own. A stretch that the segment is too short for
    is cut down to what it holds.
    """
    rows = []
    rate = _rate(n_batch, section.time_stretch, rng)
    for length in _lengths(frames, section.n_crops):
        longest = (n_frames - 1) / max(length - 1, 1)
        offsets = np.rint(np.minimum(rate, longest) * np.arange(length)).astype(np.int64)
        rows.append(rng.integers(0, n_frames - offsets[:, -1:]) + offsets)
    return np.concatenate(rows, 1)


def warp_points(n_batch: int, frames: int, warp_frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns a random frame of every window and where a time warp moves it, int64 [batch, 1] each.

    The point c lies in [W, frames - W) and moves by w in (-W, W). On windows of 2 W frames or fewer W shrinks until a
    point is left.
    """
    reach = min(warp_frames, (frames - 1) // 2)
    point = rng.integers(reach, frames - reach, (n_batch, 1))
    return point, point + rng.integers(min(1 - reach, 0), max(reach, 1), (n_batch, 1))


def warp_rows(n_frames: int, point: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Returns which frame of a window each frame of the warped one shows, int64 [batch, n_frames].

    Frame `moved` shows `point`; both sides stay linear, the ends stay where they are, and the nearest frame counts.
    """
    frame, last = np.arange(n_frames), n_frames - 1
    before = frame * (point / np.maximum(moved, 1))
    after = point + (frame - moved) * ((last - point) / np.maximum(last - moved, 1))
    rows = np.rint(np.where(frame <= moved, before, after)).astype(np.int64)
    return np.asarray(np.clip(rows, 0, last))


def image_warp(codes: "tf.Tensor", point: "tf.Tensor", moved: "tf.Tensor") -> "tf.Tensor":
    """Returns the batch with points moved as `warp_points` draws them, by TensorFlow Addons' sparse image warp.

    The point is that of the middle bin; frames and bins around it follow a spline, as in the paper's own code.
    """
    import tensorflow as tf

    middle = codes.shape[2] / 2.0
    source, target = (
        tf.stack([tf.cast(place, tf.float32), tf.fill(tf.shape(place), middle)], axis=-1)  # [batch, 1, 2]
        for place in (point, moved)
    )
    warped = sparse_image_warp(tf.cast(codes, tf.float32)[..., None], source, target)[..., 0]
    if not codes.dtype.is_integer:
        return tf.cast(warped, codes.dtype)
    return tf.cast(tf.clip_by_value(tf.round(warped), codes.dtype.min, codes.dtype.max), codes.dtype)


def distort(codes: np.ndarray, section: AugmentSection, contract: Contract, rng: np.random.Generator) -> np.ndarray:
    """Returns the batch with pitch, loudness and timbre changed, same shape and dtype."""
    if section.freq_stretch or section.freq_shift_bins:
        codes = _move_bins(codes, section, rng)
    if section.gain_db or section.equalizer_db:
        codes = _colour(codes, section, contract, rng)
    return codes


def _lengths(frames: int, pieces: int) -> list[int]:
    ends = [round(i * frames / pieces) for i in range(pieces + 1)]
    return [end - begin for begin, end in pairwise(ends) if end > begin]


def _rate(n_batch: int, stretch: float, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(1.0 - stretch, 1.0 + stretch, (n_batch, 1))


def _move_bins(codes: np.ndarray, section: AugmentSection, rng: np.random.Generator) -> np.ndarray:
    """Returns every output bin from the nearest bin that it shows; what lies beyond the ends repeats the last one."""
    n_batch, _, n_bins = codes.shape
    shift, middle = section.freq_shift_bins, (n_bins - 1) / 2.0
    moved = rng.integers(-shift, shift + 1, (n_batch, 1))
    source = middle + (np.arange(n_bins) - middle) * _rate(n_batch, section.freq_stretch, rng) - moved
    columns = np.clip(np.rint(source), 0, n_bins - 1).astype(np.int64)
    out = np.empty_like(codes)
    for i, one in enumerate(codes):
        one.take(columns[i], 1, out[i], "clip")
    return out


def _colour(codes: np.ndarray, section: AugmentSection, contract: Contract, rng: np.random.Generator) -> np.ndarray:
    """Returns the batch with a gain and an equaliser curve added, in dB, within the range of the scale."""
    n_batch = len(codes)
    low, high = contract.scale.low, contract.scale.high
    is_coded = contract.dtype == "uint8"
    gain = rng.uniform(-section.gain_db, section.gain_db, (n_batch, 1))
    points = rng.uniform(-section.equalizer_db, section.equalizer_db, (n_batch, _CURVE_POINTS))
    added_db = (gain + points @ _curve_basis(contract.n_bins)).astype(np.float32)
    per_code, offset = ((high - low) / 255.0, low) if is_coded else (1.0, 0.0)
    out = np.empty_like(codes)
    for i, one in enumerate(codes):
        scaled = one.astype(np.float32)
        scaled *= per_code
        scaled += offset
        louder = np.clip(_amplify(scaled, added_db[i], contract.scale.name), low, high)
        out[i] = np.rint((louder - offset) / per_code) if is_coded else louder
    return out


def _amplify(scaled: np.ndarray, gain_db: np.ndarray, scale: str) -> np.ndarray:
    """Returns scaled values of power that is multiplied by a gain: a sum in dB, exact on log10(1 + a m) as well."""
    if scale == "db":
        return np.asarray(scaled + gain_db)
    ln10 = np.float32(math.log(10.0))
    return np.asarray(np.log1p(np.exp(gain_db * (ln10 / 10)) * np.expm1(scaled * ln10)) / ln10)


def _curve_basis(n_bins: int) -> np.ndarray:
    """Returns how much of every point a bin has, [points, n_bins]: straight lines between neighbouring points."""
    place = np.linspace(0, _CURVE_POINTS - 1, n_bins)
    distance = np.abs(place[None, :] - np.arange(_CURVE_POINTS)[:, None])
    return np.asarray(np.maximum(1.0 - distance, 0.0))


def mask(codes: np.ndarray, fill: np.ndarray, section: AugmentSection, rng: np.random.Generator) -> None:
    """Puts SpecAugment's masks over bins and over frames into a batch.

    Args:
        codes: [batch, frames, n_bins], which are changed.
        fill: value of masked bins or frames, [n_bins], same dtype: the codes of the training mean.
        section: with SpecAugment's six parameters; 0 switches a part off. A mask over bins has 0 to
            `freq_mask_bins` - 1 of them; one over frames 0 to `time_mask_frames` - 1, and at most
            `time_mask_fraction` of the input's length.
        rng: where the numbers come from.
    """
    n_batch, n_frames, n_bins = codes.shape
    longest = min(section.time_mask_frames - 1, int(section.time_mask_fraction * n_frames))
    bins = random_masks(n_batch, n_bins, section.n_freq_masks, section.freq_mask_bins - 1, rng).tolist()
    frames = random_masks(n_batch, n_frames, section.n_time_masks, longest, rng).tolist()
    for one, in_freq, in_time in zip(codes, bins, frames, strict=True):
        for begin, end in in_freq:
            if begin < end:
                one[:, begin:end] = fill[begin:end]
        for begin, end in in_time:
            if begin < end:
                one[begin:end] = fill


def random_masks(n_batch: int, length: int, n_masks: int, widest: int, rng: np.random.Generator) -> np.ndarray:
    """Returns begins and ends of masks, int64 [batch, n_masks, 2].

    Each has 0 to `widest` bins or frames (never all of the axis) and begins at 0 to length - width - 1.
    """
    width = rng.integers(0, min(max(widest, 0), length - 1) + 1, (n_batch, n_masks))
    begin = rng.integers(0, length - width)
    return np.stack([begin, begin + width], -1)


def mixup(
    codes: np.ndarray, targets: np.ndarray, alpha: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the batch and its targets mixed with their neighbours; lambda ~ Beta(alpha, alpha), one an example.

    Codes are mixed on their (logarithmic) scale and rounded back, so that the batch keeps its dtype.
    """
    share = rng.beta(alpha, alpha, (len(codes), 1)).astype(np.float32)
    share = np.maximum(share, 1.0 - share)  # the example itself leads, so a batch keeps its labels' balance
    mixed = np.empty_like(codes)
    for i, here in enumerate(share[:, 0]):
        both = here * codes[i].astype(np.float32) + (1 - here) * codes[i - 1].astype(np.float32)
        mixed[i] = np.rint(both) if codes.dtype.kind in "iu" else both
    return mixed, share * targets + (1.0 - share) * np.roll(targets, 1, axis=0)
