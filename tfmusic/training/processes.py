"""Several processes, on one host or many, that train one model: who they are, and which of them writes.

Every process runs the same command and reads its part of every batch. JAX processes find each other at a coordinator;
on the addons stack (Keras 2.15) TensorFlow's workers do by TF_CONFIG. Keras 3 on TensorFlow cannot train so.

Nothing here imports Keras or JAX before a process has joined: they start threads, which a fork would break.
"""

import atexit
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from types import FrameType
from typing import Any

from tfmusic.errors import RunError, TfmusicError, UsageError

_WAY_OUT = "run it with KERAS_BACKEND=jax and --coordinator HOST:PORT --num-processes N --process-id I"
LOST = 75  # the exit code of a process that has lost the others
# JAX raises what the network says as a ValueError, and TensorFlow errors of its own, so the text has to tell.
_LOST_MESSAGE = re.compile(r"gloo|nccl|coordination|collective|heartbeat|barrier|connection|unavailable", re.IGNORECASE)
# Variables of a launcher by which JAX finds the coordinator, and those with the count and the index of this process.
_LAUNCHERS = (
    (("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_LOCALID"), "SLURM_NTASKS", "SLURM_PROCID"),
    (("OMPI_MCA_orte_hnp_uri",), "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
)


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        index: its number; 0 writes the run folder.
        count: how many there are.
        coordinator: HOST:PORT of process 0; empty where JAX finds it by the launcher's variables.
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
    """Returns the processes by the arguments or the environment (TF_CONFIG, Slurm, Open MPI); one where neither is set.

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
        return _from_tf_config(environ["TF_CONFIG"])
    for needed, count_name, index_name in _LAUNCHERS:
        if environ.get(count_name, "1") != "1" and all(name in environ for name in (*needed, index_name)):
            return Processes(int(environ[index_name]), int(environ[count_name]))
    return Processes()


def _from_tf_config(text: str) -> Processes:
    try:
        config = json.loads(text)
        cluster, kind, index = config["cluster"], config["task"]["type"], int(config["task"]["index"])
        workers = list(cluster["worker"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"TF_CONFIG must be JSON with cluster.worker, task.type and task.index: {error!r}") from error
    if set(cluster) != {"worker"} or kind != "worker" or not 0 <= index < len(workers):
        # A chief and the first worker both have the index 0, and both would write the run.
        raise UsageError(
            "TF_CONFIG must have workers alone, and task.index must be that of one of them. Received:"
            f" {', '.join(cluster)}; {kind} {index} of {len(workers)} workers"
        )
    return Processes(index, len(workers), workers[0])


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
        raise UsageError(f"several processes cannot train with Keras {version} on {backend}: {_WAY_OUT}")


def join(processes: Processes) -> None:
    """Connects this process with the others, before anything is computed."""
    if not processes.are_several:
        return
    import keras

    if keras.backend.backend() == "jax":
        handler = signal.getsignal(signal.SIGTERM)
        if processes.coordinator:
            keras.distribution.initialize(processes.coordinator, processes.count, processes.index)
        else:
            import jax

            jax.distributed.initialize()
        signal.signal(signal.SIGTERM, handler)  # JAX would take the signal as a notice, and continue
    else:
        multi_worker_strategy()
    _joined.append(processes)


_joined: list[Processes] = []  # connections belong to the whole process


def joined() -> Processes:
    """Returns the processes that this one has joined; before that, itself alone."""
    return _joined[-1] if _joined else Processes()


@contextmanager
def ended_together() -> Iterator[None]:
    """Ends this process at once after an error, so that no process waits for another: JAX's shutdown waits for all.

    Where a backend reports that another process is gone, this one ends here; the command handles any other error.
    """
    try:
        yield
    except BaseException as error:
        if not joined().are_several:
            raise
        if _is_lost(error):
            sys.stderr.write(f"{str(error).strip().splitlines()[0][:200]}\n")
            _leave(LOST)  # the parent process prints how to go on
        code = 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, TfmusicError) else 1
        atexit.register(_leave, code)  # runs before what JAX has registered
        raise


def _is_lost(error: BaseException) -> bool:
    """Returns whether a backend reports that another process is gone; a mistake of ours keeps its trace."""
    is_backends = isinstance(error, ValueError | RuntimeError) or type(error).__module__.startswith("tensorflow.")
    is_ours = isinstance(error, TfmusicError)
    return is_backends and not is_ours and bool(_LOST_MESSAGE.search(f"{type(error).__name__}: {error}"))


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@cache
def multi_worker_strategy() -> Any:
    """Returns TensorFlow's strategy for the workers of TF_CONFIG, of which a process can make one only."""
    import tensorflow as tf

    return tf.distribute.MultiWorkerMirroredStrategy()


@contextmanager
def noting_interrupt() -> Iterator[threading.Event]:
    """Notes the first Ctrl-C in an event, and lets the second interrupt; several processes stop at the first.

    Those could not agree on the epoch that ends, and outside the main thread Python takes no signals.
    """
    noted = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    is_ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if joined().are_several or not is_ours:
        yield noted
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted.set()
        signal.signal(signal.SIGINT, before)
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nfit ends after this epoch and finishes the run; Ctrl-C again stops at once\n")

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


_asked_to_end = threading.Event()


def supervise_in_child_process(processes: Processes) -> None:
    """Returns in a child process; the parent waits for it and ends as the child does. A single process just returns.

    Call it before anything starts threads.

    Raises:
        RunError: the child has lost the other processes.
        SystemExit: the child ended in any other way, after its own message.
    """
    if not processes.are_several:
        return
    sys.stdout.flush()  # what waits there would be written twice
    alive, held_open = os.pipe()  # nothing is written: it ends with the process that holds it open
    child = os.fork()
    if not child:
        os.close(held_open)
        threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
        signal.signal(signal.SIGTERM, _interrupt_once)
        return
    os.close(alive)
    _check(_wait(child), processes)


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)
    os._exit(1)


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """Ends the child as Ctrl-C does, once: a scheduler may send the signal to the child and to its parent."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _asked_to_end.set()
    raise KeyboardInterrupt


def check_interrupt() -> None:
    """Ends a process whose interrupt was lost: Python drops exceptions that are raised in a destructor.

    Raises:
        KeyboardInterrupt: this process was asked to end.
    """
    if _asked_to_end.is_set():
        raise KeyboardInterrupt


def _wait(child: int) -> int:
    """Returns how a child ended, as os.waitstatus_to_exitcode does; the terminal sends Ctrl-C to the child as well."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    handlers: dict[int, Any] = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: pass_on}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _check(code: int, processes: Processes) -> None:
    if code == LOST or code < 0:
        name = signal.Signals(-code).name if code < 0 else ""
        how = f"was ended by {name}" if name else "has lost the connection"
        # JAX aborts where another one is gone; other signals are about this one, as SIGKILL for want of memory.
        why = ", as another one is gone" if name in ("", "SIGABRT") else ""
        raise RunError(
            f"process {processes.index} of {processes.count} {how}{why}: start all again with"
            " --resume, or without it where no epoch had ended"
        )
    raise SystemExit(code)
