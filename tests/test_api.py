"""The Python API: every name of `tfmusic`, against the commands that do the same."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile

import tfmusic
from tests.conftest import SMALL_MODEL
from tfmusic.cli import main
from tfmusic.core.files import read_json_file

SMALL = dict(override.split("=", 1) for override in SMALL_MODEL) | {
    "input.frames": 64, "input.hop_frames": 32, "model.width": 4, "metadata.fields": [], "training.fold": 0,
    "training.batch_size": 8, "evaluation.baseline": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(trained):
    """The small trained model."""
    return tfmusic.load(str(trained))


@pytest.fixture(scope="module")
def spectrograms(music):
    """The .npy files of the q2 test list."""
    return sorted((music / "q2" / "test" / "test_data").rglob("*.npy"))


def test_import_is_light():
    """`import tfmusic` loads no large package; every public name can be had, and no other."""
    code = (
        "import sys, tfmusic; heavy = {'tensorflow', 'keras', 'numpy', 'pandas', 'pydantic'} & set(sys.modules);"
        "assert not heavy, heavy; [getattr(tfmusic, name) for name in tfmusic.__all__ if name != 'models'];"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(tfmusic.__all__) <= set(dir(tfmusic))
    with pytest.raises(AttributeError, match="no_such_name"):
        tfmusic.no_such_name  # noqa: B018


def test_predict_is_what_the_command_predicts(model, trained, spectrograms, tmp_path):
    """For paths as text or Path, arrays with or without the leading axis, and lists; scores as in the file."""
    out = tmp_path / "scores.csv"
    assert main(["predict", str(trained), str(spectrograms[0].parent), "--out", str(out)]) == 0
    table = pd.read_csv(out, dtype={"track_id": str}).set_index("track_id")
    path, mel = spectrograms[0], np.load(spectrograms[0])
    predictions = [model.predict(path), *model.predict([str(path), mel, mel[0]])]
    for prediction in predictions:
        assert list(prediction.scores.index) == list(model.labels)
        row = table.loc[path.stem]
        assert list(prediction.labels) == json.loads(row["prediction"])
        for label, score in prediction.scores.items():
            assert score == pytest.approx(row[f"score:{label}"], abs=1e-6)
    first = predictions[0]
    assert first.duration_s == pytest.approx(mel.shape[-1] * 0.032)
    assert list(first.timeline.columns) == list(model.labels)
    assert first.timeline.index.is_monotonic_increasing and first.timeline.index[0].left == 0
    assert first.name == path.name and path.name in repr(first)


def test_a_prediction_shows_itself_in_a_notebook(model, spectrograms):
    """Its HTML is a chart with the strongest label, and names are escaped."""
    prediction = model.predict(spectrograms[0])
    html = prediction._repr_html_()
    assert "<svg" in html and str(prediction.scores.idxmax()) in html
    assert "<script>" not in type(prediction)("<script>", *list(vars(prediction).values())[1:])._repr_html_()


@pytest.mark.slow
def test_progress_and_predictions_in_a_notebook(trained, spectrograms, tmp_path, monkeypatch):
    """In a kernel, long work shows one widget, not lines, and a prediction its timeline."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipywidgets")
    lines = [
        "import tfmusic",
        f"model = tfmusic.load({str(trained)!r})",
        f"tfmusic.build_records('folder', data={str(tmp_path / 'MUSIC')!r}, out={str(tmp_path / 'records')!r})",
        f"model.predict({str(spectrograms[0])!r})",
    ]
    write_noise(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, sys.path)))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(line) for line in lines])
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = [{kind for output in cell.outputs for kind in output.get("data", {})} for cell in book.cells]
    assert "application/vnd.jupyter.widget-view+json" in kinds[2]
    assert "<svg" in book.cells[3].outputs[-1]["data"]["text/html"]


