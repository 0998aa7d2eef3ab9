"""SpecAugment and mixup: masked cells counted, edges of the distributions reached."""

import numpy as np
import pytest

from tfmusic.config.sections import AugmentSection
from tfmusic.inputs import augment
from tfmusic.inputs.augment import resolve

NONE = AugmentSection(policy="none")
POLICIES = ("none", "LB", "LD", "SM", "SS")
FILL = np.full(8, 200, np.uint8)


def rng(n):
    return np.random.default_rng([7, n])


def masks(n_batch, length, n_masks, widest, some):
    """Returns which bins or frames are masked, bool [batch, length]."""
    ends = augment.random_masks(n_batch, length, n_masks, widest, some)
    places = np.arange(length)
    return ((places >= ends[:, :, :1]) & (places < ends[:, :, 1:])).any(1)


def masked(codes, fill, section, some):
    out = codes.copy()
    augment.mask(out, fill, section, some)
    return out


def runs(row):
    """Returns the lengths of the runs of True in a row."""
    padded = np.diff(np.concatenate([[0], row.astype(int), [0]]))
    return (np.flatnonzero(padded == -1) - np.flatnonzero(padded == 1)).tolist()


def test_widths_and_places_of_masks():
    """One mask: widths 0 to F-1, each about equally often; every place that fits is reached, none beyond."""
    which = masks(20000, 10, 1, 4 - 1, rng(0))
    widths = which.sum(1)
    assert sorted(set(widths.tolist())) == [0, 1, 2, 3]
    assert all(abs((widths == w).mean() - 0.25) < 0.02 for w in range(4))
    assert all(len(runs(row)) <= 1 for row in which[:500])
    starts = [row.argmax() for row in which if row.sum() == 3]
    assert sorted(set(starts)) == list(range(7))  # f0 in [0, v - f)
    starts = [row.argmax() for row in which if row.sum() == 1]
    assert sorted(set(starts)) == list(range(9))


@pytest.mark.parametrize("widest", [-1, 0])
def test_no_masks(widest):
    """F = 0 and F = 1 mask nothing."""
    assert not masks(100, 10, 2, widest, rng(0)).any()
    assert not masks(100, 10, 0, 5, rng(0)).any()


def test_mask_is_never_wider_than_the_axis():
    """F larger than the axis leaves at least one cell."""
    which = masks(2000, 5, 1, 1000, rng(0))
    assert which.sum(1).max() == 4


def test_several_masks_are_drawn_separately():
    """Two masks give up to two runs, and examples of one batch differ."""
    which = masks(500, 40, 2, 5, rng(0))
    assert {len(runs(row)) for row in which} == {0, 1, 2}
    assert len({row.tobytes() for row in which}) > 100


def test_masked_cells_are_counted_and_filled():
    """The filled cells are rows and columns, as many as the masks drew, and hold the fill of their bin."""
    codes = np.full((64, 12, 8), 10, np.uint8)
    fill = np.arange(100, 108, dtype=np.uint8)
    section = AugmentSection(freq_mask_bins=4, n_freq_masks=1, time_mask_frames=5, n_time_masks=1)
    out = masked(codes, fill, section, rng(1))
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
    out = masked(codes, FILL, section, rng(2))
    assert (out == 200).all(2).sum(1).max() == 8


def test_warp_rows_by_hand():
    """The point lands where it was moved to, ends stay, both sides are linear."""
    rows = augment.warp_rows(9, np.array([[4]]), np.array([[2]]))[0]
    assert rows.tolist() == [0, 2, 4, 5, 5, 6, 7, 7, 8]
    np.testing.assert_array_equal(augment.warp_rows(9, np.array([[4]]), np.array([[4]]))[0], range(9))


@pytest.mark.parametrize(("n_frames", "warp"), [(100, 10), (100, 1), (20, 80), (3, 80), (2, 5), (1, 5)])
def test_warp_keeps_order_and_ends(n_frames, warp):
    """Warped rows never go back; the first and last frame stay."""
    rows = augment.warp_rows(n_frames, *augment.warp_points(300, n_frames, warp, rng(3)))
    assert rows.shape == (300, n_frames)
    assert (np.diff(rows, axis=1) >= 0).all()
    assert (rows[:, 0] == 0).all()
    assert (rows[:, -1] == n_frames - 1).all()


def test_warp_moves_by_less_than_w():
    """No frame is more than W-1 away from where it was, and the far ends of the range are reached."""
    moved = augment.warp_rows(100, *augment.warp_points(3000, 100, 8, rng(4))) - np.arange(100)
    assert moved.max() == 7
    assert moved.min() == -7


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_generator_gives_the_same_batch(name):
    """For every policy; another generator gives another one, and without masks none changes anything."""
    codes = np.random.default_rng(0).integers(0, 256, (16, 120, 80), np.uint8)
    fill = np.arange(80, dtype=np.uint8)
    section = resolve(AugmentSection(policy=name))
    first, again, other = (masked(codes, fill, section, rng(n)) for n in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(first, codes) == (name == "none")
    assert np.array_equal(first, other) == (name == "none")


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
    mixed, y = augment.mixup(codes, targets, 0.5, rng(7))
    own = np.diag(y)
    np.testing.assert_allclose(y.sum(1), 1, atol=1e-6)
    assert (own >= 0.5).all()
    expected = np.where(np.arange(8) % 2 == 0, 200 * own, 200 * (1 - own))
    np.testing.assert_allclose(mixed[:, 0, 0], expected, atol=0.5 + 1e-3)
    assert mixed.dtype == np.uint8


def test_mixup_of_floats_keeps_their_type():
    """float16 cells are mixed without rounding to whole codes."""
    codes = np.linspace(0, 1, 24, dtype=np.float16).reshape(4, 3, 2)
    mixed, _ = augment.mixup(codes, np.eye(4, dtype=np.float32), 1.0, rng(8))
    assert mixed.dtype == np.float16
    assert (mixed % 1 != 0).any()


def test_crops_reach_both_ends():
    """Crops begin at every place that fits, 0 and the last included, and are contiguous."""
    rows = augment.crop_rows(500, 10, 7, NONE, rng(9))
    assert sorted(set(rows[:, 0].tolist())) == [0, 1, 2, 3]
    assert (np.diff(rows, axis=1) == 1).all()
    assert augment.chooses_rows(10, 7, NONE) and not augment.chooses_rows(10, 10, NONE)


def test_a_window_is_cropped_and_then_warped():
    """Frames are those of the crop at the places of the warp; without either there is nothing to choose."""
    both, some = resolve(AugmentSection(policy="LB")), rng(2)
    crop = augment.crop_rows(5, 300, 200, both, some)
    warp = augment.warp_rows(200, *augment.warp_points(5, 200, 80, some))
    rows = augment.draw_rows(5, 300, 200, both, rng(2))
    np.testing.assert_array_equal(rows, np.take_along_axis(crop, warp, 1))
    assert (rows != crop).any()
    whole = augment.draw_rows(5, 200, 200, both, rng(2))
    assert (whole[:, 0] == 0).all() and (whole[:, -1] == 199).all()
