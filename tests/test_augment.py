"""SpecAugment and mixup: masked cells counted, edges of the distributions reached, direct call = tf.data."""

import numpy as np
import pytest
import tensorflow as tf

from tfmusic.config.sections import AugmentSection
from tfmusic.inputs import augment
from tfmusic.inputs.augment import random_crop, resolve

NONE = AugmentSection(policy="none")
POLICIES = ("none", "LB", "LD", "SM", "SS")
FILL = np.full(8, 200, np.uint8)


def seed(n):
    return tf.constant([7, n], tf.int64)


def runs(row):
    """Returns the lengths of the runs of True in a row."""
    padded = np.diff(np.concatenate([[0], row.astype(int), [0]]))
    return (np.flatnonzero(padded == -1) - np.flatnonzero(padded == 1)).tolist()


def test_widths_and_places_of_masks():
    """One mask: widths 0 to F-1, each about equally often; every place that fits is reached, none beyond."""
    masks = augment.random_masks(20000, 10, 1, 4 - 1, seed(0)).numpy()
    widths = masks.sum(1)
    assert sorted(set(widths.tolist())) == [0, 1, 2, 3]
    assert all(abs((widths == w).mean() - 0.25) < 0.02 for w in range(4))
    assert all(len(runs(row)) <= 1 for row in masks[:500])
    starts = [row.argmax() for row in masks if row.sum() == 3]
    assert sorted(set(starts)) == list(range(7))  # f0 in [0, v - f)
    starts = [row.argmax() for row in masks if row.sum() == 1]
    assert sorted(set(starts)) == list(range(9))


@pytest.mark.parametrize("widest", [-1, 0])
def test_no_masks(widest):
    """F = 0 and F = 1 mask nothing."""
    assert not augment.random_masks(100, 10, 2, widest, seed(0)).numpy().any()
    assert not augment.random_masks(100, 10, 0, 5, seed(0)).numpy().any()


def test_mask_is_never_wider_than_the_axis():
    """F larger than the axis leaves at least one cell."""
    masks = augment.random_masks(2000, 5, 1, 1000, seed(0)).numpy()
    assert masks.sum(1).max() == 4


def test_several_masks_are_drawn_separately():
    """Two masks give up to two runs, and examples of one batch differ."""
    masks = augment.random_masks(500, 40, 2, 5, seed(0)).numpy()
    assert {len(runs(row)) for row in masks} == {0, 1, 2}
    assert len({row.tobytes() for row in masks}) > 100


def test_masked_cells_are_counted_and_filled():
    """The filled cells are rows and columns, as many as the masks drew, and hold the fill of their bin."""
    codes = np.full((64, 12, 8), 10, np.uint8)
    fill = np.arange(100, 108, dtype=np.uint8)
    section = AugmentSection(freq_mask_bins=4, n_freq_masks=1, time_mask_frames=5, n_time_masks=1)
    out = augment.spec_augment(codes, fill, section, seed(1)).numpy()
    assert out.dtype == np.uint8
    changed = out != 10
    np.testing.assert_array_equal(out[changed], np.broadcast_to(fill, out.shape)[changed])
    for example in changed:
        in_freq, in_time = example.all(0), example.all(1)
        n_freq, n_time = int(in_freq.sum()), int(in_time.sum())
        assert n_freq <= 3
        assert n_time <= 4
        assert example.sum() == n_freq * 12 + n_time * 8 - n_freq * n_time
    assert max(int(e.all(1).sum()) for e in changed) == 4
    assert max(int(e.all(0).sum()) for e in changed) == 3


def test_time_masks_keep_below_their_fraction():
    """p bounds a time mask by p times the length."""
    codes = np.zeros((500, 40, 8), np.uint8)
    section = AugmentSection(n_freq_masks=0, time_mask_frames=30, time_mask_fraction=0.2, n_time_masks=1)
    out = augment.spec_augment(codes, FILL, section, seed(2)).numpy()
    assert (out == 200).all(2).sum(1).max() == 8


def test_warp_rows_by_hand():
    """The point lands where it was moved to, ends stay, both sides are linear."""
    rows = augment.warp_rows(9, tf.constant([[4]]), tf.constant([[2]])).numpy()[0]
    assert rows.tolist() == [0, 2, 4, 5, 5, 6, 7, 7, 8]
    np.testing.assert_array_equal(augment.warp_rows(9, tf.constant([[4]]), tf.constant([[4]])).numpy()[0], range(9))


@pytest.mark.parametrize(("n_frames", "warp"), [(100, 10), (100, 1), (20, 80), (3, 80), (2, 5), (1, 5)])
def test_warp_keeps_order_and_ends(n_frames, warp):
    """Warped rows never go back; the first and last frame stay; cells are copies of rows."""
    codes = np.tile(np.arange(n_frames, dtype=np.uint8)[None, :, None], (300, 1, 2))
    out = augment.time_warp(codes, warp, seed(3)).numpy()
    assert (np.diff(out[:, :, 0].astype(int), axis=1) >= 0).all()
    assert (out[:, 0] == 0).all()
    assert (out[:, -1] == n_frames - 1).all()
    np.testing.assert_array_equal(out[..., 0], out[..., 1])