def test_a_waveform_is_predicted_as_its_file(model, tmp_path):
    """Samples with their rate give the scores of the .wav file, also at another rate."""
    for rate_hz in (16000, 22050):
        samples = np.random.default_rng(0).normal(0, 0.1, 3 * rate_hz).astype(np.float32)
        soundfile.write(tmp_path / "noise.wav", samples, rate_hz, subtype="FLOAT")
        of_file, of_samples = model.predict(tmp_path / "noise.wav"), model.predict((samples, rate_hz))
        pd.testing.assert_series_equal(of_file.scores, of_samples.scores, rtol=1e-6)
        np.testing.assert_allclose(tfmusic.mel(tmp_path / "noise.wav"), tfmusic.mel((samples, rate_hz)), rtol=1e-5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros(16000, np.float32), r"\[128, n_frames\].*\(samples, sample_rate_hz\)"),
        (np.zeros((96, 100), np.float32), r"n_bins=128.*\[96, 100\]"),
        (np.full((128, 100), np.nan, np.float32), "finite"),
        (np.full((128, 100), -1, np.float32), "array.*at least 0|array.*negative"),
        ((np.zeros((2, 100), np.float32), 16000), r"mono.*\[2, 100\]"),
        ((np.zeros(100, np.float32), 16000), "waveform.*samples"),
        ("no/such/file.mp3", "no/such/file.mp3"),
    ],
)
def test_what_cannot_be_predicted(model, source, message):
    """The message says what the input must be and what it was."""
    with pytest.raises(tfmusic.TfmusicError, match=message):
        model.predict(source)


