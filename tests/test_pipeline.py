"""Batches for training and for evaluation."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tfmusic.config.loading import find_config, load_config
from tfmusic.core.windows import batch_windows, outputs_by_track, slice_windows
from tfmusic.evaluation.held_out import score_splits
from tfmusic.inputs.balance import count_labels
from tfmusic.inputs.batches import TrainingInput, batches_ahead
from tfmusic.inputs.pipeline import training_batches
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import iterate, iterate_tracks

SPLITS = ("fold0", "fold1", "fold2", "fold3")


PLAIN = (
    "augment.policy=none", "augment.n_crops=1", "augment.time_stretch=0.0", "augment.freq_stretch=0.0",
    "augment.freq_shift_bins=0", "augment.gain_db=0.0", "augment.equalizer_db=0.0", "augment.mixup_alpha=0.0",
    "training.target=labels", "training.batch_size=4", "training.seed=3",
    "training.class_weights=none", "metadata.fields=[]",
)  # fmt: skip
AUGMENTED = (
    "augment.policy=custom", "augment.time_warp_frames=5", "augment.freq_mask_bins=8", "augment.n_freq_masks=1",
    "augment.time_mask_frames=8", "augment.n_time_masks=1", "augment.mixup_alpha=0.4",
)  # fmt: skip


def source_of(manifest, *overrides, splits=SPLITS, task="q2", frames=None, **changes):
    """Returns where training batches come from: whole segments without augmentation, but for the overrides."""
    config = load_config(find_config(task), [*PLAIN, *overrides])
    contract = replace(manifest.contract, frames=frames or manifest.segment_frames)
    return TrainingInput(config, manifest, splits, contract, **changes)


def epoch_of(source, epoch=0):
    """Returns the batches of one epoch."""
    return training_batches(source, range(epoch, epoch + 1))


@pytest.fixture
def manifest(records):
    return Manifest.read(records)


def batches(manifest, *overrides, epoch=0, **changes):
    ds = epoch_of(source_of(manifest, *overrides, **changes), epoch)
    return [tuple(part.numpy() for part in batch) for batch in ds]


def test_an_epoch_has_every_segment_once(manifest):
    """Whole batches of uint8, every stored segment at most once, only a part of a batch missing."""
    made = batches(manifest)
    stored = Counter(cells.tobytes() for split in SPLITS for _, cells in iterate(manifest, split))
    seen = Counter(codes.tobytes() for batch, _ in made for codes in batch)
    assert not seen - stored
    assert stored.total() - seen.total() < 4
    assert len(made) == stored.total() // 4
    assert made[0][0].dtype == np.uint8
    assert made[0][0].shape == (4, 313, 128)


def test_an_epoch_read_again_is_the_same(manifest):
    """Keras may draw a batch before it begins, on several devices and on JAX: that must not change the order."""
    ds = epoch_of(source_of(manifest))
    first, again = ([codes.numpy() for codes, _ in ds] for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_targets_belong_to_their_codes(manifest):
    """The multi-hot row of a segment is its record's label list."""
    labels = {cells.tobytes(): header.label for split in SPLITS for header, cells in iterate(manifest, split)}
    for codes, targets in batches(manifest):
        for one, target in zip(codes, targets, strict=True):
            assert tuple(np.flatnonzero(target).tolist()) == labels[one.tobytes()]


