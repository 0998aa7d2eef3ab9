"""Killed with -9 at random moments: a few of the trials that `make torture` makes by the hundred."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kill import COMMANDS, hashes
from tfmusic.folders import put_in_place

ROOT = Path(__file__).parents[1]
TRIALS = {"build-records": 6, "extract": 6, "export": 2, "fit": 2, "ensemble": 2}


@pytest.mark.slow
def test_killed_commands_end_as_undisturbed_ones():
    """What is visible after the kill is whole; run again, the result is that of a run that nothing disturbed."""
    assert set(TRIALS) == set(COMMANDS)
    trials = [f"{name}={count}" for name, count in TRIALS.items()]
    done = subprocess.run([sys.executable, "-m", "tests.kill", *trials], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line for line in done.stdout.splitlines() if "every result the undisturbed one" in line]
    assert len(lines) == len(TRIALS), done.stdout


def test_replaced_folders_are_never_missing(tmp_path):
    """While a folder is replaced over and over, a reader finds it every time, and always whole."""
    target, reader = tmp_path / "target", os.fork()
    if not reader:  # looks until the other has ended, and counts what it misses
        missed = 0
        while not (tmp_path / "end").exists():
            missed += (tmp_path / "begun").exists() and not (target / "file").exists()
        os._exit(min(missed, 1))
    for number in range(300):
        finished = tmp_path / f".{number}"
        finished.mkdir()
        (finished / "file").write_text(str(number))
        put_in_place(finished, target)
        (tmp_path / "begun").touch()
    (tmp_path / "end").touch()
    _, status = os.waitpid(reader, 0)
    assert (target / "file").read_text() == "299"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["begun", "end", "target"]
    assert os.waitstatus_to_exitcode(status) == 0


def test_harness_sees_losses(tmp_path):
    """The harness itself fails where a file is missing, changed, or left over: else it would prove nothing."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("1")
    expected = hashes(tmp_path / "out")
    COMMANDS["build-records"].visible(tmp_path / "out", expected)
    (tmp_path / "out" / "a").write_text("2")
    with pytest.raises(AssertionError, match="half a folder is visible"):
        COMMANDS["build-records"].visible(tmp_path / "out", expected)
    with pytest.raises(AssertionError, match="half a file is visible"):
        COMMANDS["extract"].visible(tmp_path / "out", expected)
