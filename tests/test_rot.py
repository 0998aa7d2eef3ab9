"""Bit rot: a byte that flips anywhere is found and named, or provably changes nothing."""

import json
import math
import random
import shutil

import numpy as np
import pytest

from tests import golden
from tests.kill import SMALL
from tfmusic.cli import main
from tfmusic.core.contract import Contract
from tfmusic.core.rundir import RunDir
from tfmusic.errors import RecordsError, RunError, TfmusicError
from tfmusic.inference.model_folder import load_contract
from tfmusic.inference.predictor import load_run
from tfmusic.integrity import verify
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import iterate_tracks

MEL = np.random.default_rng(0).random((1, 128, 200), np.float32)


@pytest.fixture(scope="module")
def small_run(records, tmp_path_factory):
    """A run that loads quickly, and its export."""
    run = tmp_path_factory.mktemp("rot") / "run"
    command = ["fit", "q2", "--records", str(records), "--out", str(run), *SMALL, "training.epochs=1"]
    assert main(command) == 0
    assert main(["export", str(run)]) == 0
    return run


SAMPLE_OR_ALL = pytest.mark.parametrize("every", [16, pytest.param(1, marks=pytest.mark.torture)])


def flips(path, every, seed=0):
    """Yields after every flip of a bit of every n-th byte, each at a random place of its n; puts the file right."""
    whole, rng = path.read_bytes(), random.Random(seed)
    for begin in range(0, len(whole), every):
        place = min(begin + rng.randrange(every), len(whole) - 1)
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        yield place
    path.write_bytes(whole)


def stored(folder):
    """Returns all that a records folder holds, for comparison."""
    manifest = Manifest.read(folder)
    manifest.verify(list(manifest.splits))
    tracks = [track for split in manifest.splits for track in iterate_tracks(manifest, split)]
    return manifest, [(track.row, track.track_id, track.label, track.codes.tobytes()) for track in tracks]


@SAMPLE_OR_ALL
@pytest.mark.parametrize("name", ["manifest.json", "tracks.csv", "shard"])
def test_every_byte_of_records(tmp_path, name, every):
    """Each byte of golden records in turn: refused with the file's name, or the same records are read."""
    folder = tmp_path / "records"
    shutil.copytree(golden.GOLDEN, folder)
    manifest, before = stored(folder)
    path = manifest.shard_paths("fold0")[0] if name == "shard" else folder / name
    refused = harmless = 0
    for place in flips(path, every):
        try:
            again = stored(folder)
        except RecordsError as error:
            assert path.name in str(error), (place, error)
            refused += 1
        else:
            assert again == (manifest, before), place
            harmless += 1
    assert refused + harmless == math.ceil(path.stat().st_size / every)
    assert harmless < 0.2 * refused  # spaces of JSON that turn into other spaces


@SAMPLE_OR_ALL
def test_shards_without_the_manifest_s_checksums(tmp_path, every):
    """The readers themselves find every flipped byte of a shard, by the checksum of its record."""
    folder = tmp_path / "records"
    shutil.copytree(golden.GOLDEN, folder)
    manifest = Manifest.read(folder)
    path = manifest.shard_paths("fold0")[0]
    for place in flips(path, every):
        with pytest.raises(RecordsError, match=path.name):
            list(iterate_tracks(manifest, "fold0"))
        assert place < path.stat().st_size


@pytest.mark.parametrize("name", [path.name for path in sorted(golden.GOLDEN.iterdir())])
def test_verify_names_the_file_of_records(tmp_path, name, capsys):
    """`verify` finds a flipped byte in any file of the folder, those for TFDS included."""
    folder = tmp_path / "records"
    shutil.copytree(golden.GOLDEN, folder)
    assert main(["verify", str(folder)]) == 0
    assert "whole" in capsys.readouterr().out
    path, rng = folder / name, random.Random(name)
    whole = path.read_bytes()
    for _ in range(5):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 4
        path.write_bytes(damaged)
        assert main(["verify", str(folder)]) == 2
        shown = capsys.readouterr()
        assert name in shown.out + shown.err
        assert "Traceback" not in shown.err


