"""Building records: same bytes always, nothing half-written, everything counted."""

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tfmusic.cli import main
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import iterate_tracks


def build(music, out, *more):
    return main(["build-records", "q2", "--data", str(music), "--out", str(out), *more])


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name != "q2"]


def mel_path(music, n):
    table = json.loads((music / "q2" / "train" / "train_label").read_text(encoding="utf-8"))
    return music / "q2/train/train_data/mel_spectrogram" / f"{table['track_index'][str(n)]}.npy"


@pytest.fixture
def damaged(music, tmp_path):
    """A copy of the made-up music that a test may damage."""
    shutil.copytree(music / "q2", tmp_path / "music" / "q2")
    return tmp_path / "music"


@pytest.mark.slow
def test_workers_do_not_change_the_bytes(music, records, tmp_path):
    """One worker or three: every file of the folder is the same."""
    assert build(music, tmp_path / "q2", "--workers", "3") == 0
    assert contents(tmp_path / "q2") == contents(records)
    assert leftovers(tmp_path) == []


def test_summary_names_what_was_built(music, tmp_path, capsys):
    """The table shows splits, tracks, hours; the lines below bytes, clipped and skipped."""
    assert build(music, tmp_path / "q2", "--num-shards", "2", "--workers", "1") == 0
    out = capsys.readouterr().out
    assert "fold4" in out
    assert "codes at the ends of the scale db" in out
    assert "0 tracks skipped" in out
    names = [path.name for path in Manifest.read(tmp_path).shard_paths("fold0")]
    assert names == ["q2-fold0.tfrecord-00000-of-00002", "q2-fold0.tfrecord-00001-of-00002"]


def test_unknown_artists_are_warned_of(damaged, tmp_path, capsys):
    """Without metadata the promise about artists cannot be kept, and the build says so."""
    shutil.rmtree(damaged / "q2/train/train_data/meta")
    assert build(damaged, tmp_path / "out", "--workers", "1") == 0
    assert "tracks of one artist may stand in several folds" in capsys.readouterr().err


def test_other_storage_types_and_scales(music, tmp_path):
    """float16 and float32 cells, and the logarithms of AI Rush, come back as scaled values."""
    out = tmp_path / "q2"
    assert build(music, out, "--workers", "1", "record.dtype=float16", "record.scale=log10_1p10") == 0
    manifest = Manifest.read(out)
    track = next(iterate_tracks(manifest, "fold0"))
    mel = np.load(music / "q2/train/train_data/mel_spectrogram" / f"{track.track_id}.npy")[0]
    expected = np.clip(np.log10(1 + 10 * mel), 0, manifest.contract.scale.high).T
    assert track.codes.dtype == np.float16
    np.testing.assert_allclose(track.codes, expected, atol=4e-3)


def test_existing_records_are_kept_unless_told(music, records, tmp_path, capsys):
    """Without --overwrite an existing folder is an error and stays; with it, records are replaced."""
    out = tmp_path / "q2"
    shutil.copytree(records, out)
    (out / "mine").write_text("old")
    assert build(music, out) == 2
    assert "exists already. Pass --overwrite" in capsys.readouterr().err
    assert (out / "mine").read_text() == "old"
    assert build(music, out, "--overwrite", "--workers", "1") == 0
    assert contents(out) == contents(records)
    assert leftovers(tmp_path) == []


def test_overwrite_spares_what_is_not_records(damaged, tmp_path, capsys):
    """--overwrite never replaces a folder that is no records folder, such as the raw data."""
    before = sorted(path for path in damaged.rglob("*"))
    assert build(damaged, damaged / "q2", "--overwrite") == 2
    assert "--overwrite replaces only records" in capsys.readouterr().err
    assert sorted(path for path in damaged.rglob("*")) == before


