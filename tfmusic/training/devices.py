"""The devices of a training: one, several of this machine, or all of several processes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import keras

from tfmusic.config.sections import Config
from tfmusic.errors import ConfigError
from tfmusic.models import models_with
from tfmusic.training.processes import Processes, joined, multi_worker_strategy


def for_this_device(config: Config) -> Config:
    """Returns the config with `model.reset_after` set where the model takes it and it is left to the device."""
    section = config.model
    if section.reset_after is not None or section.name not in models_with("reset_after"):
        return config
    return config.model_copy(update={"model": section.model_copy(update={"reset_after": has_gpu()})})


def has_gpu() -> bool:
    """Returns whether the backend computes on a GPU."""
    if keras.backend.backend() == "jax":
        import jax

        return str(jax.default_backend()) in ("gpu", "cuda", "rocm")
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


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
    processes: Processes = Processes()  # noqa: RUF009 - it never changes

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
        """Lets a model train: inside, its batch normalisation sees the whole batch."""
        self._synchronize(model, True)
        try:
            with self.scope():
                yield
        finally:
            self._synchronize(model, False)

    @contextmanager
    def unsynchronized(self, model: keras.Model) -> Iterator[None]:
        """Lets a model be saved within `training`, without a word about devices; its training graph is made already."""
        self._synchronize(model, False)
        try:
            yield
        finally:
            self._synchronize(model, True)

    def _synchronize(self, model: keras.Model, value: bool) -> None:
        if self.are_several and keras.backend.backend() == "tensorflow":  # JAX sees one batch anyway
            for layer in model.layers:
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.synchronized = value

    def run_on_one(self, work: Callable[[], None]) -> None:
        """Runs work on one device within `training`, whose scope would make a model predict on all of them.

        Scopes belong to a thread, so the work gets one of its own.
        """
        if not self.are_several:
            work()
            return
        with ThreadPoolExecutor(1) as thread:
            thread.submit(work).result()

    def distribute(self, ds: Any) -> Any:
        """Returns the batches as `fit` takes them; every worker of TensorFlow makes its own batches already."""
        if not (self.processes.are_several and keras.backend.backend() == "tensorflow"):
            return ds
        return self.strategy.distribute_datasets_from_function(lambda _: ds)

    def check_batch(self, size: int) -> None:
        """Raises ConfigError where the devices cannot have the same share of a training batch."""
        if size % len(self.names):
            raise ConfigError(
                f"training.batch_size must be a multiple of the {len(self.names)} devices. Received: {size}"
            )


def _of_all(processes: Processes) -> Devices:
    """Returns all devices of all processes; each process makes the batches of its own.

    Raises:
        ConfigError: workers of TensorFlow have several devices each, and would train on the same batches.
    """
    if keras.backend.backend() == "tensorflow":
        strategy = multi_worker_strategy()
        if strategy.num_replicas_in_sync != processes.count:
            raise ConfigError(
                "TF_CONFIG: every worker must have one device: set CUDA_VISIBLE_DEVICES to one GPU for each. Received:"
                f" {strategy.num_replicas_in_sync} devices of {processes.count} workers"
            )
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
