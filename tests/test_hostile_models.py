"""Untrusted models and answers: code in them does not run, paths in them lead nowhere, formulas stay text."""

import io
import json
import shutil
import zipfile

import keras
import numpy as np
import pandas as pd
import pytest

from tests.kill import SMALL
from tfmusic.cli import main
from tfmusic.core.files import CHECKSUMS_NAME, text_cell, write_checksums
from tfmusic.errors import RunError
from tfmusic.inference.predict import predictions_table
from tfmusic.models.surgery import load_saved


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "a.keras"
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(path)
    return path


def rewritten(source, target, change, **more):
    """Writes a .keras file again with another config and more members."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, json.dumps(change(json.loads(data))) if name == "config.json" else data)
        for name, data in more.items():
            new.writestr(name, data)
    return target


def with_layer(layer):
    def change(config):
        config["config"]["layers"][1] |= layer
        return config

    return change


@pytest.mark.parametrize(
    "layer",
    [
        {"module": "os", "class_name": "mkdir", "config": {"path": "EVIL"}},
        {"module": "builtins", "class_name": "exec", "config": {"object": "import os; os.mkdir('EVIL')"}},
        {"module": "subprocess", "class_name": "Popen", "config": {"args": ["mkdir", "EVIL"]}},
        {"module": "shutil", "class_name": "copy", "config": {"src": "/etc/hostname", "dst": "EVIL"}},
        {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "l", "function": {
            "class_name": "__lambda__", "config": {"code": "4wEAAAA=", "defaults": None, "closure": None}}}},
        {"module": "keras.utils", "class_name": "get_file", "config": {"fname": "EVIL", "origin": "file:///etc/hostname"}},
        {"module": "numpy", "class_name": "save", "config": {"file": "EVIL", "arr": [1]}},
    ],
    ids=lambda layer: layer["class_name"],
)  # fmt: skip
def test_code_in_models_is_refused(keras_file, tmp_path, monkeypatch, layer):
    """Layers of other modules, functions in place of layers, and Lambda: refused before anything of them runs."""
    monkeypatch.chdir(tmp_path)
    path = rewritten(keras_file, tmp_path / "b.keras", with_layer(layer))
    with pytest.raises(RunError, match=r"b\.keras: must be a Keras model of tfmusic"):
        load_saved(path)
    assert [one.name for one in tmp_path.iterdir()] == ["b.keras"]


def test_lambda_layers_that_keras_wrote_are_refused(tmp_path):
    """A real Lambda, with its byte code."""
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(inputs)).save(tmp_path / "l.keras")
    with pytest.raises(RunError, match=r"l\.keras: must be a Keras model of tfmusic"):
        load_saved(tmp_path / "l.keras")


@pytest.mark.parametrize("name", ["../evil", "/tmp/tfmusic-evil", "assets/../../evil", "assets/x/../../../evil"])
def test_archives_stay_inside(keras_file, tmp_path, name):
    """Members whose names lead out of the archive are written nowhere."""
    (tmp_path / "in" / "side").mkdir(parents=True)
    path = rewritten(keras_file, tmp_path / "in" / "side" / "z.keras", lambda config: config, **{name: b"evil"})
    try:
        load_saved(path)
    except RunError as error:
        assert "z.keras" in str(error)
    left = [one for one in tmp_path.rglob("*") if one.is_file()]
    assert left == [path]


def test_weights_that_claim_much(keras_file, tmp_path):
    """Weights of another shape than the config says are refused."""

    def widen(config):
        config["config"]["layers"][1]["config"]["units"] = 3
        return config

    with pytest.raises(RunError, match=r"w\.keras: must be a Keras model of tfmusic"):
        load_saved(rewritten(keras_file, tmp_path / "w.keras", widen))


@pytest.mark.slow
def test_saved_models_from_elsewhere(tmp_path, capsys):
    """A SavedModel without a contract is not loaded: what its input must be is not known."""
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    np.save(tmp_path / "a.npy", np.ones((1, 128, 40), np.float32))
    assert main(["predict", str(tmp_path / "other"), str(tmp_path / "a.npy")]) == 2
    assert "contract.json: must be the contract of a tfmusic model" in capsys.readouterr().err


FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1")


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_stay_text(text):
    """What a spreadsheet would run has a quote before it in predictions.csv, names of files too, in all cells."""
    table = predictions_table([text], [text], np.array([[0.5, 0.5]]), [text, "b"], [[text]])
    read = pd.read_csv(io.StringIO(table.to_csv(index=False)), dtype=str)
    cells = [*read.columns, *read.iloc[0]]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
    assert text_cell(text) == f"'{text}"
    assert text_cell("plain = text") == "plain = text"


@pytest.mark.slow
def test_same_answer_alone_and_in_a_batch(records, music, tmp_path):
    """A track has one answer, whichever others are asked for with it, and in whatever order."""
    run = tmp_path / "run"
    assert main(["fit", "q2", "--records", str(records), "--out", str(run), *SMALL, "training.epochs=1"]) == 0
    files = sorted((music / "q2/test/test_data/mel_spectrogram").glob("*.npy"))[:5]

    def answers(name, some):
        out = tmp_path / name
        assert main(["predict", str(run), *map(str, some), "--out", str(out)]) == 0
        return pd.read_csv(out, dtype=str).set_index("track_id")

    together, backwards = answers("all.csv", files), answers("back.csv", files[::-1])
    alone = pd.concat([answers(f"{file.stem}.csv", [file]) for file in files])
    pd.testing.assert_frame_equal(together, alone)
    pd.testing.assert_frame_equal(together, backwards.loc[together.index])
    shutil.rmtree(run)


SPOILED = ("[]", "3", "{}", '{"folder": 3, "answer": [], "members": 3, "interval": 3}')


@pytest.mark.slow
def test_json_of_another_shape(trained, records, music, tmp_path):
    """JSON files of a run and of its export that hold other values, their checksums right: one line, or no matter."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert main(["evaluate", str(run), "--records", str(records)]) == 0
    assert main(["export", str(run), "--overwrite"]) == 0
    mel = str(min((music / "q2/test/test_data/mel_spectrogram").glob("*.npy")))
    out = str(tmp_path / "out")
    of_run = [
        ["report", str(run), "--out", f"{out}.html"], ["evaluate", str(run), "--out", out], ["predict", str(run), mel],
        ["verify", str(run)],
    ]  # fmt: skip
    of_export = [["explain", str(run / "export"), mel], ["verify", str(run / "export")]]
    for folder, names, commands in (
        (run, ("environment.json", "records.json", "metrics.jsonl", "evaluation/report.json"), of_run),
        (run / "export", ("model_card.json",), of_export),
    ):
        for name in names:
            whole = (folder / name).read_bytes()
            for text in SPOILED:
                (folder / name).write_text(text)
                sealed_again(folder)
                codes = [main(command) for command in commands]  # a trace would come out here
                assert set(codes) <= {0, 2}, (name, text, codes)
                shutil.rmtree(out, ignore_errors=True)
            (folder / name).write_bytes(whole)
            sealed_again(folder)


def sealed_again(folder):
    """Makes the checksums of a folder anew, as its maker could."""
    path = folder / CHECKSUMS_NAME
    names = json.loads(path.read_text())["files"]
    path.unlink()
    write_checksums(folder, [name for name in names if (folder / name).is_file()])
