"""Versions and machine of a training, for its folder."""

import platform
from importlib import metadata
from typing import Any

import keras

from tfmusic import __version__


def environment() -> dict[str, Any]:
    """Returns versions of Python and packages, backend and kind of machine."""
    backend = keras.backend.backend()
    packages = dict.fromkeys(("tensorflow", "keras", "numpy", "pandas", "google-crc32c", backend))
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "backend": backend,
        "packages": {"tfmusic": __version__} | {name: metadata.version(name) for name in packages},
    }
