"""What goes wrong around a command: full disks, folders without rights, input that vanishes, two at once, clocks.

Always one line, exit code 2, nothing half-written, and what was good before still there.
"""

import errno
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import soundfile

from tests.conftest import fit_small
from tests.disks import fill, small_disk
from tests.kill import SMALL, hashes, run_result
from tfmusic.cli import main
from tfmusic.core.files import locked
from tfmusic.core.rundir import RunDir
from tfmusic.integrity import verify
from tfmusic.records.manifest import Manifest
from tfmusic.training.callbacks import StepWatch


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for n in range(6):
        soundfile.write(folder / f"{n}.wav", rng.normal(0, 0.1, 32000).astype(np.float32), 16000)
    return folder


@pytest.fixture(scope="module")
def runs(records, tmp_path_factory):
    """Two small runs on the same records."""
    folder = tmp_path_factory.mktemp("two-runs")
    for n in range(2):
        command = ["fit", "q2", "--records", str(records), "--out", str(folder / str(n)), *SMALL]
        assert main([*command, f"training.seed={n}", "training.epochs=1"]) == 0
    return folder


def commands(music, sounds, records, runs, out):
    """Every command that writes, by name, with `out` as what it writes."""
    mel = str(min((music / "q2/test/test_data/mel_spectrogram").glob("*.npy")))
    run = str(runs / "0")
    return {
        "synth": ["synth", "--out", str(out), "--tracks", "20"],
        "build-records": ["build-records", "q2", "--data", str(music), "--out", str(out), "--workers", "1"],
        "extract": ["extract", "q2", "--data", str(sounds), "--out", str(out), "--workers", "1"],
        "inspect": ["inspect", "q2", "--data", str(music), "--out", str(out), "--workers", "1"],
        "fit": ["fit", "q2", "--records", str(records), "--out", str(out), *SMALL],
        "ensemble": ["ensemble", run, str(runs / "1"), "--out", str(out), "--records", str(records)],
        "evaluate": ["evaluate", run, "--records", str(records), "--out", str(out)],
        "export": ["export", run, "--out", str(out)],
        "predict": ["predict", run, mel, "--out", f"{out}.json"],
        "embed": ["embed", run, mel, "--out", f"{out}.npz"],
        "explain": ["explain", run, mel, "--out", f"{out}.html"],
    }


COMMANDS = (
    "synth", "build-records", "extract", "inspect", "fit", "ensemble", "evaluate", "export", "predict", "embed",
    "explain",
)  # fmt: skip


def long(*names):
    """Marks parameters that `make torture` alone takes."""
    return [pytest.param(*(name if isinstance(name, tuple) else (name,)), marks=pytest.mark.torture) for name in names]


SOME = ["build-records", "extract", "fit", "export", "predict"]
SOME += long(*(name for name in COMMANDS if name not in SOME))