@pytest.mark.slow
@SAMPLE_OR_ALL
@pytest.mark.parametrize("name", ["contract.json", "calibration.json", "config.yaml", "records.json", "checksums.json"])
def test_every_byte_of_a_run(small_run, name, every):
    """Each byte of the small files of a run: refused with the file's name before the model is loaded, or harmless."""
    run = RunDir(small_run)
    before = Contract.load(run.contract), run.calibration.read_bytes()
    for place in flips(small_run / name, every):
        try:
            run.check()
        except RunError as error:
            assert name in str(error) or "checksums.json" in str(error), (place, error)
        else:
            assert name == "checksums.json"
            assert (Contract.load(run.contract), run.calibration.read_bytes()) == before


@pytest.mark.slow
@pytest.mark.parametrize("count", [60, pytest.param(6000, marks=pytest.mark.torture)])
def test_bytes_of_a_keras_file(small_run, tmp_path, count, record_property):
    """Bytes of a model, with checksums beside it and without: refused, or the same weights."""
    run = RunDir(small_run)
    path, sealed = run.checkpoint("best"), small_run / "checksums.json"
    before = load_run(run).model.get_weights()
    every = max(path.stat().st_size // count, 1)
    record_property("trials", count + count // 6)
    for _ in flips(path, every):
        with pytest.raises(RunError, match=r"best\.keras: damaged"):
            load_run(run)
    sealed.rename(tmp_path / "sealed")
    try:
        for place in flips(path, every * 6, seed=1):
            try:
                weights = load_run(run).model.get_weights()
            except TfmusicError as error:
                assert "best.keras" in str(error)
            else:
                assert all(np.array_equal(*pair) for pair in zip(weights, before, strict=True)), place
    finally:
        (tmp_path / "sealed").rename(sealed)


@pytest.mark.slow
@pytest.mark.parametrize("count", [40, pytest.param(6000, marks=pytest.mark.torture)])
@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index", "contract.json", "labels.txt"])
def test_bytes_of_an_export(small_run, name, count, record_property):
    """An export is compared with its checksums before TensorFlow reads any of it."""
    path = small_run / "export" / name
    trials = 0
    for _ in flips(path, max(path.stat().st_size // count, 1)):
        trials += 1
        with pytest.raises(RunError, match=rf"{path.name}: damaged"):
            load_contract(small_run / "export")
    record_property("trials", trials)
    assert not verify(small_run).faults


@pytest.mark.slow
def test_damaged_models_do_not_answer(small_run, music, tmp_path, capsys):
    """Every command that takes a model refuses a run with one changed byte of its contract."""
    shutil.copytree(small_run, tmp_path / "run")
    np.save(tmp_path / "a.npy", MEL)
    contract = tmp_path / "run" / "contract.json"
    contract.write_text(contract.read_text().replace('"n_fft": 1024', '"n_fft": 1026'))
    run, mel = str(tmp_path / "run"), str(tmp_path / "a.npy")
    out = str(tmp_path / "out")
    for command in (
        ["predict", run, mel], ["evaluate", run], ["export", run, "--out", out], ["serve", run], ["explain", run, mel],
        ["embed", run, mel, "--out", f"{out}.npz"], ["ensemble", run, str(small_run), "--out", out],
        ["build-records", "q2", "--data", str(music), "--out", out, "--contract", run],
    ):  # fmt: skip
        assert main(command) == 2
        assert "contract.json: damaged" in capsys.readouterr().err, command
        assert not (tmp_path / "out").exists()
    assert main(["verify", run, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "run"
    assert len(found["faults"]) == 1


@pytest.mark.slow
def test_older_folders_are_checked_as_far_as_possible(small_run, tmp_path, capsys):
    """Without checksums.json the files are read, and it is said; they still answer."""
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    for path in run.rglob("checksums.json"):
        path.unlink()
    assert main(["verify", str(run)]) == 0
    assert "has no checksums.json" in capsys.readouterr().out
    np.save(tmp_path / "a.npy", MEL)
    assert main(["predict", str(run), str(tmp_path / "a.npy")]) == 0
    (run / "checkpoints" / "last.keras").write_bytes(b"PK")
    (run / "export" / "labels.txt").write_text("other\n")
    assert main(["verify", str(run)]) == 2
    shown = capsys.readouterr().out
    assert "last.keras: must be a whole archive" in shown
    assert "labels.txt: must list the labels" in shown


def test_verify_refuses_what_is_none(tmp_path, capsys):
    """A folder of nothing known is a wrong argument."""
    assert main(["verify", str(tmp_path)]) == 2
    assert "must be a folder of records, a run or an export" in capsys.readouterr().err