def test_warp_moves_by_less_than_w():
    """No frame is more than W-1 away from where it was, and the far ends of the range are reached."""
    codes = np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (3000, 1, 1))
    moved = augment.time_warp(codes, 8, seed(4)).numpy()[..., 0].astype(int) - np.arange(100)
    assert moved.max() == 7
    assert moved.min() == -7


@pytest.mark.parametrize("name", POLICIES)
def test_direct_call_is_the_call_in_tf_data(name):
    """The same seed gives the same batch outside and inside a pipeline, for every policy."""
    codes = np.random.default_rng(0).integers(0, 256, (16, 120, 80), np.uint8)
    fill = np.arange(80, dtype=np.uint8)
    section = resolve(AugmentSection(policy=name))
    direct = augment.spec_augment(codes, fill, section, seed(5)).numpy()
    ds = tf.data.Dataset.from_tensors(codes).map(lambda x: augment.spec_augment(x, fill, section, seed(5)))
    np.testing.assert_array_equal(next(iter(ds)).numpy(), direct)
    other = augment.spec_augment(codes, fill, section, seed(6)).numpy()
    assert np.array_equal(direct, codes) == (name == "none")
    assert np.array_equal(direct, other) == (name == "none")


def test_crop_and_mixup_in_tf_data():
    """Crop and mixup are the same inside a pipeline as called directly."""
    codes = np.random.default_rng(0).integers(0, 256, (6, 30, 4), np.uint8)
    targets = np.eye(6, dtype=np.float32)
    ds = tf.data.Dataset.from_tensors((codes, targets))
    cropped = next(iter(ds.map(lambda x, y: random_crop(x, 9, NONE, seed(1)))))
    np.testing.assert_array_equal(cropped, random_crop(codes, 9, NONE, seed(1)))
    mixed = next(iter(ds.map(lambda x, y: augment.mixup(x, y, 0.4, seed(2)))))
    for inside, direct in zip(mixed, augment.mixup(codes, targets, 0.4, seed(2)), strict=True):
        np.testing.assert_array_equal(inside, direct)


def test_policies_are_the_papers():
    """LB LD SM SS of Park et al. 2019, table 1."""
    switchboard = resolve(AugmentSection(policy="SM", mixup_alpha=0.4, time_mask_frames=3))
    assert (switchboard.time_warp_frames, switchboard.mixup_alpha) == (40, 0.4)
    assert (switchboard.freq_mask_bins, switchboard.n_freq_masks) == (15, 2)
    assert (switchboard.time_mask_frames, switchboard.time_mask_fraction, switchboard.n_time_masks) == (70, 0.2, 2)
    librispeech = resolve(AugmentSection(policy="LD"))
    assert (librispeech.time_warp_frames, librispeech.freq_mask_bins, librispeech.time_mask_frames) == (80, 27, 100)
    custom = AugmentSection(time_mask_frames=3)
    assert resolve(custom) == custom


def test_mixup_mixes_codes_and_targets_alike():
    """The share of the neighbour is the same in codes and targets; the example itself leads."""
    codes = np.zeros((8, 3, 2), np.uint8)
    codes[::2] = 200
    targets = np.eye(8, dtype=np.float32)
    mixed, y = augment.mixup(codes, targets, 0.5, seed(7))
    own = np.diag(y.numpy())
    np.testing.assert_allclose(y.numpy().sum(1), 1, atol=1e-6)
    assert (own >= 0.5).all()
    expected = np.where(np.arange(8) % 2 == 0, 200 * own, 200 * (1 - own))
    np.testing.assert_allclose(mixed.numpy()[:, 0, 0], expected, atol=0.5 + 1e-3)
    assert mixed.dtype == tf.uint8


def test_mixup_of_floats_keeps_their_type():
    """float16 cells are mixed without rounding to whole codes."""
    codes = np.linspace(0, 1, 24, dtype=np.float16).reshape(4, 3, 2)
    mixed, _ = augment.mixup(codes, np.eye(4, dtype=np.float32), 1.0, seed(8))
    assert mixed.dtype == tf.float16
    assert (mixed.numpy() % 1 != 0).any()


def test_crops_reach_both_ends():
    """Crops begin at every place that fits, 0 and the last included, and are contiguous."""
    codes = np.tile(np.arange(10, dtype=np.uint8)[None, :, None], (500, 1, 1))
    out = random_crop(codes, 7, NONE, seed(9)).numpy()[..., 0]
    assert sorted(set(out[:, 0].tolist())) == [0, 1, 2, 3]
    assert (np.diff(out.astype(int), axis=1) == 1).all()
    np.testing.assert_array_equal(random_crop(codes, 10, NONE, seed(9)).numpy(), codes)
