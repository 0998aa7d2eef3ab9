"""The backend of Keras: training and answers run on any, a SavedModel is always written by TensorFlow."""

import os
import subprocess
import sys
from collections.abc import Sequence


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