def test_same_seed_and_epoch_same_batches(manifest):
    """An epoch can be made again exactly; another epoch or seed differs, in order, crops and masks."""
    first, again = (batches(manifest, *AUGMENTED, epoch=2, frames=100) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    other_epoch = batches(manifest, *AUGMENTED, epoch=3, frames=100)
    other_seed = batches(manifest, *AUGMENTED, "training.seed=4", epoch=2, frames=100)
    assert not np.array_equal(first[0][0], other_epoch[0][0])
    assert not np.array_equal(first[0][0], other_seed[0][0])


def test_masked_cells_hold_the_training_folds_mean(manifest):
    """What SpecAugment hides is filled with the rounded mean of the training folds, bin by bin."""
    hide_all = (
        "augment.policy=custom", "augment.freq_mask_bins=120", "augment.n_freq_masks=8",
        "augment.time_mask_frames=300", "augment.n_time_masks=8",
    )  # fmt: skip
    plain, masked = batches(manifest), batches(manifest, *hide_all)
    mean = np.concatenate([t.codes for s in SPLITS for t in iterate_tracks(manifest, s)]).mean(0)
    changed = [(m, m != p) for (p, _), (m, _) in zip(plain, masked, strict=True)]
    assert np.mean([part.mean() for _, part in changed]) > 0.5
    for codes, part in changed:
        np.testing.assert_array_equal(codes[part], np.broadcast_to(np.round(mean), codes.shape)[part])


@pytest.mark.parametrize("seed", [0, 3])
def test_epochs_that_follow_each_other_are_those_read_alone(manifest, seed):
    """One dataset of several epochs gives each of them as it is alone: a resumed training begins in the middle."""
    source = source_of(manifest, *AUGMENTED, f"training.seed={seed}", frames=100)
    alone = [batch for epoch in (2, 3, 4) for batch in epoch_of(source, epoch)]
    together = training_batches(source, range(2, 5))
    assert int(together.cardinality()) == len(alone) == 3 * source.steps_per_epoch
    for (codes, targets), (same_codes, same_targets) in zip(together, alone, strict=True):
        np.testing.assert_array_equal(codes, same_codes)
        np.testing.assert_array_equal(targets, same_targets)


@pytest.mark.parametrize("overrides", [(), ("augment.mixup_alpha=0.0", "augment.gain_db=3.0")])
def test_batches_without_tensorflow_are_the_same(manifest, overrides):
    """What JAX trains on is what tf.data hands over."""
    source = source_of(manifest, *AUGMENTED, *overrides, frames=100)
    for ahead, batch in zip(batches_ahead(source, range(2, 4)), training_batches(source, range(2, 4)), strict=True):
        for one, other in zip(ahead, batch, strict=True):
            np.testing.assert_array_equal(one, other)


def test_an_epoch_of_one_batch(manifest):
    """Epochs of a single step follow each other as well."""
    n_segments = source_of(manifest).n_segments
    source = source_of(manifest, f"training.batch_size={n_segments // 2 + 1}")
    assert source.steps_per_epoch == 1
    assert len(list(training_batches(source, range(3)))) == 3


def test_every_epoch_has_an_order_of_its_own(manifest):
    """All segments are shuffled, not those near each other alone; epochs and seeds differ, and the part left out."""
    source = source_of(manifest)
    first, second = source.order(0), source.order(1)
    assert first.shape == (source.steps_per_epoch, 4)
    assert len(np.unique(first)) == first.size and first.max() < source.n_segments
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, source_of(manifest, "training.seed=4").order(0))
    left_out = {n for epoch in range(20) for n in set(range(source.n_segments)) - set(source.order(epoch).ravel())}
    assert len(left_out) > 3 or source.n_segments % 4 == 0


def test_processes_share_every_batch(manifest):
    """Two processes read halves of the batches that one would read: each segment once in both."""
    one = source_of(manifest).order(3)
    halves = [source_of(manifest, process=process, n_processes=2).order(3) for process in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves, 1), one)


def test_crops_are_stretches_of_their_segment(manifest):
    """A window shows neighbouring frames of the segment whose labels it has, read from where the index says."""
    stored = {codes.tobytes(): header.label for split in SPLITS for header, codes in iterate(manifest, split)}
    segments = [(np.frombuffer(codes, np.uint8).reshape(313, 128), label) for codes, label in stored.items()]
    for codes, targets in batches(manifest, frames=100)[:2]:
        for window, target in zip(codes, targets, strict=True):
            places = [
                label for segment, label in segments for start in range(214)
                if np.array_equal(segment[start], window[0]) and np.array_equal(segment[start : start + 100], window)
            ]  # fmt: skip
            assert tuple(np.flatnonzero(target).tolist()) in places


