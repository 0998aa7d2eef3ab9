"""Distortions: what they change, what they leave alone, and that the same seed gives the same batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tfmusic.config.sections import AugmentSection
from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.core.scale import Scale
from tfmusic.inputs.augment import crop_rows, distort

CONTRACT = Contract("q2", "multi", ("a",), Feature(n_bins=16), Scale("db", -60.0, 30.0), "uint8", 40, 20)
CODES_A_DB = 255 / 90


def rng(number):
    return np.random.default_rng([number, 0])


def ramp(n_batch, n_frames, n_bins=16):
    """Returns codes [n_batch, n_frames, n_bins] that count the frames."""
    return np.tile(np.arange(n_frames, dtype=np.uint8)[None, :, None], (n_batch, 1, n_bins))


def test_nothing_asked_changes_nothing():
    """The default section gives the codes back."""
    codes = np.random.default_rng(0).integers(0, 256, (3, 20, 16), np.uint8)
    np.testing.assert_array_equal(distort(codes, AugmentSection(), CONTRACT, rng(1)), codes)


@pytest.mark.parametrize(
    "section",
    [
        AugmentSection(freq_shift_bins=3),
        AugmentSection(freq_stretch=0.2),
        AugmentSection(gain_db=6.0),
        AugmentSection(equalizer_db=6.0),
    ],
)
def test_same_seed_same_batch(section):
    """The seed alone decides; another one gives another batch; type and shape stay."""
    codes = np.random.default_rng(0).integers(60, 200, (8, 20, 16), np.uint8)
    direct = distort(codes, section, CONTRACT, rng(1))
    np.testing.assert_array_equal(distort(codes, section, CONTRACT, rng(1)), direct)
    assert not np.array_equal(direct, codes)
    assert not np.array_equal(direct, distort(codes, section, CONTRACT, rng(2)))
    assert direct.dtype == np.uint8
    assert direct.shape == codes.shape


def test_gain_adds_the_same_to_every_cell_of_an_example():
    """Up to gain_db either way, drawn for every example; the ends of the scale hold."""
    codes = np.full((400, 2, 16), 128, np.uint8)
    added = distort(codes, AugmentSection(gain_db=6.0), CONTRACT, rng(3)).astype(int) - 128
    assert (added == added[:, :1, :1]).all()
    assert abs(added.max() - 6 * CODES_A_DB) < 1
    assert abs(added.min() + 6 * CODES_A_DB) < 1
    loud = distort(np.full((50, 2, 16), 254, np.uint8), AugmentSection(gain_db=6.0), CONTRACT, rng(3))
    assert loud.max() == 255
    assert loud.min() < 254


def test_equalizer_is_a_curve_over_bins_alike_in_all_frames():
    """Neighbouring bins differ little, frames not at all; floats stay within the scale."""
    floats = replace(CONTRACT, dtype="float32", feature=Feature(n_bins=64))
    cells = np.zeros((30, 3, 64), np.float32)
    curve = distort(cells, AugmentSection(equalizer_db=5.0), floats, rng(4))
    np.testing.assert_array_equal(curve[:, 0], curve[:, 2])
    assert np.abs(curve).max() <= 5.0
    assert np.abs(np.diff(curve, axis=2)).max() <= 10 * 5 / 63 + 1e-5  # from -5 to 5 dB between two points
    assert np.std(curve[:, 0, 0]) > 1
    top = distort(np.full((9, 2, 64), 30.0, np.float32), AugmentSection(equalizer_db=5.0), floats, rng(4))
    assert top.max() == 30.0


def test_shift_moves_whole_spectra_and_repeats_the_end():
    """Every bin shows the one n below it; all shifts up to the limit occur."""
    codes = np.tile(np.arange(16, dtype=np.uint8) * 10, (300, 2, 1))
    moved = distort(codes, AugmentSection(freq_shift_bins=2), CONTRACT, rng(5))[:, 0].astype(int) // 10
    shifts = moved[:, 8] - 8
    assert sorted(set(shifts.tolist())) == [-2, -1, 0, 1, 2]
    for row, shift in zip(moved, shifts, strict=True):
        np.testing.assert_array_equal(row, np.clip(np.arange(16) + shift, 0, 15))


def test_time_stretch_reads_faster_or_slower():
    """A window of 20 frames shows 0.75 to 1.25 times as many, in order."""
    out = crop_rows(400, 40, 20, AugmentSection(time_stretch=0.25), rng(6))
    spans = out[:, -1] - out[:, 0]
    assert (np.diff(out, axis=1) >= 0).all()
    assert spans.min() == 14  # 19 steps of .75
    assert spans.max() == 24
    full = crop_rows(50, 20, 20, AugmentSection(time_stretch=0.25), rng(6))
    assert full.max() == 19  # a segment that is too short to be read faster is not


def test_pieces_come_from_places_of_their_own():
    """A window of two pieces is twice ten frames in a row."""
    out = crop_rows(300, 40, 21, AugmentSection(n_crops=2), rng(7))
    assert out.shape == (300, 21)
    steps = np.diff(out, axis=1)
    assert (np.delete(steps, 9, axis=1) == 1).all()
    assert len(set(steps[:, 9].tolist())) > 20


@pytest.mark.parametrize(("name", "factor"), [("log10_1p10", 10.0), ("log10_1p10000", 10000.0)])
def test_gain_on_other_scales_multiplies_power(name, factor):
    """The power that the values stand for grows by the same number of dB in every cell of an example."""
    power = np.random.default_rng(0).uniform(0.05, 5.0, (20, 6, 16))
    cells = np.log10(1 + factor * power).astype(np.float32)
    contract = replace(CONTRACT, dtype="float32", scale=Scale(name, 0.0, 9.0))
    out = distort(cells, AugmentSection(gain_db=6.0), contract, rng(3)).astype(np.float64)
    gain_db = 10 * np.log10((10**out - 1) / factor / power)
    np.testing.assert_allclose(gain_db, np.broadcast_to(gain_db[:, :1, :1], gain_db.shape), atol=1e-3)
    assert 3 < np.abs(gain_db).max() <= 6.001


@pytest.mark.slow
def test_a_training_with_every_distortion_is_repeatable(records, tmp_path):
    """Two trainings with all of them on end with the same loss, which is another than without."""
    from tests.conftest import fit_small

    asked = [
        "augment.n_crops=2", "augment.time_stretch=0.2", "augment.freq_stretch=0.1", "augment.freq_shift_bins=2",
        "augment.gain_db=4", "augment.equalizer_db=4", "model.stochastic_depth=0.2",
    ]  # fmt: skip
    net, losses = ["model.name=resnet18", "training.epochs=1"], []
    for name, overrides in (("a", asked), ("b", asked), ("c", [])):
        assert fit_small("q2", records, tmp_path / name, *net, *overrides) == 0
        losses.append((Path(tmp_path) / name / "metrics.jsonl").read_text().split('"loss": ')[1].split(",")[0])
    assert losses[0] == losses[1] != losses[2]
