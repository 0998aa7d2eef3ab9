"""ONNX and LiteRT of the segment model."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from tests.sounds import chords, write
from tfmusic.cli import main
from tfmusic.core.contract import Contract
from tfmusic.export import formats
from tfmusic.export.onnx import convert
from tfmusic.inference.model_folder import MODEL_FILES
from tfmusic.models import build_model
from tfmusic.models.ops import IS_KERAS_3

CODES = np.random.default_rng(0).integers(0, 256, (5, 64, 128), np.uint8)


def run_onnx(path, codes):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    return session.run(["logits"], {source.name: codes})[0], session.get_modelmeta().custom_metadata_map


def run_litert(path, codes):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    interpreter = litert.Interpreter(str(path))
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.resize_tensor_input(source["index"], codes.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], codes)
    interpreter.invoke()
    return interpreter.get_tensor(sink["index"])


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def answers_of(run):
    model = keras.saving.load_model(run / "checkpoints" / "best.keras", compile=False)
    return sigmoid(np.asarray(model(CODES, training=False)))


@pytest.mark.slow
def test_onnx_answers_as_the_run(trained, tmp_path):
    """Any batch, scores within 1e-5, and the contract inside the file as well as beside it."""
    pytest.importorskip("tf2onnx")
    out = tmp_path / "onnx"
    assert main(["export", str(trained), "--format", "onnx", "--out", str(out)]) == 0
    logits, inside = run_onnx(out / "model.onnx", CODES)
    np.testing.assert_allclose(sigmoid(logits), answers_of(trained), atol=1e-5)
    np.testing.assert_allclose(run_onnx(out / "model.onnx", CODES[:1])[0], logits[:1], rtol=1e-4, atol=1e-5)
    assert json.loads(inside["contract.json"]) == json.loads((out / "contract.json").read_text(encoding="utf-8"))
    assert (out / "labels.txt").read_text(encoding="utf-8").splitlines() == list(
        Contract.load(out / "contract.json").labels
    )
    assert main(["verify", str(out)]) == 0
    assert main(["export", str(trained), "--format", "onnx", "--out", str(out)]) == 2
    assert main(["export", str(trained), "--format", "onnx", "--out", str(out), "--overwrite"]) == 0


@pytest.mark.slow
def test_litert_answers_as_the_run(trained, tmp_path):
    """Any batch, scores within 1e-5, contract beside it; a folder of its own inside the run without --out."""
    pytest.importorskip("ai_edge_litert")
    out = tmp_path / "litert"
    assert main(["export", str(trained), "--format", "litert", "--out", str(out)]) == 0
    np.testing.assert_allclose(sigmoid(run_litert(out / "model.tflite", CODES)), answers_of(trained), atol=1e-5)
    np.testing.assert_allclose(sigmoid(run_litert(out / "model.tflite", CODES[:2])), answers_of(trained)[:2], atol=1e-5)
    assert (out / "contract.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not IS_KERAS_3, reason="Keras 2.15 has no such export")
@pytest.mark.parametrize(("form", "package"), [("onnx", "onnxruntime"), ("litert", "ai_edge_litert")])
def test_tracks_are_answered_by_the_runtime_of_the_format(trained, music, tmp_path, capsys, form, package):
    """predict and explain take the folder as they take the run, with the same scores."""
    pytest.importorskip(package)
    pytest.importorskip("tf2onnx")
    out, test = tmp_path / form, music / "q2" / "test"
    assert main(["export", str(trained), "--format", form, "--out", str(out)]) == 0
    card = json.loads((out / "model_card.json").read_text(encoding="utf-8"))
    assert card["prediction"]["aggregator"] == "mean"
    assert "# q2: model card" in (out / "README.md").read_text(encoding="utf-8")
    for model, name in ((trained, "run.csv"), (out, "export.csv")):
        assert main(["predict", str(model), str(test), "--out", str(tmp_path / name)]) == 0
    ours, theirs = (pd.read_csv(tmp_path / name) for name in ("run.csv", "export.csv"))
    assert list(ours.columns) == list(theirs.columns)
    scores = [name for name in ours.columns if name.startswith("score:")]
    np.testing.assert_allclose(theirs[scores].to_numpy(float), ours[scores].to_numpy(float), atol=1e-5)
    track = next((test / "test_data" / "mel_spectrogram").glob("*.npy"))
    assert main(["explain", str(out), str(track), "--out", str(tmp_path / "track.json")]) == 0


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Both exports of one run, without checksums, which would find every change first."""
    pytest.importorskip("tf2onnx")
    pytest.importorskip("ai_edge_litert")
    folder = tmp_path_factory.mktemp("exported")
    for form in ("onnx", "litert"):
        assert main(["export", str(trained), "--format", form, "--out", str(folder / form)]) == 0
        (folder / form / "checksums.json").unlink()
    return folder


CHANGES = ("frames", "dtype", "labels", "metadata")