def refused(command, capsys, why):
    """Runs a command that must give one line with a reason."""
    capsys.readouterr()
    code = main(command)
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("tfmusic: ")]
    assert code == 2, error
    assert len(lines) == 1
    assert "Traceback" not in error
    assert why in lines[0]
    return lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_full_disk(music, sounds, records, runs, tmp_path, capsys, name):
    """No byte left from the start: the disk is named full, and it holds what it held."""
    with small_disk(tmp_path / "disk", "64k") as disk:
        (disk / "filler").touch()
        fill(disk)
        refused(commands(music, sounds, records, runs, disk / "out")[name], capsys, "No space left on device")
        left = [path for path in disk.rglob("*") if path.is_file() and path.name != "filler" and path.stat().st_size]
        assert left == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("build-records", "1m"), ("extract", "100k"), ("fit", "200k"), ("export", "300k"),
        *long(("fit", "60k"), ("ensemble", "80k"), ("inspect", "40k")),
    ],
)  # fmt: skip
def test_disk_that_fills_up(music, sounds, records, runs, tmp_path, capsys, name, size):
    """Room for a part: nothing half-written is left, and with room again the command ends well."""
    with small_disk(tmp_path / "disk", size) as disk:
        out = disk / "out"
        command = commands(music, sounds, records, runs, out)[name]
        refused(command, capsys, "No space left on device")
        if name == "fit":
            assert not out.exists() or not list(out.rglob("*.tmp*"))
        elif name == "extract":
            assert all(np.load(path).shape[0] == 1 for path in out.glob("*.npy"))
            assert not list(out.glob(".*"))
        else:
            assert list(disk.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = ["--resume"] if name == "fit" and (out / "backup/state.npz").is_file() else []
        assert main([*command, *again]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["build-records", "predict", *long("export", "ensemble")])
def test_full_disk_spares_what_was_good(music, sounds, records, runs, tmp_path, capsys, name):
    """What stands there is replaced when the new one is whole, not before."""
    with small_disk(tmp_path / "disk", "64m") as disk:
        out = disk / "out"
        command = commands(music, sounds, records, runs, out)[name]
        assert main(command) == 0
        before = hashes(disk)
        fill(disk)
        refused([*command, "--overwrite"], capsys, "No space left on device")
        (disk / "filler").unlink()
        assert hashes(disk) == before


@contextmanager
def public_folder(*inputs):
    """Yields a folder that everybody may enter, with copies of the inputs, in which nobody may write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for source in inputs:
            shutil.copytree(source, folder / source.name)
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield folder


@contextmanager
def without_rights():
    """Runs as the user nobody: modes mean nothing to root."""
    if os.geteuid() != 0:
        yield
        return
    with tempfile.TemporaryDirectory() as name, patch.object(tempfile, "tempdir", name):
        Path(name).chmod(0o777)  # whoever runs the tests may have a TMPDIR of their own
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_folder_without_rights(music, sounds, records, runs, capsys, name):
    """A folder that may not be written is named, and nothing is written elsewhere."""
    with public_folder(music, sounds, records, runs) as folder:
        inputs = [folder / one.name for one in (music, sounds, records, runs)]
        command = commands(*inputs, folder / "out")[name]
        folder.chmod(0o555)
        before = hashes(folder)
        with without_rights():
            line = refused(command, capsys, "Permission denied")
        assert str(folder) in line
        assert hashes(folder) == before


@pytest.mark.torture
def test_read_only_disk(music, sounds, records, runs, tmp_path, capsys):
    """A file system that is read-only is named so by every command that writes."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for command in commands(music, sounds, records, runs, disk / "out").values():
            refused(command, capsys, "Read-only file system")


@pytest.mark.parametrize(
    ("what", "command"),
    [
        ("records/manifest.json", ["fit", "q2", "--records", "{records}", "--out", "{out}", *SMALL]),
        ("records/tracks.csv", ["fit", "q2", "--records", "{records}", "--out", "{out}", *SMALL]),
        ("run/checkpoints/best.keras", ["export", "{run}", "--out", "{out}"]),
        ("run/contract.json", ["export", "{run}", "--out", "{out}"]),
        ("run/calibration.json", ["evaluate", "{run}", "--records", "{records}"]),
        ("run/config.yaml", ["evaluate", "{run}", "--records", "{records}"]),
    ],
)
def test_input_without_rights(records, trained, tmp_path_factory, capsys, what, command):
    """An input that may not be read is named."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(records, folder / "records")
        shutil.copytree(trained, folder / "run")
        (folder / what).chmod(0)
        places = {"records": folder / "records", "run": folder / "run", "out": folder / "free" / "out"}
        (folder / "free").mkdir()
        (folder / "free").chmod(0o777)
        with without_rights():
            line = refused([word.format(**places) for word in command], capsys, "Permission denied")
        assert what in line


def test_tracks_that_vanish_during_a_build(music, tmp_path, capsys, monkeypatch):
    """A file that was there for the plan and is gone when it is read stops the build and is named."""
    from tfmusic.records.build import build

    shutil.copytree(music / "q2", tmp_path / "music" / "q2")
    path = next((tmp_path / "music/q2/train/train_data/mel_spectrogram").glob("*.npy"))
    make_plan = build.make_plan

    def make_plan_and_lose(*arguments):
        plan = make_plan(*arguments)
        path.unlink()
        return plan

    monkeypatch.setattr(build, "make_plan", make_plan_and_lose)
    command = ["build-records", "q2", "--data", str(tmp_path / "music"), "--out", str(tmp_path / "out/q2")]
    assert str(path) in refused([*command, "--workers", "1"], capsys, "o such file")
    assert list((tmp_path / "out").iterdir()) == []


def test_track_that_shrinks_while_it_is_read(tmp_path):
    """A spectrogram that is cut off after its header was read is refused; a mapped file would end the process."""
    from tfmusic.errors import DataError
    from tfmusic.features import npy

    path = tmp_path / "x.npy"
    np.save(path, np.ones((1, 4, 100_000), np.float32))
    read_header = npy._read_header

    def read_and_cut(file):
        found = read_header(file)
        os.truncate(path, 4096)
        return found

    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match="changed while it was read"):
        patch.setattr(npy, "_read_header", read_and_cut)
        npy.read_mel(path, 4)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["gone", *long("flipped", "cut")])
def test_shard_that_goes_bad_during_training(records, tmp_path, capsys, monkeypatch, how):
    """A shard that cannot be read in the middle of an epoch is named; finished epochs are kept."""
    shutil.copytree(records, tmp_path / "records")
    shard = Manifest.read(tmp_path / "records").shard_paths("fold2")[0]
    step_end = StepWatch.on_train_batch_end

    def spoil(self, batch, logs=None):
        step_end(self, batch, logs)
        if self.epoch == 1 and batch == 0 and shard.exists():
            data = bytearray(shard.read_bytes())
            data[len(data) // 2] ^= 1
            shard.unlink()
            if how != "gone":
                shard.write_bytes(data if how == "flipped" else data[: len(data) // 2])

    monkeypatch.setattr(StepWatch, "on_train_batch_end", spoil)
    run = tmp_path / "run"
    command = ["fit", "q2", "--records", str(tmp_path / "records"), "--out", str(run), *SMALL]
    assert shard.name in refused(command, capsys, str(shard.parent))
    assert RunDir(run).can_resume
    assert not list(run.rglob("*.tmp*"))
    assert not RunDir(run).calibration.exists()


def test_paths_that_time_out(music, tmp_path, capsys, monkeypatch):
    """A network path that gives up while it is read: the file is named with the reason of the system."""
    opened = Path.open
    slow = next((music / "q2/train/train_data/mel_spectrogram").glob("*.npy"))

    def open_or_time_out(self, *arguments, **options):
        if self == slow:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), str(self))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_or_time_out)
    command = ["build-records", "q2", "--data", str(music), "--out", str(tmp_path / "q2"), "--workers", "1"]
    assert str(slow) in refused(command, capsys, "Connection timed out")
    assert list(tmp_path.iterdir()) == []


def test_pipes_in_place_of_files(music, trained, tmp_path, capsys):
    """A named pipe that nobody writes into is refused, and not waited for."""
    shutil.copytree(music / "q2", tmp_path / "music" / "q2")
    path = next((tmp_path / "music/q2/train/train_data/mel_spectrogram").glob("*.npy"))
    path.unlink()
    os.mkfifo(path)
    command = ["build-records", "q2", "--data", str(tmp_path / "music"), "--out", str(tmp_path / "out/q2")]
    assert str(path) in refused([*command, "--workers", "1"], capsys, "must be a regular file")
    labels = tmp_path / "music/q2/train/train_label"
    labels.unlink()
    os.mkfifo(labels)
    refused([*command, "--workers", "1"], capsys, "must be a file")
    os.mkfifo(tmp_path / "a.npy")
    refused(["predict", str(trained), str(tmp_path / "a.npy")], capsys, "a.npy")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fit", *long("ensemble", "export")])
def test_two_writers_of_one_folder(music, sounds, records, runs, tmp_path, capsys, name):
    """The second is refused while the first is at work, and disturbs nothing."""
    command = commands(music, sounds, records, runs, tmp_path / "out")[name]
    with locked(tmp_path / "out"):
        refused(command, capsys, "another process is writing it")
    assert list(tmp_path.iterdir()) == []
    assert main(command) == 0
    assert not verify(tmp_path / "out").faults
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.torture
def test_clock_that_goes_back(music, sounds, records, tmp_path, monkeypatch):
    """Records, spectrograms and training are the same under a clock that runs backwards and files of the future."""
    now = [time.time()]

    def backwards():
        now[0] -= 3600.0
        return now[0]

    shutil.copytree(sounds, tmp_path / "sounds")
    for path in (tmp_path / "sounds").iterdir():
        os.utime(path, (now[0] + 1e6, now[0] + 1e6))
    plain = ["fit", "q2", "--records", str(records), *SMALL, "training.epochs=2"]
    assert main([*plain, "--out", str(tmp_path / "run0")]) == 0
    monkeypatch.setattr(time, "time", backwards)
    assert main(["build-records", "q2", "--data", str(music), "--out", str(tmp_path / "q2"), "--workers", "1"]) == 0
    assert hashes(tmp_path / "q2") == hashes(records)
    extract = ["extract", "q2", "--data", str(tmp_path / "sounds"), "--out", str(tmp_path / "mels"), "--workers", "1"]
    assert main(extract) == 0
    before = hashes(tmp_path / "mels")
    assert main(extract) == 0
    assert hashes(tmp_path / "mels") == before
    assert main([*plain, "--out", str(tmp_path / "run1")]) == 0
    assert run_result(tmp_path / "run0") == run_result(tmp_path / "run1")


@pytest.mark.slow
def test_nan_names_step_and_tracks(records, tmp_path, capsys):
    """A loss that is no number stops training with epoch, step and the tracks of that batch."""
    switches = ("training.learning_rate=1e30", "training.optimizer=sgd")
    assert fit_small("q2", records, tmp_path / "run", *switches) == 2
    line = capsys.readouterr().err
    named = line.rpartition("the batch held tracks ")[2].strip()
    known = set(Manifest.read(records).track_ids([f"fold{k}" for k in range(1, 5)]))
    tracks = named.split(" and ")[0].split(", ")
    assert 0 < len(tracks) <= 8
    assert set(tracks) <= known
    assert not (tmp_path / "run").exists()
