"""One answer for a track: evaluate, predict and SavedModel agree."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tfmusic.cli import main
from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.core.rundir import RunDir
from tfmusic.core.scale import Encoder, Scale
from tfmusic.core.windows import Segments, slice_windows
from tfmusic.export.savedmodel import TrackModel, signatures
from tfmusic.inference.model_folder import load_predict_fn
from tfmusic.models import build_model
from tfmusic.scoring.aggregate import AGGREGATORS
from tfmusic.scoring.track_scorer import TrackScorer


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "model"
    assert main(["export", str(trained), "--out", str(out)]) == 0
    return out


def small_model(kind, dtype="uint8"):
    keras.utils.set_random_seed(1)
    mean, variance = np.full(128, 120.0), np.full(128, 900.0)
    return build_model(
        "cnn1d", frames=40, n_bins=128, n_outputs=3, width=4, dtype=dtype, mean=mean, variance=variance
    ), Contract(
        "t", kind, ("가", "나/다", "라"), Feature(n_bins=128),
        Scale("db", -60.0, 30.0), dtype, 40, 15,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("aggregator", AGGREGATORS)
@pytest.mark.parametrize("n_frames", [7, 40, 41, 3000])
def test_graph_and_numpy_agree(kind, aggregator, n_frames):
    """Every aggregator, short tracks, exact multiples and more windows than one call takes: within 1e-5."""
    model, contract = small_model(kind)
    shift = {"single": 0.0, "multi": 0.3}[kind]
    scorer = TrackScorer(kind=kind, aggregator=aggregator, window_shift=-shift, track_shifts={aggregator: shift})
    module = TrackModel(model, contract, scorer)
    mel = (10 ** np.random.default_rng(0).uniform(-7, 3, (128, n_frames))).astype(np.float32)
    answer = module(tf.constant(mel))
    cells = Encoder(contract.scale, "uint8").encode(mel)
    windows, starts = slice_windows(cells, frames=40, hop_frames=15)
    logits = np.asarray(model(windows, training=False))
    np.testing.assert_allclose(answer["track_scores"], scorer.track_scores(logits), atol=1e-5)
    np.testing.assert_allclose(answer["window_scores"], scorer.window_scores(logits), atol=1e-5)
    np.testing.assert_array_equal(answer["window_starts"], starts)


@pytest.mark.parametrize("choice", ["first", "random", "even"])
def test_graph_and_numpy_choose_the_same_segments(choice):
    """Of tracks of any length: fewer segments than wanted, as many, touching ones, ones apart, one alone."""
    model, contract = small_model("single")
    for count, segment_hop in ((1, 50), (3, 50), (4, 31)):
        segments = Segments(choice, count, frames=50, hop_frames=segment_hop, seed=5)
        module = TrackModel(model, replace(contract, segments=segments), TrackScorer(kind="single"))
        for n_frames in (7, 40, 50, 51, 99, 100, 101, 170, 333, 1000, 2345):
            expected = slice_windows(np.zeros((n_frames, 1)), frames=40, hop_frames=15, segments=segments)[1]
            found = module._windows(tf.zeros((n_frames, 128)))[1]
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["db", "log10_1p10", "log10_1p10000"])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_graph_scales_as_the_converter_does(name, dtype):
    """The same cells from the graph as from the encoder, silence included; uint8 to the last code."""
    model, contract = small_model("single", dtype)
    scale = Scale(name, -60.0, 30.0) if name == "db" else Scale(name, 0.0, 6.0)
    contract = Contract(**(vars(contract) | {"scale": scale}))
    module = TrackModel(model, contract, TrackScorer(kind=contract.kind))
    mel = (10 ** np.random.default_rng(0).uniform(-9, 4, (128, 200))).astype(np.float32)
    mel[:, 0] = 0.0
    cells = Encoder(scale, dtype).encode(mel)
    ours = module._encode(tf.constant(mel)).numpy()
    assert ours.dtype == cells.dtype
    if dtype == "uint8":
        np.testing.assert_array_equal(ours, cells)
    else:
        np.testing.assert_allclose(ours, cells, rtol=1e-3 if dtype == "float16" else 1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "pooling"), [("crnn", "last"), ("crnn", "attention"), ("cnn2d", "max"), ("resnet18", "attention")]
)
def test_every_model_is_exported_whole(name, pooling, tmp_path):
    """Recurrent, convolutional and attention-pooled models answer from disk as they do in memory."""
    mean, variance = np.full(128, 120.0), np.full(128, 900.0)
    model = build_model(
        name, frames=64, n_bins=128, n_outputs=3, width=4, mean=mean, variance=variance, pooling=pooling
    )
    _, contract = small_model("multi")
    contract = replace(contract, frames=64)
    module = TrackModel(model, contract, TrackScorer(kind=contract.kind))
    mel = (10 ** np.random.default_rng(0).uniform(-7, 3, (128, 300))).astype(np.float32)
    tf.saved_model.save(module, str(tmp_path), signatures=signatures(module, contract))
    answer = load_predict_fn(tmp_path)(mel)
    windows, _ = slice_windows(Encoder(contract.scale, "uint8").encode(mel), frames=64, hop_frames=15)
    expected = TrackScorer(kind="multi").track_scores(np.asarray(model(windows, training=False)))
    np.testing.assert_allclose(answer["track_scores"], expected, atol=1e-5)


def test_tracks_of_new_lengths_are_answered_by_one_graph(tmp_path):
    """A loaded export traces nothing for a length that it has not met: that takes time, and memory for good."""
    model, contract = small_model("single")
    module = TrackModel(model, contract, TrackScorer(kind=contract.kind))
    tf.saved_model.save(module, str(tmp_path), signatures=signatures(module, contract))
    answer = load_predict_fn(tmp_path)
    for n_frames in (50, 51, 77):
        assert answer(np.ones((contract.n_bins, n_frames), np.float32))["track_scores"].shape == (3,)
    assert answer.module.__call__.experimental_get_tracing_count() == 0


@pytest.mark.parametrize(("bad", "n_frames"), [(np.nan, 50), (np.inf, 50), (-1.0, 50), (1.0, 0)])
def test_graph_refuses_what_is_no_power(bad, n_frames):
    """NaN, infinite and negative cells, and no frames at all, are an error in the graph too."""
    model, contract = small_model("single")
    module = TrackModel(model, contract, TrackScorer(kind=contract.kind))
    with pytest.raises(tf.errors.InvalidArgumentError, match="mel must be finite power"):
        module(tf.constant(np.full((128, n_frames), bad, np.float32)))


def test_signatures_take_the_files_shape():
    """`serving_default` takes [n_bins, n_frames], `file` the [1, n_bins, n_frames] of an .npy."""
    model, contract = small_model("single")
    module = TrackModel(model, contract, TrackScorer(kind=contract.kind))
    made = signatures(module, contract)
    assert made["serving_default"].structured_input_signature[0][0].shape.as_list() == [128, None]
    assert made["file"].structured_input_signature[0][0].shape.as_list() == [1, 128, None]


def test_evaluate_writes_report_and_predictions(trained, records):
    """report.json holds every aggregator and label; predictions.csv every validation track once."""
    assert main(["evaluate", str(trained)]) == 0
    report = json.loads((RunDir(trained).evaluation / "report.json").read_text(encoding="utf-8"))
    table = pd.read_csv(RunDir(trained).evaluation / "predictions.csv", dtype={"track_id": str})
    assert set(report["aggregators"]) == set(AGGREGATORS)
    assert report["value"] == report["aggregators"]["mean"]
    with (records / "tracks.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "fold0"]
    assert sorted(table["track_id"]) == sorted(row["track_id"] for row in rows)
    for answer, target, row in zip(table["prediction"], table["target"], rows, strict=True):
        assert isinstance(json.loads(answer), list)
        assert json.loads(target) == sorted(json.loads(row["labels"]))
    pairs = [
        (set(json.loads(a)), set(json.loads(t))) for a, t in zip(table["prediction"], table["target"], strict=True)
    ]
    hits, marked = sum(len(a & t) for a, t in pairs), sum(len(a) + len(t) for a, t in pairs)
    assert report["value"] == pytest.approx(2 * hits / marked)


def test_evaluate_predict_and_saved_model_agree(trained, exported, music, tmp_path):
    """The same scores to 1e-5 for the same tracks, three ways."""
    assert main(["evaluate", str(trained)]) == 0
    evaluated = pd.read_csv(RunDir(trained).evaluation / "predictions.csv", dtype={"track_id": str})
    mels = music / "q2/train/train_data/mel_spectrogram"
    files = [str(mels / f"{track_id}.npy") for track_id in evaluated["track_id"]]
    for model in (trained, exported):
        out = tmp_path / f"{model.name}.csv"
        assert main(["predict", str(model), *files, "--out", str(out)]) == 0
        predicted = pd.read_csv(out, dtype={"track_id": str})
        assert list(predicted["track_id"]) == list(evaluated["track_id"])
        scores = [name for name in predicted if name.startswith("score:")]
        np.testing.assert_allclose(predicted[scores], evaluated[scores], atol=1e-5)


def test_prediction_list_is_in_data_idx_order(trained, exported, music, tmp_path):
    """A bare JSON list of lists of tags in the order of the test list, the same from run and export."""
    answers = []
    for model in (trained, exported):
        out = tmp_path / f"{model.name}.json"
        assert main(["predict", str(model), str(music / "q2" / "test"), "--out", str(out)]) == 0
        answers.append(json.loads(out.read_text(encoding="utf-8")))
    listing = json.loads((music / "q2/test/test_data/meta/q2_test.json").read_text())["track_index"]
    assert answers[0] == answers[1]
    assert len(answers[0]) == len(listing)
    labels = Contract.load(trained / "contract.json").labels
    assert all(isinstance(tags, list) and set(tags) <= set(labels) for tags in answers[0])


@pytest.mark.slow
def test_saved_model_needs_neither_tfmusic_nor_keras(exported, music):
    """A process with TensorFlow alone loads it and answers for a file as it lies on disk."""
    mel = next((music / "q2/test/test_data/mel_spectrogram").glob("*.npy"))
    code = f"""