def recipes():
    """Returns the Python blocks of the README of exports."""
    text = (Path(__file__).parents[1] / "tfmusic" / "export" / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.5, 12.3])
def test_recipe_of_the_readme_answers_as_predict(exported, tmp_path, seconds):
    """The lines of the README, from sound to scores without tfmusic: those of `predict`, but for a rounded code."""
    for package in ("librosa", "onnxruntime"):
        pytest.importorskip(package)
    (recipe,) = [block for block in recipes() if "librosa" in block]
    song, found = tmp_path / "song.wav", {}
    write(song, chords(seconds, 16000), 16000, subtype="FLOAT")
    exec(recipe.replace("EXPORT", str(exported / "onnx")).replace("SONG", str(song)), found)
    assert main(["predict", str(exported / "onnx"), str(song), "--out", str(tmp_path / "x.csv")]) == 0
    row = pd.read_csv(tmp_path / "x.csv").iloc[0]
    for label, score in found["scores"].items():
        assert score == pytest.approx(float(row[f"score:{label}"]), abs=1e-3)


@pytest.mark.slow
def test_mlserver_answers_as_onnx_runtime(exported, tmp_path):
    """A real KServe-v2 server with the class of the README: the logits of the export."""
    python = os.environ.get("TFMUSIC_MLSERVER_PYTHON")
    if not python:
        pytest.skip("TFMUSIC_MLSERVER_PYTHON names no Python with mlserver and onnxruntime")
    (code,) = [block for block in recipes() if "mlserver" in block]
    (tmp_path / "windows.py").write_text(code)
    parameters = {"uri": str(exported / "onnx" / "model.onnx")}
    model = {"name": "q2", "implementation": "windows.Windows", "parameters": parameters}
    ports = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True))
    (tmp_path / "model-settings.json").write_text(json.dumps(model))
    (tmp_path / "settings.json").write_text(json.dumps(ports | {"host": "127.0.0.1", "parallel_workers": 0}))
    url = f"http://127.0.0.1:{ports['http_port']}/v2/models/q2"
    codes = {"name": "codes", "shape": CODES.shape, "datatype": "UINT8", "data": CODES.ravel().tolist()}
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen([Path(python).with_name("mlserver"), "start", str(tmp_path)], env=environment) as server:
        try:
            wait_for(f"{url}/ready")
            body = json.dumps({"inputs": [codes]}).encode()
            request = urllib.request.Request(f"{url}/infer", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                (output,) = json.load(answer)["outputs"]
        finally:
            server.terminate()
    wanted = run_onnx(exported / "onnx" / "model.onnx", CODES)[0]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), wanted, atol=1e-6)


