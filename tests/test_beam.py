"""Records by Apache Beam: the bytes of the local pool, and its behaviour when a track is broken."""

import importlib.util

import pytest

from tfmusic.cli import main
from tfmusic.errors import DataError, UsageError
from tfmusic.records.build.beam import BeamRun, _own_error, _Write
from tfmusic.records.build.places import InFolder
from tfmusic.records.writer import ShardWriter

BUILD = ("build-records", "q2", "data.on_error=stop")
needs_beam = pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="wants the extra `beam`")
DIRECT = ("--runner", "DirectRunner", "--workers", "2")


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@needs_beam
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_beam_writes_the_same_bytes(music, tmp_path):
    """Two workers of the DirectRunner and one process of ours make the same folder; no note or half shard is left."""
    assert main([*BUILD, "--data", str(music), "--out", str(tmp_path / "a"), "--workers", "1"]) == 0
    assert main([*BUILD, "--data", str(music), "--out", str(tmp_path / "b"), *DIRECT]) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")


@needs_beam
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_beam_writes_to_a_store(music, tmp_path, capsys):
    """Two workers put the shards of a local build on a store, one by one; what has its note is not written again."""
    url = f"file://{tmp_path}/store"
    assert main([*BUILD, "--data", str(music), "--out", str(tmp_path / "a"), "--workers", "1"]) == 0
    assert main([*BUILD, "--data", str(music), "--out", url, *DIRECT]) == 0
    assert files(tmp_path / "a") == files(tmp_path / "store")


def test_what_a_lost_worker_leaves_is_cleared(music, records, tmp_path, monkeypatch):
    """Half shards and notes of a worker that went down are not in the finished folder."""
    write = InFolder.write

    def go_down_once(self, spec):
        for name in (f"{spec.path.name}.1.tmp", f"{spec.path.name}.done.json.1", f"{spec.path.name}.done.json.1.tmp"):
            spec.path.with_name(name).write_bytes(b"half")
        return write(self, spec)

    monkeypatch.setattr(InFolder, "write", go_down_once)
    assert main([*BUILD, "--data", str(music), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in records.iterdir()}


@needs_beam
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_broken_track_leaves_no_folder(music, tmp_path, capsys):
    """The file is named as it is without Beam, exit code 2, nothing half-written."""
    import shutil

    shutil.copytree(music / "q2", tmp_path / "data")
    broken = next((tmp_path / "data/train/train_data/mel_spectrogram").glob("*.npy"))
    raw = bytearray(broken.read_bytes())
    raw[-4:] = b"\x00\x00\xc0\x7f"  # a NaN in place of the last cell
    broken.write_bytes(raw)
    assert main([*BUILD, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), *DIRECT]) == 2
    assert broken.name in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_arguments_of_beam(monkeypatch, tmp_path, capsys):
    """Options come after ours and may replace them; without a runner, or without the package, one line says so."""
    assert BeamRun("DirectRunner").arguments(1) == ["--runner=DirectRunner", "--direct_num_workers=1"]
    run = BeamRun("FlinkRunner", "--flink_master=h:8081 --parallelism=8 --job_name='a b'")
    wanted = ["--runner=FlinkRunner", "--flink_master=h:8081", "--parallelism=8", "--job_name=a b"]
    assert run.arguments(4) == wanted
    arguments = [*BUILD, "--data", str(tmp_path)]
    assert main([*arguments, "--beam-options=--x=1"]) == 2
    assert "--beam-options are for --runner" in capsys.readouterr().err
    with monkeypatch.context() as installed:
        installed.setattr(importlib.util, "find_spec", lambda name: "it")
        assert main([*arguments, "--runner", "SparkRunner", "--beam-options=--job_name='a"]) == 2
    assert "--beam-options must be as on a command line: No closing quotation" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([*arguments, "--runner", "SparkRunner"]) == 2
    assert "pip install 'tfmusic[beam]'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [DataError, UsageError])
def test_an_error_of_a_worker_keeps_its_kind(kind):
    """Data that is broken empties a place on a store, a store that is out of reach must not."""

    def fail(spec):
        raise kind("q2/1.npy: must be finite")

    with pytest.raises(RuntimeError, match="must be finite") as raised:
        _Write(fail)(None)
    own = _own_error(RuntimeError(f"worker 3: {raised.value} [while running]"), BeamRun("FlinkRunner"))
    assert type(own) is kind
    assert str(own) == "q2/1.npy: must be finite"


def test_two_workers_write_one_shard(tmp_path):
    """Containers have the same process numbers: one that begins while another writes does not disturb it."""
    first, second = (ShardWriter(tmp_path / "shard", [], 0) for _ in range(2))
    with first, second:
        assert first.finish() == second.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]
