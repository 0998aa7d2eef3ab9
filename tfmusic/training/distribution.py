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
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from types import FrameType
from typing import Any

import keras

from tfmusic.errors import ConfigError, RunError, TfmusicError, UsageError

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


_asked_to_end = threading.Event()


def go_on_in_a_child(processes: Processes) -> None:
    """Returns in a child process only; here it waits, and ends as the child does.

    To be called before anything starts threads.

    Raises:
        RunError: the child has lost the other processes.
        SystemExit: the child ended in any other way; it has said why.
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
    """Ends the child as Ctrl-C does; a scheduler may send the signal to it as well as to what passes it on."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _asked_to_end.set()
    raise KeyboardInterrupt


def check_interrupt() -> None:
    """Ends what should have ended: Python drops an exception that is raised in a destructor or while it frees memory.

    Raises:
        KeyboardInterrupt: this process has been told to end.
    """
    if _asked_to_end.is_set():
        raise KeyboardInterrupt


def _wait(child: int) -> int:
    """Returns how a child ended, as os.waitstatus_to_exitcode does; a terminal sends Ctrl-C to the child itself."""

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


@dataclass(frozen=True)
class Devices:
    """Where a training runs.

    Attributes:
        names: the devices; of one, nothing is set up.
        strategy: a TensorFlow strategy or a Keras distribution, None for one device.
        processes: which together have all of the devices.
    """

    names: tuple[str, ...]
    strategy: Any = None
    processes: Processes = Processes()

    @classmethod
    def find(cls, wanted: int | str) -> "Devices":
        """Returns the first `wanted` GPUs, or all; of a machine without GPUs its CPU devices.

        Raises:
            ConfigError: there are fewer, or the backend cannot use more than one.
        """
        backend, processes = keras.backend.backend(), joined()
        if processes.are_several:
            return _of_all(processes)
        if wanted == 1:
            return cls(("default",))
        if backend not in _LISTS:
            raise ConfigError(f"training.devices must be 1 with the backend {backend}. Received: {wanted}")
        found = _LISTS[backend]()
        if wanted != "all" and int(wanted) > len(found):
            raise ConfigError(
                f"training.devices must be all, or at most the devices of this machine ({', '.join(found)})."
                f" Received: {wanted}"
            )
        names = found if wanted == "all" else found[: int(wanted)]
        return cls(names, _STRATEGIES[backend](names) if len(names) > 1 else None)

    @property
    def are_several(self) -> bool:
        """Whether batches are dealt out at all."""
        return self.strategy is not None

    def scope(self) -> Any:
        """Returns the context that models and optimizers are made in."""
        return self.strategy.scope() if self.are_several else nullcontext()

    @contextmanager
    def training(self, model: keras.Model) -> Iterator[None]:
        """Lets a model train: inside, its batch normalisation sees the whole batch; saved models say nothing of it."""
        layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        is_needed = self.are_several and keras.backend.backend() == "tensorflow"  # JAX sees one batch anyway
        for layer in layers if is_needed else ():
            layer.synchronized = True
        try:
            with self.scope():
                yield
        finally:
            for layer in layers if is_needed else ():
                layer.synchronized = False

    def deal(self, ds: Any, steps: int) -> dict[str, Any]:
        """Returns what `fit` is given for an epoch; workers of TensorFlow have batches of their own already."""
        if not (self.processes.are_several and keras.backend.backend() == "tensorflow"):
            return {"x": ds}
        return {"x": self.strategy.distribute_datasets_from_function(lambda _: ds), "steps_per_epoch": steps}

    def check_batch(self, size: int) -> None:
        """Raises ConfigError where the devices cannot have the same share of a training batch."""
        if size % len(self.names):
            raise ConfigError(
                f"training.batch_size must be a multiple of the {len(self.names)} devices. Received: {size}"
            )


def _of_all(processes: Processes) -> Devices:
    """Returns all devices of all processes; each process makes the batches of its own."""
    if keras.backend.backend() == "tensorflow":
        strategy = multi_worker_strategy()
        names = tuple(f"replica {number}" for number in range(strategy.num_replicas_in_sync))
        return Devices(names, strategy, processes)
    names = tuple(keras.distribution.list_devices())
    strategy = keras.distribution.DataParallel(devices=list(names), auto_shard_dataset=False)
    return Devices(names, strategy, processes)


def _tensorflow_devices() -> tuple[str, ...]:
    import tensorflow as tf

    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tuple(device.name.removeprefix("/device:") for device in found)


def _mirrored(names: tuple[str, ...]) -> Any:
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(list(names))


def _data_parallel(names: tuple[str, ...]) -> Any:
    return keras.distribution.DataParallel(devices=list(names))


_LISTS: dict[str, Callable[[], tuple[str, ...]]] = {
    "tensorflow": _tensorflow_devices,
    "jax": lambda: tuple(keras.distribution.list_devices()),
}
_STRATEGIES: dict[str, Callable[[tuple[str, ...]], Any]] = {"tensorflow": _mirrored, "jax": _data_parallel}
