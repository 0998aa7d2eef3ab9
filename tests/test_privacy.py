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
from tfmusic.core.feature import Feature
from tfmusic.core.files import write_json
from tfmusic.core.rundir import RunDir
from tfmusic.errors import DataError
from tfmusic.features.npy import write_feature
from tfmusic.features.read import read_feature
from tfmusic.records.build.shard import short_reason

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
        "runs": ["runs", "--folder", str(place)],
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

    What they write to be passed on (reports, pages, cards, exports, records) holds no path, user or host; predictions
    name the files as they were named on the command line.
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
    files = [path for folder in written for path in folder.rglob("*") if path.is_file() and path.name != "answers.csv"]
    assert len(files) > 20
    for path in files:
        found = [secret for secret in secrets(place, records, music, tmp_path) if secret.encode() in path.read_bytes()]
        assert not found, path


@pytest.mark.parametrize("form", ["absolute", "relative"])
@pytest.mark.parametrize("text", ["another", "no feature"])
def test_reasons_of_skipped_tracks_name_no_folders(tmp_path, monkeypatch, form, text):
    """A feature.json above a track is named without the folders that lead to it, as the reason is stored in records."""
    made = Feature() if text == "no feature" else Feature(n_bins=40)
    place = tmp_path / "ann" / "x"
    place.mkdir(parents=True)
    np.save(place / "a.npy", np.ones((1, 128, 40), np.float32))
    write_feature(tmp_path / "ann", made, {})
    if text == "no feature":
        (tmp_path / "ann/feature.json").write_text('{"format": "tfmusic features 1", "feature": 7}')
    monkeypatch.chdir(tmp_path)
    path = place / "a.npy" if form == "absolute" else Path("ann/x/a.npy")
    with pytest.raises(DataError) as caught:
        read_feature(path, "a", Feature())
    reason = short_reason(caught.value, path)
    assert "feature.json" in reason
    assert not any(folder.name in reason for folder in (tmp_path, *tmp_path.parents[:-1]))


def secrets(*folders):
    """Returns what names this machine: folders, the home of the user, the host where its name is no short word."""
    home, host = str(Path.home()), platform.node()
    return {*map(str, folders), str(ROOT), home + "/"} | ({host} if len(host) > 6 else set())


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1:{}/x", "ftp:///127.0.0.1:{}/x", "simplecache::ftp://127.0.0.1:{}/x", "memory://x"]
)
@pytest.mark.parametrize("command", ["evaluate", "ensemble"])
def test_files_make_no_connection(trained, tmp_path, capsys, url, command):
    """A run whose records.json names a URL is refused, or read without it, and nobody is called."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        runs = [RunDir(shutil.copytree(trained, tmp_path / name)) for name in ("a", "b")]
        for run in runs:
            write_json(run.records, run.read_json(run.records) | {"folder": url.format(server.getsockname()[1])})
            run.seal()
        out = ["--out", str(tmp_path / "out")] if command != "evaluate" else []
        assert main([command, *(str(run.path) for run in runs[: 1 if command == "evaluate" else 2]), *out]) == 2
        assert "Traceback" not in capsys.readouterr().err
        with pytest.raises(TimeoutError):
            server.accept()


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
