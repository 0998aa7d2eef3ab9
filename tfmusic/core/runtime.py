"""Which backend Keras runs on, and what its C and C++ libraries may print."""

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO


def take_tensorflow() -> bool:
    """Returns whether Keras runs on TensorFlow here; it is made to where it has not been imported yet."""
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"
        return True
    import keras

    return bool(keras.backend.backend() == "tensorflow")


def run_on_tensorflow(arguments: Sequence[str]) -> int:
    """Runs `tfmusic ARGUMENTS` in a process of its own, with TensorFlow as the backend, and returns its exit code."""
    environment = os.environ | {"KERAS_BACKEND": "tensorflow"}
    return subprocess.run([sys.executable, "-m", "tfmusic", *arguments], env=environment, check=False).returncode


_TENSORFLOW = re.compile(
    r"absl::InitializeLog|oneDNN custom operations|cudart_stub|cuda drivers|cuInit|cpu_feature_guard"
    r"|To enable the following instructions|computation_placer|Unable to register|TF-TRT Warning"
)
# libsndfile does not let it be told to be silent. Its notes name no file, and tags cause them as much as damage does;
# what cannot be decoded is an error of ours, with the file's name.
_MPG123 = re.compile(r"^(Note|Warning|warning|error): |^\[[^]]*src/libmpg123/|^\s*$")
_XNNPACK = re.compile(r"^INFO: Created TensorFlow Lite")
_turned = threading.Lock()


def start_tensorflow() -> None:
    """Imports TensorFlow and looks for devices, without its lines about CUDA and oneDNN."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _without(_TENSORFLOW):  # they come from C++ before any logger of Python exists
        import tensorflow as tf

        tf.config.list_physical_devices()
        if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":  # it reads records; others have the GPU
            tf.config.set_visible_devices([], "GPU")


@contextmanager
def without_decoder_notes() -> Iterator[None]:
    """Decodes sound meanwhile, without the notes of mpg123."""
    with _without(_MPG123):
        yield


@contextmanager
def without_runtime_notes() -> Iterator[None]:
    """Loads a LiteRT model meanwhile, without the line that says how it will be run."""
    with _without(_XNNPACK):
        yield


@contextmanager
def _without(noise: re.Pattern[str]) -> Iterator[None]:
    """Turns the file descriptor of standard error meanwhile, and in the end writes what is no noise."""
    if not _turned.acquire(blocking=False):  # another thread has turned it
        yield
        return
    try:
        with _held_back() as held:
            kept = os.dup(2)
            os.dup2(held.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(kept, 2)
                os.close(kept)
                held.seek(0)
                lines = held.read().decode(errors="replace").splitlines(keepends=True)
                sys.stderr.writelines(line for line in lines if not noise.search(line))
                sys.stderr.flush()
    finally:
        _turned.release()


def _held_back() -> IO[bytes]:
    """Returns a file in memory where the system has such; a disk may be full."""
    return os.fdopen(os.memfd_create("stderr"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile()
