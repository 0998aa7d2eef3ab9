"""The devices of this machine that a training runs on: every batch is dealt out, every device has all weights.

TensorFlow does so by `MirroredStrategy`, JAX by `keras.distribution.DataParallel`. Loss and gradients are those of the
whole batch, and so are the statistics of batch normalisation: only the order of sums differs from one device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import keras

from tfmusic.errors import ConfigError


@dataclass(frozen=True)
class Devices:
    """Where a training runs.

    Attributes:
        names: the devices; of one, nothing is set up.
        strategy: a TensorFlow strategy or a Keras distribution, None for one device.
    """

    names: tuple[str, ...]
    strategy: Any = None

    @classmethod
    def find(cls, wanted: int | str) -> "Devices":
        """Returns the first `wanted` GPUs, or all; of a machine without GPUs its CPU devices.

        Raises:
            ConfigError: there are fewer, or the backend cannot use more than one.
        """
        if wanted == 1:
            return cls(("default",))
        backend = keras.backend.backend()
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

    def predict_fn(self, model: keras.Model, twin_fn: Callable[[], keras.Model]) -> Callable[[Any], Any]:
        """Returns the inference of a model, from the inputs of a batch to numpy.

        JAX deals the batch out, which must be a multiple of the devices then, see `whole_batch`. TensorFlow would let
        every device answer for all, so `twin_fn` makes a second model over the same weights, for one of them.
        """
        if self.are_several and keras.backend.backend() == "tensorflow":
            twin = twin_fn()
            twin.compile(jit_compile=False)
            answer: Callable[[Any], Any] = twin.predict_on_batch
            return answer

        def predict(inputs: Any) -> Any:
            with self.scope():
                return model.predict_on_batch(inputs)

        return predict

    def whole_batch(self, size: int) -> int:
        """Returns the batch size, or the next one that all devices have the same share of."""
        return -(-size // len(self.names)) * len(self.names)

    def check_batch(self, size: int) -> None:
        """Raises ConfigError where the devices cannot have the same share of a training batch."""
        if size % len(self.names):
            raise ConfigError(
                f"training.batch_size must be a multiple of the {len(self.names)} devices. Received: {size}"
            )


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