def test_written_deal_has_no_leak(records):
    """In tracks.csv no artist, album or track stands in two folds."""
    fold_of = {}
    with (records / "tracks.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        album = [("album", row["album"])] if row["album"] else []
        for key in [("track", row["track_id"]), *(("artist", a) for a in json.loads(row["artists"])), *album]:
            assert fold_of.setdefault(key, row["split"]) == row["split"], key
    assert len(fold_of) > len(rows) + 5
    assert {row["split"] for row in rows} == {f"fold{k}" for k in range(5)}


def test_records_for_a_given_contract(music, records, tmp_path, capsys):
    """`--contract` takes labels and scale range from elsewhere; a label that is not among them is named."""
    other = tmp_path / "other"
    assert main(["synth", "--out", str(other), "--tracks", "20", "--seed", "5"]) == 0
    assert build(other, tmp_path / "free", "--workers", "1") == 0
    theirs, free = Manifest.read(records).contract, Manifest.read(tmp_path / "free").contract
    assert theirs.difference(free) is not None
    capsys.readouterr()
    assert build(other, tmp_path / "bound", "--contract", str(records), "--workers", "1") == 2
    assert "labels must be some of the task's" in capsys.readouterr().err
    given = ("--contract", str(records), "--workers", "1", "record.scale=log10_1p10", "record.dtype=float32")
    assert build(music, tmp_path / "again", *given) == 0
    assert contents(tmp_path / "again") == contents(records)


def make_nan(path):
    np.save(path, np.full((1, 128, 9), np.nan, np.float32))


def make_truncated(path):
    path.write_bytes(path.read_bytes()[:-7])


FAULTS = {
    "missing": (Path.unlink, "no such file"),
    "truncated": (make_truncated, "must be a complete .npy file"),
    "nan": (make_nan, "NaN values"),
    "empty": (lambda path: path.write_bytes(b""), "must be a complete .npy file"),
    "no frames": (lambda path: np.save(path, np.ones((1, 128, 0), "f4")), "at least one frame"),
    "bins": (lambda path: np.save(path, np.ones((1, 96, 9), "f4")), "shape must be [1, 128, n_frames]"),
    "infinite": (lambda path: np.save(path, np.full((1, 128, 9), np.inf, "f4")), "infinite values"),
    "negative": (lambda path: np.save(path, np.full((1, 128, 9), -1, "f4")), "negative values"),
    "axes": (lambda path: np.save(path, np.ones(128, "f4")), "Received: [128]"),
    "complex": (lambda path: np.save(path, np.ones((1, 128, 9), complex)), "dtype complex128"),
    "pickle": (lambda path: np.save(path, np.array([{}]), allow_pickle=True), "never unpickled"),
    "zip": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(99)), "does not begin like"),
    "integers": (lambda path: np.save(path, np.ones((1, 128, 9), int)), "dtype int64"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_faulty_track_stops_the_build(damaged, tmp_path, capsys, fault, workers):
    """One line that names the file, exit code 2, nothing left behind."""
    spoil, message = FAULTS[fault]
    path = mel_path(damaged, 3)
    spoil(path)
    out = tmp_path / "out" / "q2"
    assert build(damaged, out, "--workers", workers) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tfmusic: ")]
    assert len(err) == 1
    assert message in err[0]
    assert str(path) in err[0]
    assert list(out.parent.iterdir()) == []


def test_faulty_tracks_are_skipped_counted_and_listed(damaged, tmp_path, capsys):
    """`data.on_error=skip`: every fault is listed with its reason, the other tracks are all there."""
    for n, (spoil, _) in enumerate(FAULTS.values()):
        spoil(mel_path(damaged, n))
    out = tmp_path / "out" / "q2"
    assert build(damaged, out, "data.on_error=skip", "data.folds=3", "--workers", "1") == 0
    shown, manifest = capsys.readouterr().out, Manifest.read(out)
    assert f"{len(FAULTS)} tracks skipped" in shown
    assert len(manifest.skipped) == len(FAULTS)
    for n, (_, message) in enumerate(FAULTS.values()):
        track_id = mel_path(damaged, n).stem
        reason = next(entry["reason"] for entry in manifest.skipped if entry["track_id"] == track_id)
        assert message in reason
        assert str(damaged) not in reason
        assert f"skipped {track_id}: " in shown
    stored = [track.track_id for split in manifest.splits for track in iterate_tracks(manifest, split)]
    listed = json.loads((damaged / "q2/train/train_label").read_text())["track_index"].values()
    assert len(stored) + len(FAULTS) == len(listed)
    assert sum(split.tracks for split in manifest.splits.values()) == len(stored)
    manifest.verify(list(manifest.splits))


def test_missing_data_folder(tmp_path, capsys):
    """A folder that is not there is named."""
    assert build(tmp_path / "nowhere", tmp_path / "q2") == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def start_build(music, out, workers="2"):
    command = [sys.executable, "-m", "tfmusic", "build-records", "q2", "--data", str(music), "--out", str(out)]
    return subprocess.Popen(
        [*command, "--workers", workers, "--num-shards", "40"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )


def hear_interrupts():
    """What runs in the background of a script inherits that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for_shards(out, count):
    partial = out.parent / f".{out.name}.partial"
    while not out.exists() and len(list(partial.glob("*.done.json"))) < count:
        time.sleep(0.001)


@pytest.fixture(scope="module")
def undisturbed(music, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "q2"
    assert build(music, out, "--num-shards", "40", "--workers", "1") == 0
    return contents(out)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_build_resumes_to_the_same_bytes(music, undisturbed, tmp_path, workers, capsys):
    """Killed with -9 in the middle and run again: it goes on from the finished shards to the same bytes."""
    out = tmp_path / "q2"
    with start_build(music, out, workers) as process:
        wait_for_shards(out, 3)
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    time.sleep(0.5)  # the workers follow their parent
    assert build(music, out, "--num-shards", "40", "--workers", workers) == 0
    assert "went on from" in capsys.readouterr().out
    assert contents(out) == undisturbed
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_interrupted_build_exits_130_and_resumes(music, undisturbed, tmp_path, capsys):
    """Ctrl-C: exit code 130, finished shards stay, no temporary file, the next build goes on."""
    out = tmp_path / "q2"
    for _ in range(12):  # on a busy machine a build may end before the signal is sent
        with start_build(music, out) as process:
            wait_for_shards(out, 1)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: parent and workers
            error = process.stderr.read().decode()
        if process.returncode:
            break
        shutil.rmtree(out)
    assert process.returncode == 130
    assert error.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in error
    assert list((tmp_path / ".q2.partial").glob("*.tmp")) == []
    assert build(music, out, "--num-shards", "40", "--workers", "1") == 0
    assert "went on from" in capsys.readouterr().out
    assert contents(out) == undisturbed


def test_changed_input_is_not_resumed(damaged, tmp_path, capsys):
    """Finished shards of another plan are not trusted."""
    out = tmp_path / "out" / "q2"
    partial = out.parent / ".q2.partial"
    partial.mkdir(parents=True)
    (partial / "plan.sha256").write_text("of something else")
    (partial / "q2-fold0.tfrecord-00000-of-00004.done.json").write_text("{}")
    (partial / "q2-fold0.tfrecord-00001-of-00004.0f.tmp").write_text("x")
    assert build(damaged, out, "--workers", "1") == 0
    assert "went on from" not in capsys.readouterr().out
    assert leftovers(out.parent) == []


def test_two_builds_into_one_folder(music, tmp_path, capsys):
    """The second is refused while the first is at work, and disturbs nothing."""
    partial = tmp_path / ".q2.partial"
    partial.mkdir()
    (partial / "of the first").touch()
    with (tmp_path / ".q2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert build(music, tmp_path / "q2") == 2
    assert f"{tmp_path / 'q2'}: another process is writing it" in capsys.readouterr().err
    assert (partial / "of the first").exists()


@pytest.mark.slow
def test_full_disk(music, tmp_path, capsys):
    """No space left: one line, exit code 2, the space is given back."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        for workers in ("1", "2"):
            assert build(music, disk / "q2", "--workers", workers) == 2
            error = capsys.readouterr().err
            assert "No space left on device" in error
            assert "Traceback" not in error
            assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_killed_worker_is_explained_and_nothing_is_lost(music, undisturbed, tmp_path, capsys):
    """A worker that the system kills gives one line; the next build goes on."""
    out = tmp_path / "q2"
    with start_build(music, out) as process:
        workers = []
        while len(workers) < 2:  # found beforehand, so that the kill comes at once
            children = psutil.Process(process.pid).children()
            workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        wait_for_shards(out, 1)
        for worker in workers:
            worker.kill()
        error = process.stderr.read().decode()
    assert process.returncode == 2
    assert "a worker process was killed from outside" in error
    assert "Traceback" not in error
    assert build(music, out, "--num-shards", "40", "--workers", "1") == 0
    assert "went on from" in capsys.readouterr().out
    assert contents(out) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.15, 0.3, 0.45])
