"""What TensorFlow Serving needs: signatures with names and types, and several tracks of different lengths at once."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tests.test_serving import small_model
from tfmusic.export.savedmodel import TrackModel, signatures
from tfmusic.models import build_model
from tfmusic.scoring.track_scorer import TrackScorer

LENGTHS = (7, 40, 41, 700)


def some_mels(lengths=LENGTHS, n_bins=128):
    rng = np.random.default_rng(0)
    return [(10 ** rng.uniform(-7, 3, (n_bins, n))).astype(np.float32) for n in lengths]


def padded(mels):
    """Returns the tracks side by side; what fills them up is no power at all, so that it would be refused if read."""
    most = max(mel.shape[1] for mel in mels)
    return np.stack([np.pad(mel, ((0, 0), (0, most - mel.shape[1])), constant_values=np.nan) for mel in mels])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel of a small q2 model."""
    path = tmp_path_factory.mktemp("serving") / "q2" / "1"
    model, contract = small_model("multi")
    module = TrackModel(model, contract, TrackScorer(kind=contract.kind))
    tf.saved_model.save(module, str(path), signatures=signatures(module, contract))
    return path


@pytest.mark.slow
def test_batch_answers_as_one_by_one(saved):
    """Tracks shorter than a window, of a window, a frame more, and many windows: within 1e-5, padding unread."""
    model, mels = tf.saved_model.load(str(saved)), some_mels()
    scores = model.signatures["batch"](mel=tf.constant(padded(mels)), n_frames=tf.constant(LENGTHS))["track_scores"]
    alone = [model.signatures["serving_default"](mel=tf.constant(mel))["track_scores"] for mel in mels]
    np.testing.assert_allclose(scores, alone, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(0, 40), (8, 41), (8,)])
def test_batch_refuses_lengths_that_are_none(saved, lengths):
    """No frame, more frames than there are, or a length too few."""
    batch = tf.saved_model.load(str(saved)).signatures["batch"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="n_frames must be 1 to the frames of mel"):
        batch(mel=tf.constant(padded(some_mels((8, 40)))), n_frames=tf.constant(lengths))


def test_batch_reads_metadata_of_each_track():
    """Tokens filled up with empty strings; each track by its own."""
    _, contract = small_model("multi")
    contract = replace(contract, metadata=("genres=?", "genres=jazz", "genres=pop"))
    model = build_model("cnn1d", frames=40, n_bins=128, n_outputs=3, width=4, n_tokens=3)
    module = TrackModel(model, contract, TrackScorer(kind=contract.kind))
    mels = some_mels((50, 60, 50))
    tokens = [["genres=jazz", "genres=pop"], ["genres=unheard of", ""], ["", ""]]
    scores = module.predict_batch(tf.constant(padded(mels)), tf.constant([50, 60, 50]), tf.constant(tokens))
    alone = [
        module(tf.constant(mel), tf.constant([token for token in some if token], tf.string))["track_scores"]
        for mel, some in zip(mels, tokens, strict=True)
    ]
    np.testing.assert_allclose(scores["track_scores"], alone, atol=1e-5)


def cli(*arguments):
    command = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_saved_model_cli_shows_and_runs_it(saved, tmp_path):
    """Names, types and shapes as a client must send them, the method that the server looks for, and an answer."""
    shown = " ".join(cli("show", "--dir", saved, "--tag_set", "serve", "--signature_def", "batch").split())
    for part in (
        "inputs['mel'] tensor_info: dtype: DT_FLOAT shape: (-1, 128, -1)",
        "inputs['n_frames'] tensor_info: dtype: DT_INT32 shape: (-1)",
        "outputs['track_scores'] tensor_info: dtype: DT_FLOAT shape: (-1, 3)",
        "Method name is: tensorflow/serving/predict",
    ):
        assert part in shown
    mels = some_mels((50, 90))
    np.savez(tmp_path / "in.npz", mel=padded(mels), n_frames=np.array([50, 90], np.int32))
    inputs = f"mel={tmp_path}/in.npz[mel];n_frames={tmp_path}/in.npz[n_frames]"
    cli(
        "run",
        "--dir",
        saved,
        "--tag_set",
        "serve",
        "--signature_def",
        "batch",
        "--inputs",
        inputs,
        "--outdir",
        tmp_path,
    )
    alone = tf.saved_model.load(str(saved)).signatures["serving_default"](mel=tf.constant(mels[1]))["track_scores"]
    np.testing.assert_allclose(np.load(tmp_path / "track_scores.npy")[1], alone, atol=1e-5)
