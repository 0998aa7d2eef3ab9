"""Builds of many tracks: memory stays flat, the order is that of hashes, and a kill costs the shard at work alone."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tfmusic.records.format import order_key
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import iterate

ROOT = Path(__file__).parents[1]
FRAMES = 40
_BUILD = """
import resource, sys
from tfmusic.cli import main
code = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


def write_tracks(folder, n_tracks):
    """Writes small spectrograms of two classes."""
    cells = np.random.default_rng(0).gamma(1.0, 1.0, (1, 128, FRAMES + 64)).astype(np.float32)
    for number in range(n_tracks):
        path = folder / ("calm", "wild")[number % 2] / f"{number:05d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, cells[:, :, number % 64 : number % 64 + FRAMES + number % 8])


def command(data, out):
    small = ("record.segment_frames=16", "record.hop_frames=16", "input.frames=16", "input.hop_frames=16")
    arguments = ["build-records", "folder", "--data", str(data), "--out", str(out), "--workers", "1", *small]
    return [sys.executable, "-c", _BUILD, *arguments, "--num-shards", "8"]


def start(data, out, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command(data, out), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, **options)


def peak_of(data, out):
    process = start(data, out)
    said = process.communicate()[0]
    assert process.returncode == 0
    return int(said.split("peak ")[1])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tracks(tmp_path):
    """2,000 tracks take at most 1.1 times the memory of 200, and every segment stands at the place of its hash."""
    peaks = []
    for n_tracks in (200, 2000):
        write_tracks(tmp_path / str(n_tracks), n_tracks)
        peaks.append(peak_of(tmp_path / str(n_tracks), tmp_path / f"out-{n_tracks}"))
    assert peaks[1] <= 1.1 * peaks[0]
    manifest = Manifest.read(tmp_path / "out-2000")
    found = set()
    for split in manifest.splits:
        headers = [header for header, _ in iterate(manifest, split)]
        found |= {header.track_id for header in headers}
        begin = 0
        for shard in manifest.split(split).shards:
            keys = [order_key(0, header.track_id, header.start) for header in headers[begin : begin + shard.segments]]
            assert keys == sorted(keys)
            begin += shard.segments
    with (tmp_path / "out-2000" / "tracks.csv").open(newline="") as file:
        assert found == {row["track_id"] for row in csv.DictReader(file)}
    assert len(found) == 2000


@pytest.mark.slow
def test_a_killed_build_goes_on(tmp_path):
    """After kill -9 the next build keeps the finished shards and ends with the bytes of an undisturbed one."""
    write_tracks(tmp_path / "data", 400)
    peak_of(tmp_path / "data", tmp_path / "whole")
    process = start(tmp_path / "data", tmp_path / "out")
    partial = tmp_path / ".out.partial"
    while len(list(partial.glob("*.done.json"))) < 5:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out").exists()
    process = start(tmp_path / "data", tmp_path / "out")
    said = process.communicate()[0]
    assert process.returncode == 0
    assert "finished shards of an interrupted build" in said
    whole, resumed = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "out")
    )
    assert whole == resumed
