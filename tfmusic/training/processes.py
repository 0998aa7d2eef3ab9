"""Several processes, on one host or many, that train one model: who they are, and which of them writes.

Every process runs the same command on its own shards. JAX processes find each other at a coordinator; on the addons
stack (Keras 2.15) TensorFlow's workers do by TF_CONFIG. Keras 3 on TensorFlow cannot train so.
"""

import atexit
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from tfmusic.errors import TfmusicError, UsageError

_OUT = "run it with KERAS_BACKEND=jax and --coordinator HOST:PORT --num-processes N --process-id I"
LOST = 75  # the exit code of a process that has lost the others
# JAX raises what the network says as a ValueError, and TensorFlow errors of its own, so the text has to tell.
_IS_LOST = re.compile(r"gloo|nccl|coordination|collective|heartbeat|barrier|connection|unavailable", re.IGNORECASE)
_SLURM_PORTS = (10_000, 50_000)  # chosen by the number of the job, so that two jobs on a host do not meet


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        index: its number; 0 writes the run folder.
        count: how many there are.
        coordinator: HOST:PORT of process 0.
    """

    index: int = 0
    count: int = 1
    coordinator: str = ""

    @property
    def are_several(self) -> bool:
        """Whether there is more than one."""
        return self.count > 1


def find_processes(
    coordinator: str | None, count: int | None, index: int | None, environ: Mapping[str, str]
) -> Processes:
    """Returns the processes that arguments or the environment (TF_CONFIG, SLURM) name; one where neither does.

    Raises:
        UsageError: the arguments are not complete, or the index is none of them.
    """
    given = (coordinator, count, index)
    if given == (None, None, None):
        return _from_environment(environ)
    is_address = re.fullmatch(r".+:\d+", coordinator or "")
    if coordinator is None or count is None or index is None or not 0 <= index < count or not is_address:
        raise UsageError(
            "--coordinator HOST:PORT, --num-processes N and --process-id 0 to N-1 must be given together. Received:"
            f" {coordinator}, {count}, {index}"
        )
    return Processes(index, count, coordinator)


def _from_environment(environ: Mapping[str, str]) -> Processes:
    if "TF_CONFIG" in environ:
        try:
            config = json.loads(environ["TF_CONFIG"])
            cluster, kind, index = config["cluster"], config["task"]["type"], int(config["task"]["index"])
            workers = list(cluster["worker"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"TF_CONFIG must be JSON with cluster.worker, task.type and task.index: {error!r}"
            ) from error
        if set(cluster) != {"worker"} or kind != "worker" or not 0 <= index < len(workers):
            # A chief and the first worker both have the index 0, and both would write the run.
            raise UsageError(
                "TF_CONFIG must have workers alone, and task.index must be that of one of them. Received:"
                f" {', '.join(cluster)}; {kind} {index} of {len(workers)} workers"
            )
        return Processes(index, len(workers), workers[0])
    names = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")
    if environ.get("SLURM_NTASKS", "1") == "1" or not all(name in environ for name in names):
        return Processes()
    n_tasks, rank, nodes, job = (environ[name] for name in names)
    low, high = _SLURM_PORTS
    return Processes(int(rank), int(n_tasks), f"{_first_node(nodes)}:{low + int(job) % (high - low)}")


def _first_node(nodes: str) -> str:
    """Returns the first host of a list such as `gpu[03-05,9],other`."""
    found = re.match(r"([^\[,]+)(?:\[(\w+))?", nodes)
    assert found is not None  # SLURM names a host
    return found[1] + (found[2] or "")


def check_backend(processes: Processes, environ: Mapping[str, str]) -> None:
    """Checks, without importing Keras, that it can train in several processes.

    Raises:
        UsageError: it cannot; the message names the way out.
    """
    if not processes.are_several:
        return
    backend, version = environ.get("KERAS_BACKEND", "tensorflow"), metadata.version("keras")
    has_workers = backend == "tensorflow" and version.startswith("2.") and "TF_CONFIG" in environ
    if backend != "jax" and not has_workers:
        raise UsageError(f"several processes cannot train with Keras {version} on {backend}: {_OUT}")


def join(processes: Processes) -> None:
    """Connects this process with the others, before anything is computed."""
    if not processes.are_several:
        return
    import keras

    if keras.backend.backend() == "jax":
        ends = signal.getsignal(signal.SIGTERM)
        keras.distribution.initialize(processes.coordinator, processes.count, processes.index)
        signal.signal(signal.SIGTERM, ends)  # JAX takes the signal as a notice, and goes on
    else:
        multi_worker_strategy()
    _joined.append(processes)


_joined: list[Processes] = []  # as connections are, it belongs to the whole process


def joined() -> Processes:
    """Returns the processes that this one has joined; itself alone before."""
    return _joined[-1] if _joined else Processes()


@contextmanager
def watched() -> Iterator[None]:
    """Lets no process wait for another that is gone, or be waited for by others: JAX's farewell does both.

    Where a backend says that another process is gone, this one ends here; any other error is left to the command.
    """
    try:
        yield
    except BaseException as error:
        if not joined().are_several:
            raise
        if _says_lost(error):
            sys.stderr.write(f"{str(error).strip().splitlines()[0][:200]}\n")
            _leave(LOST)  # what waits for it says how to go on
        code = 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, TfmusicError) else 1
        atexit.register(_leave, code)  # runs before what JAX has registered
        raise


def _says_lost(error: BaseException) -> bool:
    """Returns whether an error is of a backend, and about the others: a mistake of ours keeps its trace."""
    is_backends = isinstance(error, ValueError | RuntimeError) or type(error).__module__.startswith("tensorflow.")
    is_ours = isinstance(error, TfmusicError)
    return is_backends and not is_ours and bool(_IS_LOST.search(f"{type(error).__name__}: {error}"))


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@cache
def multi_worker_strategy() -> Any:
    """Returns TensorFlow's strategy for the workers of TF_CONFIG, of which a process can make one only."""
    import tensorflow as tf

    return tf.distribute.MultiWorkerMirroredStrategy()
