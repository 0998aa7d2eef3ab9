"""`predict` over tracks of which some cannot be read: the others are answered, nothing is said to be well."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

import tfmusic
from tfmusic.cli import main
from tfmusic.commands.arguments import fail_on_skipped
from tfmusic.core.files import locked
from tfmusic.core.pool import map_in_order
from tfmusic.datasets.files import FeatureFiles
from tfmusic.errors import DataError
from tfmusic.features.read import read_input
from tfmusic.inference.inputs import find_tracks
from tfmusic.inference.predict import PredictionFile, predict_tracks

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
    reasons = table.set_index("track_id").pop("status")
    assert reasons[["1", "3"]].str.contains("skipped: .*must be a complete").all()
    assert (reasons[list("0245")] == "ok").all()
    table = table.drop(columns=["path", "status"]).set_index("track_id")
    assert table.loc[["1", "3"]].isna().to_numpy().all()
    assert table.loc[list("0245")].notna().to_numpy().all()


def test_skipped_tracks_of_other_programs(trained, tracks, capsys):
    """--json lists them beside the answers, with the exit code."""
    assert main(["predict", str(trained), str(tracks / "some"), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [answer is None for answer in found["predictions"]] == [False, True, False, True, False, False]
    assert [one["track_id"] for one in found["skipped"]] == ["1", "3"]
    assert (found["predicted"], found["exit_code"]) == (4, 2)
    assert "2 of 6 tracks" in found["error"]


def test_a_few_of_many_reasons_are_printed(capsys):
    """Twenty skipped tracks are named, the others are counted."""
    with pytest.raises(DataError, match=r"300 of 1,000 tracks cannot be read and have no prediction"):
        fail_on_skipped([(str(n), "broken") for n in range(300)], 1000, lacks="prediction")
    said = capsys.readouterr().err.splitlines()
    assert (said[19], len(said)) == ("warning: skipped 19: broken", 21)
    assert "280 more; --json lists all" in said[20]


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


def test_two_writers_of_one_file(trained, tracks, tmp_path, capsys):
    """While one writes lines as it goes, another is refused in one line and the file stays as it is."""
    command = ["predict", str(trained), str(tracks / "good"), "--out", str(tmp_path / "a.csv")]
    with locked(tmp_path / "a.csv"):
        assert main(command) == 2
        assert "a.csv: another process is writing it" in capsys.readouterr().err
        assert not (tmp_path / "a.csv").exists()
    assert main(command) == 0
    assert [path.name for path in tmp_path.iterdir() if "a.csv" in path.name] == ["a.csv"]


def test_names_of_files_that_are_no_text(trained, tracks, tmp_path):
    """Files whose names are no UTF-8, a formula or two lines are answered under names that can be written."""
    good, odd = next((tracks / "good").iterdir()), tmp_path / "odd"
    odd.mkdir()
    names = (b"\xffa.npy", b"=1+1.npy", b"two\nlines.npy")
    for name in names:
        (odd / os.fsdecode(name)).write_bytes(good.read_bytes())
    code, table = answers(trained, odd, tmp_path / "a.csv")
    assert code == 0
    assert table["track_id"].tolist() == ["\\xffa", "'=1+1", "two\\nlines"]


def ids(*inputs):
    return [track.track_id for track in find_tracks(map(Path, inputs))]


def test_the_files_of_a_folder_are_those_of_a_build(tmp_path, capsys, monkeypatch):
    """Loose files, folders, links to folders, suffixes in capitals: all are found once; what is left out is counted."""
    music, far = tmp_path / "music", tmp_path / "far"
    for name in (
        "intro.wav",
        "a/10.mp3",
        "a/9.flac",
        "a/S.NPY",
        ".trash/old.wav",
        "a/._9.flac",
        "a/cover.JPG",
        "b/list",
    ):
        (music / name).parent.mkdir(parents=True, exist_ok=True)
        (music / name).write_bytes(name.encode())
    far.mkdir()
    (far / "x.OGG").write_bytes(b"far")
    (music / "0link").symlink_to(far)
    (music / "a" / "up").symlink_to(music)
    (music / "0a").symlink_to(music / "a")
    (music / "gone.wav").symlink_to(far / "nothing")
    monkeypatch.chdir(tmp_path)
    assert ids("music") == ["gone", "intro", "0link-x", "a-9", "a-S", "a-10"]
    said = capsys.readouterr().err
    assert "music: 2 files are neither audio nor .npy: left out (1 .jpg, 1 without suffix)" in said
    assert "2 audio or .npy files are hidden: left out" in said
    assert sorted(FeatureFiles.below(music).named) == ["0link/x", "a/10", "a/9", "a/S", "gone", "intro"]


def test_no_two_files_share_an_id(tmp_path, monkeypatch):
    """Files get a suffix, their path or a hash until ids differ; a file that is given twice is named."""
    for name in ("a/1.wav", "a/1.flac", "b/1.wav", "b-1.wav", "c/2.wav", "x/d/1.wav", "x-d/1.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    assert ids("a/1.wav", "a/1.flac", "c/2.wav") == ["1.wav", "1.flac", "2"]
    assert ids("a") == ["1.flac", "1.wav"]
    assert ids("a/1.wav", "b/1.wav") == ["a-1.wav", "b-1.wav"]
    same = ids("x/d/1.wav", "x-d/1.wav")
    assert [name[:9] for name in same] == ["x-d-1.wav"] * 2
    assert len({*same, *ids("x/d/1.wav", "x-d/1.wav", "b/1.wav")}) == 3
    assert len(set(ids("."))) == 7
    with pytest.raises(DataError, match=r"a/1.wav: is given twice; ids must be unique"):
        ids("a/1.wav", "./a/../a")


def test_predictions_name_their_files(trained, tracks, tmp_path, capsys):
    """Every row has the path that was given beside the id; with --json too."""
    code, table = answers(trained, tracks / "good", tmp_path / "a.csv")
    assert (code, list(table)[:3]) == (0, ["track_id", "path", "prediction"])
    assert table["path"].tolist() == [str(tracks / "good" / f"{name}.npy") for name in "0245"]
    capsys.readouterr()
    assert main(["predict", str(trained), str(tracks / "good" / "0.npy"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["paths"] == [str(tracks / "good" / "0.npy")]


@pytest.fixture
def many(tracks):
    """A folder of 200 tracks of which two are damaged."""
    folder, good = tracks / "many", sorted((tracks / "good").iterdir())
    folder.mkdir()
    for n in range(200):
        (folder / f"{n}.npy").symlink_to(good[n % 4] if n % 100 != 50 else tracks / "some" / BAD[0])
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_interrupted_predictions_go_on(trained, many, tmp_path, capsys, monkeypatch, suffix):
    """Every line is there when its track is done; --resume adds the others, and the file is that of one run."""
    whole, part = tmp_path / f"whole{suffix}", tmp_path / f"part{suffix}"
    assert main(["predict", str(trained), str(many), "--out", str(whole)]) == 2
    assert "2 of 200 tracks cannot be read" in capsys.readouterr().err
    lines = whole.read_text().splitlines()
    assert len(lines) == 200 + (suffix == ".csv")
    assert [row for row in range(200) if "must be a complete" in lines[row - 200]] == [50, 150]
    rows = iter(predict_tracks(trained, find_tracks([many]), lambda: None, file=PredictionFile(part)))
    for n in range(1, 73):
        next(rows)
        assert part.read_text().splitlines() == lines[: n + (suffix == ".csv")]
    rows.close()
    with part.open("a") as file:
        file.write(lines[-1][:9])  # a line that was cut off
    read = []
    monkeypatch.setattr("tfmusic.inference.predict.read_input", lambda *a: read.append(a[0].stem) or read_input(*a))
    command = ["predict", str(trained), str(many), "--out", str(part)]
    assert main(command) == 2
    assert f"{part}: exists already" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 2
    shown = capsys.readouterr()
    assert f"198 predictions: {part}, 72 earlier" in shown.out
    assert "2 of 200 tracks cannot be read" in shown.err
    assert read == [str(n) for n in range(72, 200)]
    assert part.read_bytes() == whole.read_bytes()
    assert main([*command, "--resume"]) == 2  # nothing is left to do, and the bad ones are still bad
    assert part.read_bytes() == whole.read_bytes()


def test_ctrl_c_says_how_to_go_on(trained, many, tmp_path, capsys, monkeypatch):
    """The lines that are done stay, the exit code is 130, and a warning names --resume."""

    def read(path, *more):
        if path.stem == "100":
            raise KeyboardInterrupt
        return read_input(path, *more)

    monkeypatch.setattr("tfmusic.inference.predict.read_input", read)
    out = tmp_path / "a.csv"
    assert main(["predict", str(trained), str(many), "--out", str(out)]) == 130
    assert f"{out}: the same command with --resume goes on" in capsys.readouterr().err
    assert 50 < len(out.read_text().splitlines()) <= 101


def test_workers_give_the_same_lines(trained, many, tmp_path):
    """Two processes read, and the file is that of one, bad tracks included."""
    outs = [tmp_path / f"{n}.jsonl" for n in (1, 2)]
    for n, out in enumerate(outs, 1):
        assert main(["predict", str(trained), str(many), "--out", str(out), "--workers", str(n)]) == 2
    assert outs[0].read_bytes() == outs[1].read_bytes()
    rows = [json.loads(line) for line in outs[0].read_text().splitlines()]
    assert list(rows[0]) == ["track_id", "path", "prediction", "scores", "status"]
    assert (rows[0]["track_id"], rows[0]["path"], rows[0]["status"]) == ("0", str(many / "0.npy"), "ok")
    assert (rows[50]["prediction"], rows[50]["scores"]) == (None, None)
    assert rows[50]["status"].startswith(f"skipped: {many / '50.npy'}: ")


def test_results_come_in_order_and_few_are_ahead():
    """Workers take a few arguments ahead of the result that is wanted, not all that there are."""
    taken = []
    results = map_in_order(str, (taken.append(n) or n for n in range(50)), workers=2)
    assert next(results) == "0"
    assert len(taken) <= 6
    assert list(results) == [str(n) for n in range(1, 50)]


def test_a_list_in_python_is_predicted_as_the_command_does(trained, tracks, capsys):
    """A bad file is None and a warning; where none can be read, or a single one cannot, that is the error."""
    model = tfmusic.load(trained)
    paths = [tracks / "some" / name for name in ("0.npy", BAD[0], "2.npy")]
    first, bad, last = model.predict(paths)
    assert (first.name, bad, last.name) == ("0.npy", None, "2.npy")
    assert f"warning: skipped {BAD[0]}: {paths[1]}: must be a complete" in capsys.readouterr().err
    for wrong in (paths[1], [paths[1]]):
        with pytest.raises(tfmusic.TfmusicError, match="must be a complete"):
            model.predict(wrong)
    assert model.predict([]) == []


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("a.json", None, [], "--resume is for --out FILE.csv or FILE.jsonl"),
        ("a.csv", None, ["--overwrite"], "--resume is for --out FILE.csv or FILE.jsonl, without --overwrite"),
        ("a.csv", "my notes", [], "a.csv: --resume goes on with a file of predict"),
        ("a.csv", "track_id,path,prediction,score:x,status\n", [], "Received: track_id,path,prediction,score:x"),
        ("a.jsonl", "[1]\n", [], "a.jsonl: --resume goes on with a file of predict"),
        ("a.jsonl", '{"track_id": "0", "path": "0", "scores": {"x": 1}, "status": "ok"}\n', [], "the labels x"),
        (
            "a.jsonl",
            '{"track_id": "0", "path": "d/0.npy", "scores": null, "status": "skipped: x"}\n',
            [],
            "d/0.npy as 0, which",
        ),
    ],
)
def test_what_resume_refuses(trained, tracks, tmp_path, capsys, name, content, arguments, message):
    """Files of something else, of other labels or of other tracks stay as they are."""
    out = tmp_path / name
    if content is not None:
        out.write_text(content)
    command = ["predict", str(trained), str(tracks / "good"), "--out", str(out), "--resume", *arguments]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert out.exists() == (content is not None)
    assert content is None or out.read_text() == content


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


def test_matrices_and_their_score(trained, music, tmp_path, capsys):
    """.npy has the scores of the .csv and which tags they choose, NaN for a bad file; `score` takes the table and adds
    areas, those of scikit-learn."""
    test, labels = music / "q2" / "test", music / "answers" / "q2.json"
    out, table = tmp_path / "x.npy", tmp_path / "x.csv"
    assert main(["predict", str(trained), str(test), "--out", str(out)]) == 0
    assert main(["predict", str(trained), str(test), "--out", str(table)]) == 0
    rows = pd.read_csv(table)
    names = [name for name in rows.columns if name.startswith("score:")]
    np.testing.assert_allclose(np.load(out), rows[names], atol=1e-6)
    decisions = np.load(tmp_path / "x.decisions.npy")
    chosen = [[name.removeprefix("score:") for name, one in zip(names, row, strict=True) if one] for row in decisions]
    assert chosen == [json.loads(cell) for cell in rows["prediction"]]
    assert main(["predict", str(trained), str(test), "--out", str(out)]) == 2  # exists
    capsys.readouterr()
    assert main(["--json", "score", "q2", str(table), str(labels)]) == 0
    found = json.loads(capsys.readouterr().out)
    true = json.loads(labels.read_text(encoding="utf-8"))
    targets = np.array([[name.removeprefix("score:") in tags for name in names] for tags in true])
    known = targets.any(0) & ~targets.all(0)
    wanted = sk.roc_auc_score(targets[:, known], rows[names].to_numpy()[:, known])
    assert found["areas"]["ROC-AUC"][0] == pytest.approx(wanted, abs=1e-9)
    (tmp_path / "bad.npy").write_bytes(b"no spectrogram")
    good = next(test.rglob("*.npy"))
    both = [str(tmp_path / "bad.npy"), str(good)]
    assert main(["predict", str(trained), *both, "--out", str(tmp_path / "y.npy")]) == 2
    scores, decided = np.load(tmp_path / "y.npy"), np.load(tmp_path / "y.decisions.npy")
    assert np.isnan(scores[0]).all()
    assert not decided[0].any()
    assert np.isfinite(scores[1]).all()


def test_csv_for_excel(trained, tracks, tmp_path, capsys):
    """--excel puts the byte order mark before the same table, once, also when it is resumed."""
    plain, marked = tmp_path / "plain.csv", tmp_path / "marked.csv"
    command = ["predict", str(trained), str(tmp_path / "good"), "--out"]
    assert main([*command, str(plain)]) == 0
    assert main([*command[:2], str(tmp_path / "good" / "0.npy"), "--out", str(marked), "--excel"]) == 0
    assert main([*command, str(marked), "--excel", "--resume"]) == 0
    assert marked.read_bytes() == b"\xef\xbb\xbf" + plain.read_bytes()
    assert main([*command, str(tmp_path / "p.json"), "--excel"]) == 2
    assert "--excel is for --out FILE.csv" in capsys.readouterr().err