import sys
sys.modules["keras"] = sys.modules["tfmusic"] = sys.modules["tf_keras"] = None
import numpy as np, tensorflow as tf
model = tf.saved_model.load({str(exported)!r})
answer = model(np.load({str(mel)!r}))
again = model.signatures["serving_default"](mel=tf.constant(np.load({str(mel)!r})[0]))
assert np.array_equal(answer["track_scores"], again["track_scores"])
assert len(model.labels()) == len(answer["track_scores"])
print(answer["track_scores"].numpy().tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    cells = Contract.load(exported / "contract.json")
    assert len(json.loads(done.stdout)) == len(cells.labels)


def test_export_holds_contract_and_labels(exported):
    """What a user needs to feed the model travels with it."""
    contract = Contract.load(exported / "contract.json")
    assert (exported / "labels.txt").read_text(encoding="utf-8").splitlines() == list(contract.labels)
    assert sorted(path.name for path in exported.parent.iterdir()) == ["model"]


def test_predict_prints_without_out(trained, music, capsys):
    """Without --out the list goes to the terminal."""
    mel = next((music / "q2/test/test_data/mel_spectrogram").glob("*.npy"))
    capsys.readouterr()
    assert main(["predict", str(trained), str(mel)]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


@pytest.mark.parametrize("model", ["run", "export"])
def test_bad_input_to_predict(trained, exported, tmp_path, capsys, model):
    """A faulty track is named, exit code 2, no half-written answer."""
    path = exported if model == "export" else trained
    np.save(tmp_path / "7.npy", np.full((1, 128, 50), np.nan, np.float32))
    assert main(["predict", str(path), str(tmp_path), "--out", str(tmp_path / "o.json")]) == 2
    assert "7.npy: power must be finite" in capsys.readouterr().err
    np.save(tmp_path / "7.npy", np.ones((1, 96, 50), np.float32))
    assert main(["predict", str(path), str(tmp_path / "7.npy"), "--out", str(tmp_path / "o.json")]) == 2
    assert "7.npy: shape must be [1, 128, n_frames]" in capsys.readouterr().err
    assert not (tmp_path / "o.json").exists()


def test_test_part_of_another_question_is_warned_of(trained, music, tmp_path, capsys):
    """A q2 model answers q1's tracks in its own tags, and says so."""
    out = ["--out", str(tmp_path / "o.json")]
    assert main(["predict", str(trained), str(music / "q1" / "test"), *out]) == 0
    assert "is the test part of q1, the model predicts q2" in capsys.readouterr().err
    assert main(["predict", str(trained), str(music / "q2" / "test"), *out, "--overwrite"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_folders_that_are_no_model(tmp_path, trained, music, capsys):
    """A folder that is no run or export, an input that is not there, an output of no known kind."""
    mel = str(next((music / "q2/test/test_data/mel_spectrogram").glob("*.npy")))
    assert main(["predict", str(tmp_path), mel]) == 2
    assert "must be a run folder with a trained model, or" in capsys.readouterr().err
    assert main(["predict", str(trained), str(tmp_path / "none")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert main(["predict", str(trained), str(tmp_path)]) == 2
    assert ".npy or audio files" in capsys.readouterr().err
    assert main(["predict", str(trained), mel, "--out", "x.txt"]) == 2
    assert "--out must end in .json or .csv" in capsys.readouterr().err
    for command in ("evaluate", "export"):
        assert main([command, str(tmp_path)]) == 2
        assert "must be a run folder with a trained model: it lacks" in capsys.readouterr().err
        assert main([command, str(tmp_path / "none")]) == 2
        assert "none: no such folder; it must be a run folder" in capsys.readouterr().err


def test_damaged_model_is_named(trained, tmp_path, music, capsys):
    """A checkpoint that is no model gives one line."""
    shutil.copytree(trained, tmp_path / "run")
    RunDir(tmp_path / "run").checkpoint("best").write_bytes(b"not a model")
    mel = str(next((music / "q2/test/test_data/mel_spectrogram").glob("*.npy")))
    assert main(["predict", str(tmp_path / "run"), mel]) == 2
    assert "best.keras: damaged" in capsys.readouterr().err
    (tmp_path / "run" / "checksums.json").unlink()
    assert main(["predict", str(tmp_path / "run"), mel]) == 2
    assert "best.keras: must be a Keras model" in capsys.readouterr().err


def test_records_of_another_contract_are_refused(trained, music, tmp_path, capsys):
    """`evaluate` does not score records that the model was not made for."""
    out = tmp_path / "records"
    assert main(["build-records", "q2", "--data", str(music), "--out", str(out), "record.scale=log10_1p10"]) == 0
    assert main(["evaluate", str(trained), "--records", str(out), "--split", "fold0"]) == 2
    assert "must keep the contract of the model" in (error := capsys.readouterr().err)
    assert "scale: " in error


def test_existing_export_is_kept_unless_told(exported, trained, capsys):
    """An export is replaced only with --overwrite."""
    assert main(["export", str(trained), "--out", str(exported)]) == 2
    assert "exists already" in capsys.readouterr().err