def test_embed_is_what_the_command_embeds(model, trained, spectrograms, tmp_path):
    """Windows, their mean and their beginnings."""
    assert main(["embed", str(trained), str(spectrograms[0]), "--out", str(tmp_path / "e.npz")]) == 0
    embedding = model.embed(spectrograms[0])
    with np.load(tmp_path / "e.npz") as file:
        vectors = next(file[name] for name in file.files if file[name].shape == embedding.windows.shape)
    np.testing.assert_allclose(embedding.windows, vectors, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(embedding.mean, vectors.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(embedding.starts_s[:-1], np.arange(len(vectors) - 1) * 32 * 0.032)


def test_records_as_tables_and_tracks(records):
    """Splits, labels, contract, tracks as a data frame, and whole tracks."""
    opened = tfmusic.open_records(str(records))
    assert opened.splits == tuple(opened.manifest.splits) and opened.contract.task == "q2"
    tracks = opened.tracks
    assert set(tracks["split"]) == set(opened.splits) and tracks["n_frames"].dtype.kind == "i"
    whole = list(opened.iterate("fold0"))
    assert [len(track.codes) for track in whole] == tracks.loc[[track.track_id for track in whole], "n_frames"].tolist()
    for track in whole:
        assert {opened.labels[i] for i in track.label} == set(tracks.loc[track.track_id, "labels"])
    assert str(records) in repr(opened) and f"{len(opened):,} segments" in repr(opened)


def test_records_as_a_sequence(records, tmp_path):
    """Segments by number are those in file order, also from a copy in another process's hands; ends as lists have."""
    import pickle

    opened = tfmusic.open_records(records)
    assert len(opened) == sum(split.segments for split in opened.manifest.splits.values())
    ds = opened.dataset(*opened.splits, batch_size=7)
    codes, targets = (np.concatenate(parts) for parts in zip(*ds.as_numpy_iterator(), strict=True))
    assert len(codes) == len(opened)
    for sequence in (opened, pickle.loads(pickle.dumps(opened.segments(*opened.splits)))):
        for i in (0, 3, len(opened) - 1, -1):
            np.testing.assert_array_equal(sequence[i][0], codes[i])
            np.testing.assert_array_equal(sequence[i][1], targets[i])
    assert len(opened[2:5]) == 3
    with pytest.raises(IndexError):
        opened[len(opened)]
    with pytest.raises(tfmusic.TfmusicError, match="fold9"):
        opened.segments("fold9")


def test_a_damaged_segment_is_named(records, tmp_path):
    """A flipped byte is found by the checksum of the record."""
    import shutil

    copy = shutil.copytree(records, tmp_path / "copy")
    opened = tfmusic.open_records(copy)
    path = opened.manifest.shard_paths("fold0")[0]
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(tfmusic.TfmusicError, match=path.name):
        opened.segments("fold0")[0]


def test_training_batches_for_a_model_of_ones_own(records):
    """Every reading is another epoch of whole batches, cropped and masked; Keras trains on it as it is."""
    import keras

    opened = tfmusic.open_records(records)
    ds = opened.dataset("fold1", "fold2", batch_size=8, training=True, augment="LD", frames=64)
    first, second = (np.concatenate([codes for codes, _ in ds.as_numpy_iterator()]) for _ in range(2))
    assert first.shape == (len(ds) * 8, 64, 128) and first.dtype == np.uint8 and not np.array_equal(first, second)
    net = tfmusic.models.build("cnn1d", frames=64, n_bins=128, n_outputs=len(opened.labels), width=4)
    net.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    assert np.isfinite(net.fit(ds, epochs=2, shuffle=False, verbose=0).history["loss"]).all()
    with pytest.raises(tfmusic.TfmusicError, match="frames must be 1 to"):
        opened.dataset("fold1", training=True, frames=100_000)
    with pytest.raises(tfmusic.TfmusicError, match="policy"):
        opened.dataset("fold1", augment="XX")


def test_build_fit_evaluate_export(music, spectrograms, tmp_path):
    """The whole way in Python; a Keras callback sees the numbers of every epoch."""
    import keras

    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(dict(logs))

    built = tfmusic.build_records("q2", data=str(music), out=str(tmp_path / "records"))
    run = tfmusic.fit(
        "q2", records=built, out=tmp_path / "run", overrides={**SMALL, "training.epochs": 2}, callbacks=[Watch()]
    )
    assert [logs["epoch"] for logs in seen] == [1, 2] and run.history["validation"].tolist() == [
        logs["validation"] for logs in seen
    ]
    report = run.evaluate()
    assert main(["evaluate", str(run.path)]) == 0
    written = read_json_file(run.path / "evaluation" / "report.json")
    assert next(iter(report.metrics.values())) == written["value"] and report.labels["support"].sum() > 0
    assert len(report.predictions) == written["tracks"]
    exported = tfmusic.load(run.export())
    scores = [one.predict(spectrograms[0]).scores for one in (exported, run.load())]
    pd.testing.assert_series_equal(*scores, atol=1e-5)
    with pytest.raises(tfmusic.TfmusicError, match="exists"):
        run.export()
    with pytest.raises(tfmusic.TfmusicError, match="export"):
        exported.embed(spectrograms[0])
    with pytest.raises(tfmusic.TfmusicError, match=r"training\.epoch"):
        tfmusic.fit("q2", records=built, overrides={"training.epoch": 2})


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_aggregate(kind):
    """Means and maxima of scores are those of numpy; wrong names and shapes are refused."""
    scores = np.random.default_rng(1).dirichlet(np.ones(5), 7)
    np.testing.assert_allclose(tfmusic.aggregate(scores, "mean", kind=kind), scores.mean(0), rtol=1e-6)
    np.testing.assert_allclose(tfmusic.aggregate(scores, "max", kind=kind), scores.max(0), rtol=1e-6)
    with pytest.raises(tfmusic.TfmusicError, match="top_k_mean"):
        tfmusic.aggregate(scores, "sum")
    with pytest.raises(tfmusic.TfmusicError, match=r"\[n_windows, n_labels\]"):
        tfmusic.aggregate(scores[0])


def write_noise(folder):
    """Writes noise as files of two classes in MUSIC, and as song.mp3 and other.mp3."""
    rng = np.random.default_rng(0)
    for name in [f"MUSIC/{label}/{i}.wav" for label in ("jazz", "rock") for i in range(6)] + ["song.mp3", "other.mp3"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, rng.normal(0, 0.1, 18 * 16000), 16000)
