"""`tfmusic runs`: state, score and differences of all runs of a folder, and their removal."""

import json
import shutil

import pytest

from tests.conftest import fit_small
from tfmusic.cli import main


@pytest.fixture
def runs(trained, records, tmp_path):
    """A folder of three runs: evaluated, not finished, damaged."""
    for name in ("done-1", "half-1", "broken-1"):
        shutil.copytree(trained, tmp_path / "runs" / "q2" / name)
    (tmp_path / "runs" / "q2" / "half-1" / "calibration.json").unlink()
    (tmp_path / "runs" / "q2" / "broken-1" / "config.yaml").write_text("task: [")
    assert main(["evaluate", str(tmp_path / "runs" / "q2" / "done-1")]) == 0
    return tmp_path / "runs"


def test_state_score_and_differences(runs, capsys):
    """Of every run: how far it is, its score with its interval, and the keys that differ from its task's config."""
    capsys.readouterr()
    assert main(["--json", "runs", "q2", "--folder", str(runs)]) == 0
    rows = {row["run"].rsplit("/", 1)[1]: row for row in json.loads(capsys.readouterr().out)["runs"]}
    report = json.loads((runs / "q2" / "done-1" / "evaluation" / "report.json").read_text())
    assert rows["done-1"]["state"] == "finished" and f"micro_f1 {report['value']:.3f} [" in rows["done-1"]["score"]
    changed = rows["done-1"]["differs from the config of its task in"]
    assert "model.name=cnn1d" in changed and "training.epochs=3" in changed and "record." not in changed
    assert rows["half-1"]["state"] == "unfinished: epoch 3 of 3" and rows["half-1"]["score"] == "-"
    assert rows["broken-1"]["state"].startswith("damaged") and "config.yaml" in rows["broken-1"]["state"]


def test_a_task_without_runs(runs, capsys):
    """One line names the folder and the task."""
    assert main(["runs", "q7", "--folder", str(runs)]) == 2
    assert str(runs) in (error := capsys.readouterr().err) and "q7" in error


def test_remove(runs, tmp_path, capsys):
    """Removes what is named, and nothing that is no run, a link, or in use."""
    assert main(["runs", "--remove", str(runs / "q2" / "half-1")]) == 0
    assert not (runs / "q2" / "half-1").exists() and (runs / "q2" / "done-1").exists()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.yaml").write_text("task: mine")
    (tmp_path / "link").symlink_to(runs / "q2" / "done-1")
    for path in (tmp_path / "own", tmp_path / "link", tmp_path / "none", runs):
        assert main(["runs", "--remove", str(path)]) == 2
        assert str(path) in capsys.readouterr().err
    assert (tmp_path / "own" / "config.yaml").exists() and (runs / "q2" / "done-1" / "config.yaml").exists()
    assert main(["runs", "--remove"]) == 2


@pytest.mark.slow
def test_a_cross_validation_can_be_removed(records, tmp_path):
    """Also one whose root holds no model of its own yet."""
    out = tmp_path / "runs" / "q2" / "all-1"
    assert fit_small("q2", records, out, "training.epochs=1", "training.fold=all") == 0
    (out / "contract.json").unlink()
    assert main(["runs", "--remove", str(out)]) == 0 and not out.exists()