def test_interrupt_while_workers_start(music, tmp_path, delay_s):
    """Ctrl-C at any moment of the start: no trace of any process."""
    with start_build(music, tmp_path / "q2") as process:
        time.sleep(delay_s)
        os.killpg(process.pid, signal.SIGINT)
        error = process.stderr.read().decode()
    # Before the command line itself is up, Python's own trace is what Ctrl-C gives.
    assert process.returncode in (130, -signal.SIGINT, 0, 1)
    assert "spawn_main" not in error
    assert "concurrent" not in error


@pytest.mark.slow
def test_file_size_limit(music, tmp_path):
    """A limit of the system on file sizes, which every user can set: one line, exit code 2, nothing left."""
    out = tmp_path / "folder" / "q2"
    command = f"ulimit -f 100; exec {sys.executable} -m tfmusic build-records q2 --data {music} --out {out} --workers 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("File too large")
    assert "Traceback" not in done.stderr
    assert list(out.parent.iterdir()) == []


def test_dry_run_writes_nothing(music, tmp_path, capsys):
    """`--dry-run` reads the labels and says what would be written."""
    assert build(music, tmp_path / "q2", "--dry-run") == 0
    assert "dry run: would write" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def levels(folder, factors, n_frames=200):
    """Writes a spectrogram for each factor of its power, in two classes; returns the folder."""
    rng = np.random.default_rng(0)
    for i, factor in enumerate(factors):
        path = folder / ("a", "b")[i % 2] / f"{i}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, (rng.gamma(0.5, 1.0, (1, 128, n_frames)) * factor + 1e-3).astype(np.float32))
    return folder


