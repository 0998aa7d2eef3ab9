"""Epochs that are begun before they are asked for."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tests.test_pipeline import PLAIN, SPLITS
from tfmusic.inputs.augment import SpecAugment
from tfmusic.inputs.pipeline import Epochs, TrainingStream, cell_statistics, for_training
from tfmusic.records.manifest import Manifest

OPTIONS = replace(PLAIN, policy=SpecAugment(5, 8, 1, 8, 1.0, 1), mixup_alpha=0.4, frames=100)


def stream_of(records):
    manifest = Manifest.read(records)
    fill, _ = cell_statistics(manifest, SPLITS)
    return TrainingStream(manifest, SPLITS, fill, OPTIONS)


def same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        for part, right in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
            np.testing.assert_array_equal(part.numpy(), right.numpy())


def test_epochs_begun_early_are_the_same(records):
    """Begun or not, one after the other or with one left out: the batches of a pipeline made for that epoch alone."""
    manifest = Manifest.read(records)
    fill, _ = cell_statistics(manifest, SPLITS)
    ahead = Epochs(stream_of(records), early=True)
    for epoch, begun in ((0, None), (1, 1), (2, 2), (5, 3)):
        if begun is not None:
            ahead.begin(begun)
        ds = ahead.read(epoch)
        wanted = list(for_training(manifest, SPLITS, fill, OPTIONS, epoch=epoch))
        assert ds.cardinality() == len(wanted)
        same(list(ds), wanted)


def test_an_epoch_of_one_batch(records):
    """There is nothing after the first batch."""
    manifest = Manifest.read(records)
    fill, _ = cell_statistics(manifest, SPLITS)
    n_segments = sum(manifest.split(name).segments for name in SPLITS)
    stream = TrainingStream(manifest, SPLITS, fill, replace(OPTIONS, batch_size=n_segments // 2 + 1))
    ahead = Epochs(stream, early=True)
    ahead.begin(0)
    assert len(list(ahead.read(0))) == 1


def test_what_goes_wrong_early_is_raised_when_asked_for(records, tmp_path):
    """A shard that is gone by then does not end the thread that validates, but the epoch that wants it."""
    folder = shutil.copytree(records, tmp_path / "records")
    ahead = Epochs(stream_of(folder), early=True)
    for path in folder.glob("*.tfrecord*"):
        path.unlink()
    ahead.begin(1)
    with pytest.raises(tf.errors.NotFoundError):
        ahead.read(1)
