"""The devices that a training runs on: every batch is dealt out, every device has all weights.

TensorFlow does so by `MirroredStrategy` (with workers `MultiWorkerMirroredStrategy`), JAX by
`keras.distribution.DataParallel`. Loss and gradients are those of the whole batch, and so are the statistics of batch
normalisation: only the order of sums differs from one device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import keras

from tfmusic.errors import ConfigError
from tfmusic.training.processes import Processes, joined, multi_worker_strategy


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
