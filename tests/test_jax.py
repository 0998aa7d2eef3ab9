"""JAX from records to SavedModel, and a reader of records that needs no TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tfmusic.cli import main
from tfmusic.core.rundir import RunDir

ROOT = Path(__file__).parents[1]

_ON_JAX = """
import sys
from importlib.machinery import PathFinder
from pathlib import Path

find = PathFinder.find_spec  # TensorFlow is not found here; `export` has a process of its own
PathFinder.find_spec = lambda name, *more: None if name == "tensorflow" else find(name, *more)
import keras
from tests.conftest import fit_small
from tfmusic.cli import main

assert keras.backend.backend() == "jax"
records, trained, music, out = map(Path, sys.argv[1:])
switches = ("model.name=cnn1d", "training.ema_momentum=0.9", "training.learning_rate=1e-4", "augment.mixup_alpha=0.2")
args = ("q2", records, out / "run", *switches)
assert fit_small(*args, "training.epochs=1") == 0
assert fit_small(*args, "training.epochs=2", flags=("--resume",)) == 0
assert main(["evaluate", str(out / "run")]) == 0
assert main(["evaluate", str(trained), "--out", str(out / "theirs")]) == 0
assert main(["predict", str(out / "run"), str(music / "q2/test"), "--out", str(out / "run.json")]) == 0
assert main(["export", str(out / "run")]) == 0
assert main(["export", str(out / "run")]) == 2  # there is one already, and the other process would say so too
assert keras.backend.backend() == "jax"
"""

_WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None  # importing it fails
from pathlib import Path
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import iterate

manifest = Manifest.read(Path(sys.argv[1]))
shape = (manifest.segment_frames, manifest.contract.n_bins)
print(sum(cells.shape == shape for _, cells in iterate(manifest, "fold1")))
"""


def scores(folder):
    table = pd.read_csv(folder / "predictions.csv").set_index("track_id").sort_index()
    return table.filter(like="score:").to_numpy()


@pytest.fixture(scope="module")
def on_jax(records, trained, music, tmp_path_factory):
    """Folder with a run that JAX trained, evaluated and exported, and its evaluation of a run of TensorFlow."""
    out = tmp_path_factory.mktemp("jax")
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    arguments = [str(path) for path in (records, trained, music, out)]
    subprocess.run([sys.executable, "-c", _ON_JAX, *arguments], cwd=ROOT, env=environment, check=True)
    return out


@pytest.mark.slow
def test_fit_on_jax(on_jax):
    """A run trains, averages its weights and resumes on JAX, and says so."""
    run = RunDir(on_jax / "run")
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    environment = json.loads(run.environment.read_text())
    assert environment["backend"] == "jax"
    assert environment["packages"]["jax"]
    report = json.loads((run.evaluation / "report.json").read_text(encoding="utf-8"))
    assert report["value"] == pytest.approx(max(line["validation"] for line in lines), abs=1e-5)


@pytest.mark.slow
def test_runs_move_between_backends(on_jax, trained, tmp_path):
    """A run scores tracks the same to 1e-5 on the backend that trained it and on the other."""
    for run, theirs in ((on_jax / "run", on_jax / "run" / "evaluation"), (trained, on_jax / "theirs")):
        assert main(["evaluate", str(run), "--out", str(tmp_path), "--overwrite"]) == 0
        np.testing.assert_allclose(scores(tmp_path), scores(theirs), atol=1e-5)


@pytest.mark.slow
def test_a_run_of_jax_becomes_a_saved_model(on_jax, music, tmp_path):
    """`export` under JAX has left a SavedModel of TensorFlow, which answers as the run does on JAX."""
    assert (on_jax / "run" / "export" / "saved_model.pb").is_file()
    answers = tmp_path / "export.json"
    assert main(["predict", str(on_jax / "run" / "export"), str(music / "q2/test"), "--out", str(answers)]) == 0
    assert answers.read_bytes() == (on_jax / "run.json").read_bytes()


@pytest.mark.slow
def test_an_export_by_another_process_is_told_as_json(trained, tmp_path, capfd, monkeypatch):
    """Standard output is one JSON document, also where a TensorFlow process of its own writes the model."""
    monkeypatch.setattr("tfmusic.commands.export.take_tensorflow", lambda: False)
    assert main(["export", str(trained), "--out", str(tmp_path / "export"), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["export"] == str(tmp_path / "export")
    assert (tmp_path / "export" / "saved_model.pb").is_file()


def test_reader_needs_no_tensorflow(records):
    """`records.reader.iterate` yields every segment where TensorFlow cannot be imported."""
    manifest = json.loads((records / "manifest.json").read_text(encoding="utf-8"))
    command = [sys.executable, "-c", _WITHOUT_TENSORFLOW, str(records)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert int(done.stdout) == manifest["splits"]["fold1"]["segments"]
