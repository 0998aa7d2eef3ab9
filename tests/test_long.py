"""Long trainings: memory and open files stay where they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kill import SMALL

ROOT = Path(__file__).parents[1]
MOST_GROWTH = 8 << 20  # bytes in a third of the epochs: what an allocator moves about

WATCHED = """
import json, sys
import psutil
from tfmusic.cli import main
from tfmusic.training.callbacks import MetricsLog
process, seen, write = psutil.Process(), [], MetricsLog.write
def write_and_look(self, numbers):
    write(self, numbers)
    seen.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
MetricsLog.write = write_and_look
code = main(sys.argv[1:])
print(json.dumps(seen))
sys.exit(code)
"""


@pytest.mark.parametrize(
    "epochs", [pytest.param(30, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.torture)]
)
def test_memory_and_files_of_many_epochs(records, tmp_path, epochs, record_property):
    """After the first third of the epochs open files and threads stay as many, and memory stays as it is."""
    command = ["fit", "q2", "--records", str(records), "--out", str(tmp_path / "run"), *SMALL]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *command, f"training.epochs={epochs}", "training.tensorboard=true", "--quiet"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    memory, files, threads = zip(*json.loads(done.stdout.splitlines()[-1]), strict=True)
    third = epochs // 3
    grown = max(memory[-third:]) - max(memory[third : 2 * third])
    measured = f"{memory[third] / 2**20:.0f} MiB after {third}, {grown / 2**20:+.1f} MiB in the last third"
    record_property("trials", epochs)
    record_property("measured", f"{epochs} epochs: {measured}")
    assert len(memory) == epochs
    assert grown < MOST_GROWTH
    assert max(files[-third:]) <= max(files[third : 2 * third])
    # At the end of the last epoch, with nothing left to read ahead, there are two threads more (15, then 17).
    assert max(threads[-third:-1]) <= max(threads[third : 2 * third])
