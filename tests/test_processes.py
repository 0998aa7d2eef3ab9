"""Several processes that train one model, here two on loopback."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.test_pipeline import epoch_of, source_of
from tfmusic.cli import main
from tfmusic.console import console
from tfmusic.core.rundir import RunDir
from tfmusic.errors import RunError, UsageError
from tfmusic.models.ops import IS_KERAS_3
from tfmusic.records.manifest import Manifest
from tfmusic.training import processes
from tfmusic.training.callbacks import StepWatch
from tfmusic.training.processes import LOST, Processes, _check, _is_lost, find_processes

ROOT = Path(__file__).parents[1]
CLUSTER = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}
SLURM = {
    "SLURM_JOB_ID": "40007", "SLURM_STEP_NODELIST": "gpu[03-05,9],x", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911", "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_RANK": "1",
}  # fmt: skip

_WORKER = """
import hashlib, signal, sys
from tfmusic.commands import fit  # the run folder of a process is its own: say what weights it ended with
from tfmusic.training import job
from tfmusic.cli import main

signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the entry point does
prepare = job.Job.prepare
jobs = []
job.Job.prepare = classmethod(lambda cls, *a, **k: jobs.append(prepare(*a, **k)) or jobs[-1])
code = main(sys.argv[1:])
if code == 0:
    digest = hashlib.sha256(b"".join(weight.tobytes() for weight in jobs[-1].model.get_weights())).hexdigest()
    print("weights", digest, flush=True)
sys.exit(code)
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_two(records, out, *overrides, flags=(), by_slurm=False):
    """Returns two processes that train together."""
    ports, processes = [free_port(), free_port()], []
    fit = ["fit", "q2", "--records", str(records), "--out", str(out), *flags]
    small = (
        "model.name=cnn1d",
        "model.width=4",
        "input.frames=64",
        "input.hop_frames=32",
        "metadata.fields=[]",
        "training.batch_size=8",
    )
    plain = ("training.fold=0", "training.select=best", "model.dropout=0.0", "training.warmup_epochs=0.5")
    for index in range(2):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        hosts = []
        if IS_KERAS_3:
            environment["KERAS_BACKEND"] = "jax"
            if by_slurm:
                environment |= SLURM | {
                    "SLURM_JOB_ID": str(ports[0]), "SLURM_STEP_NODELIST": "localhost", "SLURM_LOCALID": str(index),
                    "SLURM_NTASKS": "2", "SLURM_PROCID": str(index),
                }  # fmt: skip
            else:
                hosts = ["--coordinator", f"127.0.0.1:{ports[0]}", "--num-processes", "2", "--process-id", str(index)]
        else:
            workers = [f"127.0.0.1:{port}" for port in ports]
            task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            environment["TF_CONFIG"] = json.dumps(task)
        command = [sys.executable, "-c", _WORKER, *fit, *hosts, *small, *plain, *overrides]
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    return processes


