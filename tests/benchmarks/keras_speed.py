"""Training steps and inference of a network of ours, on the backend that Keras has; needs no TensorFlow on JAX."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import keras
import numpy as np

from tests.benchmarks.clock import Bench, CannotMeasureError, Clock, repeating
from tfmusic.models import build_model
from tfmusic.models.cost import multiply_adds
from tfmusic.models.surgery import fuse_batch_norm

_MIN_STEPS = 3
_MATMUL_CPU, _MATMUL_GPU = 1536, 8192
_MATMUL_CALLS = 8


def network(
    name: str,
    *,
    frames: int,
    n_bins: int,
    n_outputs: int,
    width: int,
    batch_size: int,
    precision: str,
    jit: bool,
) -> Bench:
    """Returns parts `train` and `infer`, segments, and `matmul`, GFLOP of square matrices in the same precision.

    Inference is that of the model as `tfmusic export` writes it: normalisation folded into convolutions.

    Raises:
        CannotMeasureError: JAX without XLA, which nobody would use.
    """
    backend = keras.backend.backend()
    if backend == "jax" and not jit:
        raise CannotMeasureError("JAX always compiles")
    keras.mixed_precision.set_global_policy(precision)
    mean, variance = np.full(n_bins, 127.5), np.full(n_bins, 74.0**2)
    model = build_model(
        name, frames=frames, n_bins=n_bins, n_outputs=n_outputs, mean=mean, variance=variance, width=width
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), loss, jit_compile=jit)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (batch_size, frames, n_bins), np.uint8)
    labels = rng.integers(0, n_outputs, batch_size)
    is_gpu = _is_gpu()
    facts = {
        "parameters": int(sum(math.prod(variable.shape) for variable in model.trainable_variables)),
        "gflop": 2 * multiply_adds(model) / 1e9,
        "device": "gpu" if is_gpu else "cpu",
        "backend": backend,
    }

    @cache  # made when inference is first asked for
    def exported() -> keras.Model:
        folded = fuse_batch_norm(model)
        if folded is not model:  # Keras 2 gives the model back, as it is compiled
            folded.compile(jit_compile=jit)
        return folded

    parts = {
        "train": _training(model, codes, labels),
        "infer": repeating(lambda: exported().predict_on_batch(codes), batch_size),
        "matmul": _matmul(_MATMUL_GPU if is_gpu else _MATMUL_CPU, precision),
    }
    return Bench(parts, facts)


class _Steps(keras.callbacks.Callback):
    """Starts the clock after the first step of a `fit`, stops it after the last; reads each loss, as training does."""

    def __init__(self, clock: Clock, n_steps: int) -> None:
        super().__init__()
        self.clock, self.n_steps = clock, n_steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        float(logs["loss"])
        if batch == 0:
            self.clock.__enter__()
        if batch == self.n_steps:
            self.clock.__exit__(None, None, None)


def _training(model: keras.Model, codes: np.ndarray, labels: np.ndarray) -> Callable[[Clock, float], float]:
    """Returns a part that counts the segments of `fit`'s steps."""
    batch_size = len(codes)

    def fit(clock: Clock, n_steps: int) -> None:
        rows = np.arange((n_steps + 1) * batch_size) % batch_size
        steps = _Steps(clock, n_steps)
        model.fit(codes[rows], labels[rows], batch_size, shuffle=False, verbose=0, callbacks=[steps])

    step_s: list[float] = []

    def train(clock: Clock, seconds: float) -> float:
        if not step_s:
            fit(warm := Clock(), _MIN_STEPS)  # compiles
            step_s.append(warm.seconds / _MIN_STEPS)
        n_steps = max(_MIN_STEPS, round(seconds / step_s[0]))
        fit(clock, n_steps)
        return float(n_steps * batch_size)

    return train


def _matmul(n: int, precision: str) -> Callable[[Clock, float], float]:
    dtype = "bfloat16" if precision == "mixed_bfloat16" else "float32"
    matrix = keras.ops.ones((n, n), dtype)

    def multiply() -> None:
        product = matrix
        for _ in range(_MATMUL_CALLS):
            product = keras.ops.matmul(matrix, product)
        float(keras.ops.convert_to_numpy(product[0, 0]))

    return repeating(multiply, _MATMUL_CALLS * 2 * n**3 / 1e9)


def _is_gpu() -> bool:
    if keras.backend.backend() == "jax":
        import jax

        return bool(jax.default_backend() == "gpu")
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
