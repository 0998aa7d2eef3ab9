"""The backend of Keras, and what C and C++ libraries may print on standard error."""

import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import IO

from tfmusic.errors import UsageError


def take_tensorflow() -> bool:
    """Returns whether Keras runs on TensorFlow. Chooses TensorFlow where Keras has not been imported yet."""
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"
        return True
    import keras

    return bool(keras.backend.backend() == "tensorflow")


def run_on_tensorflow(arguments: Sequence[str]) -> int:
    """Runs `tfmusic ARGUMENTS` in a child process with TensorFlow as the backend and returns its exit code."""
    environment = os.environ | {"KERAS_BACKEND": "tensorflow"}
    return subprocess.run([sys.executable, "-m", "tfmusic", *arguments], env=environment, check=False).returncode


_TENSORFLOW = re.compile(
    r"absl::InitializeLog|oneDNN custom operations|cudart_stub|cuda drivers|cuInit|cpu_feature_guard"
    r"|To enable the following instructions|computation_placer|Unable to register|TF-TRT Warning"
)
# libsndfile cannot silence mpg123, whose notes name no file and concern harmless tags as well as damage. A file that
# cannot be decoded is an error of ours, which names the file.
_MPG123 = re.compile(r"^(Note|Warning|warning|error): |^\[[^]]*src/libmpg123/|^\s*$")
_XNNPACK = re.compile(r"^INFO: Created TensorFlow Lite")
_redirected = threading.Lock()


def start_tensorflow() -> None:
    """Imports TensorFlow and looks for devices, without the lines about CUDA, oneDNN and retracing.

    Another backend does without it where it is missing.

    Raises:
        UsageError: it is missing, and nothing else can do the work.
    """
    if find_spec("tensorflow") is None:
        if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
            return
        raise UsageError("this needs TensorFlow: pip install tensorflow (fit, evaluate and predict run on JAX as well)")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _without(_TENSORFLOW):  # C++ prints them before a Python logger exists
        import tensorflow as tf

        tf.config.list_physical_devices()
        # Every fold has a model of its own, which TensorFlow takes for one that is compiled again and again.
        tf.get_logger().addFilter(_is_not_retracing)
        if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":  # the other backend has the GPU
            tf.config.set_visible_devices([], "GPU")


def _is_not_retracing(record: logging.LogRecord) -> bool:
    return "tf.function retracing" not in record.getMessage()


@contextmanager
def without_decoder_notes() -> Iterator[None]:
    """Hides the notes of mpg123 while the body decodes sound."""
    with _without(_MPG123):
        yield


@contextmanager
def without_runtime_notes() -> Iterator[None]:
    """Hides the line about XNNPACK while the body loads a LiteRT model."""
    with _without(_XNNPACK):
        yield


@contextmanager
def _without(noise: re.Pattern[str]) -> Iterator[None]:
    """Redirects the file descriptor of standard error during the body, then writes the lines that are not noise."""
    if not _redirected.acquire(blocking=False):  # by another thread
        yield
        return
    try:
        with _memory_file() as lines_file:
            original_descriptor = os.dup(2)
            os.dup2(lines_file.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(original_descriptor, 2)
                os.close(original_descriptor)
                lines_file.seek(0)
                lines = lines_file.read().decode(errors="replace").splitlines(keepends=True)
                sys.stderr.writelines(line for line in lines if not noise.search(line))
                sys.stderr.flush()
    finally:
        _redirected.release()


def _memory_file() -> IO[bytes]:
    """Returns a file in memory, or on disk where the system has no such files: a disk may be full."""
    return os.fdopen(os.memfd_create("stderr"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile()
