"""Nothing leaves the machine: no command opens a connection, and what is passed on names no folder of it."""

import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.kill import SMALL
from tfmusic.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
NAMES = ("connect", "connect_ex", "sendto", "bind")


@pytest.fixture
def no_network(monkeypatch):
    """Sockets that may not be used; asking for an address is refused as well."""

    def refuse(*arguments, **options):
        raise AssertionError(f"a command used the network: {arguments[1:]}")

    for name in NAMES:
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.fixture(scope="module")
def place(records, music, tmp_path_factory):
    """A folder with two runs and an export, evaluated, made in this very folder."""
    folder = tmp_path_factory.mktemp("privacy") / "secret-folder-of-ann"
    for n in range(2):
        command = ["fit", "q2", "--records", str(records), "--out", str(folder / f"run{n}"), *SMALL]
        assert main([*command, f"training.seed={n}", "training.epochs=1"]) == 0
    return folder


def commands(place, records, music, out):
    run, export = str(place / "run0"), str(place / "run0" / "export")
    mel = str(min((music / "q2/test/test_data/mel_spectrogram").glob("*.npy")))
    return {
        "synth": ["synth", "--out", str(out / "music"), "--tracks", "20"],
        "inspect": ["inspect", "q2", "--data", str(music), "--out", str(out / "look"), "--workers", "1"],
        "extract": ["extract", "q2", "--data", str(out / "sounds"), "--out", str(out / "mels"), "--workers", "1"],
        "build-records": ["build-records", "q2", "--data", str(music), "--out", str(out / "records"), "--workers", "1"],
        "fit": ["fit", "q2", "--records", str(records), "--out", str(out / "run"), *SMALL],
        "evaluate": ["evaluate", run, "--records", str(records)],
        "ensemble": ["ensemble", run, str(place / "run1"), "--out", str(out / "both"), "--records", str(records)],
        "report": ["report", run, "--out", str(out / "runs.html")],
        "export": ["export", run, "--overwrite"],
        "predict": ["predict", export, mel, "--out", str(out / "answers.csv")],
        "explain": ["explain", run, mel, "--out", str(out / "track.html")],
        "score": ["score", "q2", str(music / "answers/q2.json"), str(music / "answers/q2.json")],
        "embed": ["embed", run, mel, "--out", str(out / "e.npz")],
        "models": ["models", "q2", "model.width=4"],
        "verify": ["verify", run],
        "config": ["config", "show", "q2"],
        "weights": ["weights", "musicnn"],
    }


@pytest.mark.slow
def test_nothing_leaves_the_machine(place, records, music, tmp_path, no_network):
    """Every command but `serve`, and `weights --download`, ends without a connection, or an attempt at one.

    What they write to be passed on (reports, pages, predictions, cards, exports, records) holds no path, user or host.
    """
    (tmp_path / "sounds").mkdir()
    soundfile.write(tmp_path / "sounds" / "a.wav", np.zeros(16000, np.float32) + 0.1, 16000)
    known = commands(place, records, music, tmp_path)
    assert set(known) | {"serve"} == set(COMMANDS)
    for name, command in known.items():
        assert main(command) == (2 if name == "weights" else 0), name  # which says what --download would fetch
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(tmp_path / "both")
    written = [tmp_path, place / "run0/evaluation", place / "run0/export"]
    files = [path for folder in written for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        found = [secret for secret in secrets(place, records, music, tmp_path) if secret.encode() in path.read_bytes()]
        assert not found, path


def secrets(*folders):
    """Returns what names this machine: folders, the home of the user, the host where its name is no short word."""
    home, host = str(Path.home()), platform.node()
    return {*map(str, folders), str(ROOT), home + "/"} | ({host} if len(host) > 6 else set())


@pytest.mark.slow
def test_the_system_sees_no_connection(place, music, tmp_path):
    """The same for what is not Python: the system calls of a whole `predict` hold no address of the internet."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    mel = str(min((music / "q2/test/test_data/mel_spectrogram").glob("*.npy")))
    trace = ["strace", "-f", "-e", "trace=connect,sendto,sendmsg,listen", "-o", str(tmp_path / "calls")]
    done = subprocess.run(
        [*trace, sys.executable, "-m", "tfmusic", "predict", str(place / "run0"), mel], cwd=ROOT, capture_output=True
    )
    if b"ptrace" in done.stderr:
        pytest.skip("needs the right to trace")
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text()
    assert "AF_INET" not in calls
    assert "listen(" not in calls


@pytest.mark.slow
def test_models_say_where_they_were_trained_to_their_owner_alone(place):
    """A run folder may name the records it was trained on, so that `evaluate` finds them; the model itself does not."""
    holders = {
        path.relative_to(place / "run0").as_posix()
        for path in (place / "run0").rglob("*")
        if path.is_file() and b"pytest" in path.read_bytes()
    }
    assert holders <= {"records.json", "log.txt", "config.yaml"}