@pytest.mark.slow
def test_two_processes_train_one_model(records, tmp_path):
    """Both finish with the same weights, the first alone writes the run, which goes on with --resume and validates."""
    out = tmp_path / "run"
    for epochs, flags in (("training.epochs=1", ()), ("training.epochs=2", ("--resume",))):
        processes = start_two(records, out, epochs, flags=flags, by_slurm=bool(flags))
        said = [process.communicate()[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
        digests = [line for text in said for line in text.splitlines() if line.startswith("weights")]
        assert len(digests) == 2
        assert digests[0] == digests[1]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    lines = [json.loads(line) for line in RunDir(out).metrics.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert main(["evaluate", str(out)]) == 0
    report = json.loads((RunDir(out).evaluation / "report.json").read_text(encoding="utf-8"))
    assert report["value"] == pytest.approx(max(line["validation"] for line in lines), abs=1e-5)


ENDINGS = ((1, signal.SIGKILL, -9), (0, signal.SIGKILL, -9), (1, signal.SIGTERM, 130))  # process, how, its exit code


@pytest.mark.slow
@pytest.mark.skipif(not IS_KERAS_3, reason="TensorFlow's workers wait for one that is to come back")
@pytest.mark.parametrize("endings", [ENDINGS[1:], pytest.param(ENDINGS, marks=pytest.mark.torture)])
def test_a_killed_process_ends_the_others(records, tmp_path, endings):
    """Whichever is killed or told to end, the other ends with one line and exit code 2, and --resume goes on."""
    out, state = tmp_path / "run", RunDir(tmp_path / "run").state
    for killed, how, code in endings:
        before = state.stat().st_mtime_ns if state.is_file() else 0
        flags = ("--resume",) if before else ()
        processes = start_two(records, out, "training.epochs=500", flags=flags)
        while not state.is_file() or state.stat().st_mtime_ns == before:
            assert all(process.poll() is None for process in processes), [one.communicate()[0] for one in processes]
            time.sleep(0.05)
        processes[killed].send_signal(how)
        said, _ = processes[1 - killed].communicate(timeout=300)
        processes[killed].communicate(timeout=300)
        assert processes[killed].returncode == code
        assert processes[1 - killed].returncode == 2, said
        assert said.count("tfmusic: ") == 1
        assert re.search(rf"tfmusic: process {1 - killed} of 2 .*: start all again with --resume", said)
    epochs = [json.loads(line)["epoch"] for line in RunDir(out).metrics.read_text().splitlines()]
    assert epochs == list(range(1, len(epochs) + 1))
    assert len(epochs) > 1


@pytest.mark.skipif(not IS_KERAS_3, reason="Keras 2.15 can")
def test_keras_3_on_tensorflow_is_refused(records, tmp_path, capsys, monkeypatch):
    """One line names the way out."""
    monkeypatch.setenv("TF_CONFIG", json.dumps(CLUSTER | {"task": {"type": "worker", "index": 0}}))
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert main(["fit", "q2", "--records", str(records), "--out", str(tmp_path / "run")]) == 2
    assert "KERAS_BACKEND=jax and --coordinator" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_who_the_processes_are():
    """Arguments, TF_CONFIG, Slurm, Open MPI, or none of them."""
    assert find_processes(None, None, None, {}) == Processes(0, 1)
    assert find_processes("h:1", 3, 2, SLURM) == Processes(2, 3, "h:1")
    assert find_processes(None, None, None, {"TF_CONFIG": json.dumps(CLUSTER)}) == Processes(1, 2, "a:1")
    assert find_processes(None, None, None, SLURM) == Processes(2, 4)  # JAX finds the coordinator
    assert find_processes(None, None, None, OPEN_MPI) == Processes(1, 3)
    assert find_processes(None, None, None, {"SLURM_NTASKS": "4"}) == Processes(0, 1)  # salloc without srun
    assert find_processes(None, None, None, SLURM | {"SLURM_NTASKS": "1"}) == Processes(0, 1)


@pytest.mark.parametrize(
    "given", [("h:1", None, 0), ("h:1", 2, 2), ("h:1", 2, -1), ("h", 2, 0), ("h:", 2, 0), (":1", 2, 0), (None, 2, 0)]
)
def test_half_a_statement_is_refused(given):
    """All three arguments, a port, and a number that there is."""
    with pytest.raises(UsageError, match="must be given together"):
        find_processes(*given, {})
    with pytest.raises(UsageError, match="TF_CONFIG must be JSON"):
        find_processes(None, None, None, {"TF_CONFIG": "{}"})


@pytest.mark.parametrize(
    ("cluster", "kind", "index"),
    [({"worker": []}, "worker", 0), ({"worker": ["a:1"]}, "worker", 1), ({"worker": ["a:1"]}, "worker", -1),
     ({"chief": ["a:1"], "worker": ["b:1"]}, "worker", 0), ({"worker": ["b:1"]}, "evaluator", 0)],
)  # fmt: skip
def test_a_cluster_has_workers_alone(cluster, kind, index):
    """A chief and the first worker would both be number 0, and both write the run."""
    config = {"cluster": cluster, "task": {"type": kind, "index": index}}
    with pytest.raises(UsageError, match="TF_CONFIG must have workers alone"):
        find_processes(None, None, None, {"TF_CONFIG": json.dumps(config)})


@pytest.mark.parametrize(
    ("code", "said"),
    [(LOST, "the connection, as another one is gone: start"), (-6, "by SIGABRT, as another one is gone: start"),
     (-9, "by SIGKILL: start"), (-11, "by SIGSEGV: start")],
)  # fmt: skip
def test_what_ended_a_process(code, said):
    """Another process is blamed where it is to blame alone; memory that is short is this machine's."""
    with pytest.raises(RunError, match=said):
        _check(code, Processes(1, 2, "h:1"))


def test_a_dropped_interrupt_ends_the_next_step(monkeypatch):
    """Python drops what is raised in a destructor, as JAX's callbacks of the garbage collector: the step asks again."""
    monkeypatch.setattr(processes, "_asked_to_end", threading.Event())
    watch = StepWatch(console.progress("fit", 2, "steps"), lambda *_: [], shows_steps=False)
    watch.on_train_batch_end(0, {"loss": 1.0})
    before = signal.signal(signal.SIGTERM, processes._interrupt_once)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(KeyboardInterrupt):
        watch.on_train_batch_end(1, {"loss": 1.0})


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [(ValueError("UNKNOWN: Gloo all-reduce failed"), True), (RuntimeError("heartbeat timeout"), True),
     (KeyError("collective_pooling"), False), (FileNotFoundError("connection.npy"), False),
     (UsageError("connection"), False), (ValueError("shapes differ"), False)],
)  # fmt: skip
def test_a_mistake_keeps_its_trace(error, is_lost):
    """Backends alone say that another process is gone, whatever the text of other errors."""
    assert _is_lost(error) == is_lost


def test_each_process_reads_its_own_segments(records):
    """Two processes have halves of the batches, as many steps, and no segment in common."""
    manifest, splits = Manifest.read(records), ("fold0", "fold1", "fold2")
    seen = []
    for process in range(2):
        half = source_of(manifest, "training.batch_size=8", splits=splits, process=process, n_processes=2)
        batches = [codes.numpy() for codes, _ in epoch_of(half)]
        assert len(batches) == sum(manifest.split(name).segments for name in splits) // 8
        assert all(len(codes) == 4 for codes in batches)
        seen.append({codes.tobytes() for codes in np.concatenate(batches)})
    assert not seen[0] & seen[1]
