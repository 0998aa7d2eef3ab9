"""Killed with -9 at random moments: a few of the trials that `make torture` makes by the hundred."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kill import COMMANDS, hashes
from tfmusic.core.files import put_in_place

ROOT = Path(__file__).parents[1]
TRIALS = {
    "build-records": 4, "build-records on a store": 4, "extract": 4, "export": 1, "fit": 1, "ensemble": 1, "predict": 1,
    "predict as it goes": 4, "embed": 4,
}  # fmt: skip


def tortured(trials, **options):
    """Returns the last line for every command of a run of the harness; its progress goes to standard error."""
    words = [f"{name}={count}" for name, count in trials.items()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, **options
    )
    assert done.returncode == 0, f"{done.stdout}{(done.stderr or '')[-4000:]}"
    lines = [line for line in done.stdout.splitlines() if ": " in line and " 0 lost;" in line]
    assert len(lines) == len(trials), done.stdout
    return lines


@pytest.mark.slow
def test_killed_commands_end_as_undisturbed_ones():
    """What is visible after the kill is whole; run again, the result is that of a run that nothing disturbed."""
    assert set(COMMANDS) - set(TRIALS) == {"inspect"}  # which takes long, and writes its folder as export does
    tortured(TRIALS, stderr=subprocess.PIPE)


@pytest.mark.torture
@pytest.mark.parametrize("name", COMMANDS)
def test_a_hundred_kills(name, record_property):
    """The same a hundred times for every command: minutes for each, and up to half an hour for `fit`."""
    record_property("trials", 100)
    record_property("measured", tortured({name: 100})[0])


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