@pytest.mark.parametrize("single_value", [False, True])
def test_one_loud_track_does_not_set_the_scale(tmp_path, capsys, single_value):
    """It is named, by the build and by inspect, and the others keep their codes."""
    data = levels(tmp_path / "data", [1.0] * 11 + ([1.0] if single_value else [2.0**30]))
    if single_value:
        mel = np.load(data / "b" / "11.npy")
        mel[0, 3, 5] = 1e9
        np.save(data / "b" / "11.npy", mel)
    out = tmp_path / "records"
    assert main(["build-records", "folder", "--data", str(data), "--out", str(out), "data.folds=2"]) == 0
    warning = capsys.readouterr().err
    assert "1 of 12 sampled tracks" in warning and "b-11" in warning
    manifest = Manifest.read(out)
    assert manifest.contract.scale.high < 30
    shares = {
        track.track_id: float((track.codes == 0).mean())
        for split in manifest.splits
        for track in iterate_tracks(manifest, split)
    }
    assert max(share for name, share in shares.items() if name != "b-11") < 0.01
    assert main(["inspect", "folder", "--data", str(data), "--workers", "1"]) == 0
    assert "too loud b-11" in capsys.readouterr().out


def test_records_of_little_more_than_the_ends_of_the_scale_are_refused(tmp_path, capsys):
    """Half of the tracks of another unit: the build stops, leaves nothing, and names the way out."""
    data = levels(tmp_path / "data", [1.0] * 6 + [1e-14] * 5)
    for path in list((data / "a").iterdir())[:1] + list(data.rglob("6.npy")):
        np.save(path, np.zeros((1, 128, 200), np.float32))
    for i in range(7, 11):
        np.save(next(data.rglob(f"{i}.npy")), np.zeros((1, 128, 200), np.float32))
    command = ["build-records", "folder", "--data", str(data), "--out", str(tmp_path / "records"), "data.folds=2"]
    assert main(command) == 2
    assert "record.max_clipped=1" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert main([*command, "record.max_clipped=1"]) == 0
    assert "of the codes are at the ends" in capsys.readouterr().err
