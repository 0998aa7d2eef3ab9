"""`predict` over tracks of which some cannot be read: the others are answered, nothing is said to be well."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tfmusic.cli import main

BAD = ("1.npy", "3.mp3")


@pytest.fixture
def tracks(tmp_path):
    """A folder of six tracks of which two are damaged, and one of its own with the same other four."""
    rng = np.random.default_rng(0)
    for n in range(6):
        if n not in (1, 3):
            mel = rng.random((1, 128, 90 + n), np.float32)
            for name in ("some", "good"):
                (tmp_path / name).mkdir(exist_ok=True)
                np.save(tmp_path / name / f"{n}.npy", mel)
    for name in BAD:
        (tmp_path / "some" / name).write_bytes(b"no music")
    return tmp_path


def answers(model, folder, out):
    """Returns exit code and what a file of answers holds."""
    code = main(["predict", str(model), str(folder), "--out", str(out)])
    return code, json.loads(out.read_text()) if out.suffix == ".json" else pd.read_csv(out, dtype=str)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "export"])
def test_bad_tracks_are_skipped(trained, tracks, tmp_path, capsys, kind):
    """Every other track has the answer that it has without them; the bad ones are listed, and the exit code is 2."""
    model = trained
    if kind == "export":
        model = tmp_path / "export"
        assert main(["export", str(trained), "--out", str(model)]) == 0
    code, good = answers(model, tracks / "good", tmp_path / "good.json")
    assert (code, len(good)) == (0, 4)
    capsys.readouterr()
    code, found = answers(model, tracks / "some", tmp_path / "some.json")
    assert code == 2
    assert found == [good[0], None, good[1], None, good[2], good[3]]
    shown = capsys.readouterr()
    assert "4 predictions: " in shown.out
    for name in BAD:
        assert f"warning: skipped {name[0]}: {tracks / 'some' / name}: must be a complete" in shown.err
    assert shown.err.splitlines()[-1].startswith("tfmusic: 2 of 6 tracks cannot be read and have no prediction")
    code, table = answers(model, tracks / "some", tmp_path / "some.csv")
    assert code == 2
    assert table["track_id"].tolist() == list("012345")
    assert table.set_index("track_id").loc[["1", "3"]].isna().to_numpy().all()
    assert table.set_index("track_id").loc[list("0245")].notna().to_numpy().all()


def test_skipped_tracks_of_other_programs(trained, tracks, capsys):
    """--json lists them beside the answers, with the exit code."""
    assert main(["predict", str(trained), str(tracks / "some"), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [answer is None for answer in found["predictions"]] == [False, True, False, True, False, False]
    assert [one["track_id"] for one in found["skipped"]] == ["1", "3"]
    assert (found["predicted"], found["exit_code"]) == (4, 2)
    assert "2 of 6 tracks" in found["error"]


def test_no_readable_track_at_all(trained, tracks, tmp_path, capsys):
    """One line names the first and counts the others; nothing is written."""
    bad, out = [str(tracks / "some" / name) for name in BAD], tmp_path / "a.json"
    assert main(["predict", str(trained), *bad, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tfmusic: {bad[0]}: must be a ")
    assert error.rstrip().endswith("(and 1 more)")
    assert main(["predict", str(trained), bad[1], "--out", str(out)]) == 2
    assert "more)" not in capsys.readouterr().err
    assert not out.exists()


def test_names_of_files_that_are_no_text(trained, tracks, tmp_path):
    """Files whose names are no UTF-8, a formula or two lines are answered under names that can be written."""
    good, odd = next((tracks / "good").iterdir()), tmp_path / "odd"
    odd.mkdir()
    names = (b"\xffa.npy", b"=1+1.npy", b"two\nlines.npy")
    for name in names:
        (odd / os.fsdecode(name)).write_bytes(good.read_bytes())
    code, table = answers(trained, odd, tmp_path / "a.csv")
    assert code == 0
    assert table["track_id"].tolist() == ["\\xffa", "'=1+1", "two\nlines"]


def test_an_onnx_export_is_predicted_without_tensorflow(tmp_path):
    """`predict` with an ONNX export imports neither TensorFlow nor Keras; its labels follow the loudest bins."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    from tfmusic.core.contract import Contract
    from tfmusic.core.feature import Feature
    from tfmusic.core.scale import Scale
    from tfmusic.scoring.track_scorer import TrackScorer, save_scorers

    export = tmp_path / "export"
    export.mkdir()
    half = np.repeat(np.eye(2, dtype=np.float32), 64, axis=0)  # the mean of the low bins, and of the high bins
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["codes"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats"], ["means"], axes=[1], keepdims=0),
            helper.make_node("MatMul", ["means", "half"], ["logits"]),
        ],
        "windows",
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, ["batch", 20, 128])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor("half", TensorProto.FLOAT, half.shape, half.ravel() / 64)],
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), export / "model.onnx")
    contract = Contract("t", "single", ("low", "high"), Feature(), Scale("db", -60.0, 30.0), "uint8", 20, 10)
    contract.save(export / "contract.json")
    save_scorers({"t": TrackScorer(kind="single")}, export / "calibration.json")
    power = np.full((1, 128, 50), 1e-3, np.float32)
    power[:, 64:] = 1.0
    np.save(tmp_path / "song.npy", power)
    code = (
        "import sys; from tfmusic.cli import main; code = main(sys.argv[1:]);"
        " print(code, *sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    arguments = ["predict", str(export), str(tmp_path / "song.npy")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ['["high"]', "0"], done.stderr
