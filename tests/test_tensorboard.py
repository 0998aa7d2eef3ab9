"""What TensorBoard shows of a training."""

import json
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import fit_small
from tfmusic.cli import main
from tfmusic.reports.pictures import confusion_picture
from tfmusic.training.callbacks import InputWatch


def read_events(folder):
    """Returns scalars by tag and step, and pictures by tag and step."""
    scalars, pictures = {}, {}
    for path in folder.glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                tensor = tf.make_ndarray(value.tensor)
                known = pictures if tensor.dtype == object else scalars
                known[value.tag, event.step] = tensor
    return scalars, pictures


@pytest.mark.slow
def test_events_hold_numbers_and_pictures(music, tmp_path):
    """q1: loss, validation, learning rate and input wait of each epoch; inputs at first; confusion of each epoch."""
    records, run = tmp_path / "records", tmp_path / "run"
    assert main(["build-records", "q1", "--data", str(music), "--out", str(records), "--workers", "1"]) == 0
    assert fit_small("q1", records, run, "training.epochs=2") == 0
    scalars, pictures = read_events(run / "tb")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name in ("loss", "validation", "learning_rate", "input_wait", "seconds"):
            assert scalars[name, line["epoch"]] == pytest.approx(line[name])
        assert 0 <= line["input_wait"] <= 1
    width, height, *inputs = pictures["augmented input", 1]
    assert (int(width), int(height), len(inputs)) == (64, 128, 4)
    assert ("augmented input", 2) not in pictures
    assert {("confusion q1", 1), ("confusion q1", 2)} <= set(pictures)


def test_input_wait_is_the_time_of_slow_batches():
    """Batches that take long are waited for as long as they take; they pass unchanged, the first is kept.

    What a step does between its batches is no wait.
    """

    def slowly(x):
        with tf.control_dependencies([tf.py_function(lambda: time.sleep(0.05), [], [])]):
            return (tf.identity(x), x[:, :1, 0]), x[:, 0, 0]

    watch, seen = InputWatch(), []
    assert watch.wait_share is None
    ds = tf.data.Dataset.from_tensor_slices(np.arange(6 * 8, dtype=np.uint8).reshape(6, 8, 1, 1)).map(slowly)
    begin_s = time.perf_counter()
    for batch in watch.watched(ds):
        seen.append(batch)
        time.sleep(0.02)
    elapsed_s = time.perf_counter() - begin_s
    assert [int(targets[0]) for _, targets in seen] == [0, 8, 16, 24, 32, 40]
    np.testing.assert_array_equal(watch.codes[:, 0, 0], [0, 1, 2, 3])
    assert 6 * 0.05 <= watch._wait_s <= elapsed_s - 6 * 0.02
    assert 0 < watch.wait_share <= 1


@pytest.mark.parametrize("n", [2, 40])
def test_confusion_picture_has_any_number_of_classes(n):
    """Korean names and many classes raise no warning."""
    picture = confusion_picture(np.eye(n, dtype=int) * 7, tuple(f"집중 {i}" for i in range(n)))
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