def free_ports(count):
    """Returns ports that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(url):
    """Waits until a server answers."""
    for _ in range(240):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.25)
    raise AssertionError(f"{url}: no answer in a minute")


def change_contract(path, change):
    """Changes what a contract says the model takes or gives."""
    contract = json.loads(path.read_text(encoding="utf-8"))
    contract |= {
        "frames": {"frames": contract["frames"] - 1},
        "dtype": {"dtype": "float32"},
        "labels": {"labels": contract["labels"][:-1]},
        "metadata": {"metadata": ["genres=jazz"]},
        "heads": {"kind": "tasks", "heads": [{"task": "q2", "kind": "multi", "labels": contract["labels"]}]},
    }[change]
    path.write_text(json.dumps(contract), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(not IS_KERAS_3, reason="Keras 2.15 has no such export")
@pytest.mark.parametrize("form", ["onnx", "litert"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_contract_of_another_model_is_refused(exported, music, tmp_path, capsys, form, change):
    """One line says what the contract wants and what the model is."""
    shutil.copytree(exported / form, tmp_path / form)
    change_contract(tmp_path / form / "contract.json", change)
    assert main(["predict", str(tmp_path / form), str(music / "q2" / "test")]) == 2
    assert "must take and give what the contract beside it says" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("change", [*CHANGES, "heads"])
def test_a_contract_of_another_run_is_refused(trained, music, tmp_path, capsys, change):
    """Of a run folder too, where no checksum found it first."""
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "checksums.json").unlink()
    change_contract(tmp_path / "run" / "contract.json", change)
    assert main(["predict", str(tmp_path / "run"), str(music / "q2" / "test")]) == 2
    said = capsys.readouterr().err
    assert "contract beside it says" in said
    assert ("a head for q2" in said) == (change == "heads")


@pytest.mark.slow
@pytest.mark.skipif(not IS_KERAS_3, reason="Keras 2.15 has no such export")
@pytest.mark.parametrize("fields", [None, {"kind": "multi", "aggregator": "foo"}])
def test_an_export_without_a_usable_calibration_is_refused(exported, music, tmp_path, capsys, fields):
    """By predict and by verify, with one line."""
    shutil.copytree(exported / "onnx", tmp_path / "onnx")
    (tmp_path / "onnx" / "calibration.json").write_text(json.dumps({"q2": fields}), encoding="utf-8")
    for command in (
        ["predict", str(tmp_path / "onnx"), str(music / "q2" / "test")],
        ["verify", str(tmp_path / "onnx")],
    ):
        assert main(command) == 2
        assert "calibration.json: must be the calibration" in "".join(capsys.readouterr())


@pytest.mark.slow
def test_predictions_need_no_model_card(exported, music, tmp_path):
    """The card is documentation: without it, or with another text, every format predicts the same."""
    test = str(music / "q2" / "test")
    for form in ("onnx", "litert"):
        shutil.copytree(exported / form, tmp_path / form)
        (tmp_path / form / "model_card.json").unlink()
        outs = [str(tmp_path / f"{form}{i}.json") for i in (0, 1)]
        assert main(["predict", str(exported / form), test, "--out", outs[0]]) == 0
        assert main(["predict", str(tmp_path / form), test, "--out", outs[1]]) == 0
        assert Path(outs[0]).read_bytes() == Path(outs[1]).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not IS_KERAS_3, reason="Keras 2.15 has no such export")
@pytest.mark.parametrize(("form", "name"), [("onnx", "model.onnx"), ("litert", "model.tflite")])
def test_a_cut_model_is_refused(exported, music, tmp_path, capfd, form, name):
    """One line names the file; standard output stays one JSON document."""
    shutil.copytree(exported / form, tmp_path / form)
    path = tmp_path / form / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    capfd.readouterr()
    assert main(["--json", "predict", str(tmp_path / form), str(music / "q2" / "test")]) == 2
    assert name in json.loads(capfd.readouterr().out)["error"]


@pytest.mark.slow
@pytest.mark.skipif(not IS_KERAS_3, reason="Keras 2.15 has no such export")
@pytest.mark.parametrize("name", ["crnn", "musicnn", pytest.param("shortchunk_res", marks=pytest.mark.torture)])
def test_onnx_of_other_networks(name, tmp_path):
    """Recurrent, one-dimensional and musicnn's layers come through too."""
    pytest.importorskip("tf2onnx")
    onnx = pytest.importorskip("onnxruntime")
    mean, variance = np.full(128, 120.0), np.full(128, 900.0)
    model = build_model(name, frames=64, n_bins=128, n_outputs=3, width=4, mean=mean, variance=variance)
    convert(model, tmp_path / "model.onnx")
    session = onnx.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: CODES})[0]
    np.testing.assert_allclose(sigmoid(logits), sigmoid(np.asarray(model(CODES, training=False))), atol=1e-5)


@pytest.mark.slow
def test_litert_refuses_recurrent_layers(trained, tmp_path, capsys):
    """One line names the layers and the other format; no folder is left."""
    pytest.importorskip("ai_edge_litert")
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "checksums.json").unlink()
    contract = Contract.load(run / "contract.json")
    crnn = build_model("crnn", frames=contract.frames, n_bins=128, n_outputs=len(contract.labels), width=4)
    crnn.save(run / "checkpoints" / "best.keras")
    assert main(["export", str(run), "--format", "litert"]) == 2
    assert "without recurrent layers" in capsys.readouterr().err
    assert not list(Path(run).glob("*export*"))


@pytest.mark.skipif(not IS_KERAS_3, reason="Keras 2.15 has no such export")
@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_litert_refuses_mixed_precision(trained, tmp_path, capsys, precision):
    """One line names the key, before anything is converted, and nothing is left."""
    pytest.importorskip("ai_edge_litert")
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "checksums.json").unlink()
    contract = Contract.load(run / "contract.json")
    keras.mixed_precision.set_global_policy(precision)
    try:
        model = build_model("cnn1d", frames=contract.frames, n_bins=128, n_outputs=len(contract.labels), width=4)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    model.save(run / "checkpoints" / "best.keras")
    assert main(["export", str(run), "--format", "litert"]) == 2
    shown = capsys.readouterr().err
    assert "training.precision=float32" in shown
    assert len(shown.strip().splitlines()) == 1
    assert not list(Path(run).glob("*export*"))


@pytest.mark.skipif(IS_KERAS_3, reason="on the addons stack")
def test_keras_2_has_a_saved_model_alone(trained, tmp_path, capsys):
    """One line says which stack can, and nothing is written."""
    assert main(["export", str(trained), "--format", "onnx", "--out", str(tmp_path / "x")]) == 2
    assert "--format onnx needs Keras 3" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not IS_KERAS_3, reason="Keras 2.15 has no such export")
def test_without_the_extra(trained, tmp_path, monkeypatch, capsys):
    """The package that is missing is named as an extra, and nothing is written."""
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    assert main(["export", str(trained), "--format", "onnx", "--out", str(tmp_path / "x")]) == 2
    assert "pip install 'tfmusic[onnx]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_format_has_a_writer_and_a_file():
    """What can be written is recognised when it is read."""
    assert formats.FORMATS.keys() == MODEL_FILES.keys()