def test_class_weights_follow_the_label(manifest):
    """With class weights every example carries the weight of its labels."""
    source = source_of(manifest)
    weights = np.arange(1.0, 1.0 + len(manifest.contract.labels))
    source.__dict__["class_weights"] = weights  # a cached property
    for _, targets, weight in epoch_of(source):
        np.testing.assert_allclose(weight, targets.numpy() @ weights, rtol=1e-6)


def test_label_counts(manifest):
    """Counts of stored segments by label."""
    counts = count_labels(manifest, SPLITS)
    expected = Counter(i for split in SPLITS for header, _ in iterate(manifest, split) for i in header.label)
    assert {i: n for i, n in enumerate(counts.tolist()) if n} == dict(expected)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluation_scores_every_window_of_every_track_once(manifest, batch_size):
    """Windows in order, of one batch shape, padding marked; against cutting each track by itself."""
    tracks = ((track.row, track.codes, None) for track in iterate_tracks(manifest, "fold0"))
    made = list(batch_windows(tracks, frames=100, hop_frames=50, batch_sizes=(batch_size,)))
    assert all(batch.codes.shape == (batch_size, 100, 128) for batch in made)
    rows = np.concatenate([batch.track for batch in made])
    codes = np.concatenate([batch.codes for batch in made])[rows >= 0]
    assert (rows == -1).sum() < batch_size
    assert (rows[: len(codes)] >= 0).all()
    expected = [slice_windows(track.codes, frames=100, hop_frames=50)[0] for track in iterate_tracks(manifest, "fold0")]
    np.testing.assert_array_equal(codes, np.concatenate(expected))


@pytest.mark.parametrize("n_frames", [1, 16, 17, 20, 63, 64, 65])
def test_the_last_batch_has_the_smallest_size_that_holds_it(n_frames):
    """Of windows a frame long: batches of 16 or 64, and the outputs of each track in order, metadata beside them."""
    tracks = [(7, np.arange(n_frames)[:, None], np.array([1.0])), (3, np.array([[-1]]), np.array([2.0]))]
    batches = list(batch_windows(tracks, frames=1, hop_frames=1, batch_sizes=(16, 64)))
    n_left = (n_frames + 1) % 64
    assert [len(batch.codes) for batch in batches[:-1]] == [64] * (len(batches) - 1)
    assert len(batches[-1].codes) == (64 if n_left == 0 or n_left > 16 else 16)
    outputs = dict(outputs_by_track(batches, lambda inputs: inputs[0][:, 0] * inputs[1]))
    np.testing.assert_array_equal(outputs[7][:, 0], np.arange(n_frames))
    np.testing.assert_array_equal(outputs[3], [[-2.0]])


def test_every_track_is_scored_once(manifest):
    """Scored tracks are the tracks of the manifest, each with all of its windows and its own labels."""
    contract = replace(manifest.contract, frames=100, hop_frames=50)
    scored = score_splits(manifest, SPLITS, lambda x: x.mean(axis=(1, 2))[:, None], contract, batch_size=16)
    assert len(scored.rows) == sum(manifest.split(name).tracks for name in SPLITS)
    assert len(set(scored.track_ids)) == len(scored.rows)
    tracks = {track.row: track for name in SPLITS for track in iterate_tracks(manifest, name)}
    for row, logits, target in zip(scored.rows, scored.logits, scored.targets, strict=True):
        windows, _ = slice_windows(tracks[row].codes, frames=100, hop_frames=50)
        np.testing.assert_allclose(logits[:, 0], windows.mean(axis=(1, 2)), rtol=1e-5)
        assert tuple(np.flatnonzero(target).tolist()) == tracks[row].label
