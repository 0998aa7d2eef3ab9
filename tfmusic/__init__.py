"""tfmusic: music classification from whole tracks, from spectrogram to prediction.

`tfmusic.load("runs/q2/resnet18-1").predict("song.mp3")`; tfmusic/README.md has the whole. Names are imported when they
are first used, so that `import tfmusic` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfmusic import models
    from tfmusic.api import (
        Embedding,
        Model,
        Prediction,
        Records,
        Run,
        TfmusicError,
        aggregate,
        build_records,
        fit,
        load,
        mel,
        open_records,
        open_run,
    )

__version__ = "0.2.0"

__all__ = [
    "Embedding", "Model", "Prediction", "Records", "Run", "TfmusicError", "aggregate", "build_records", "fit", "load",
    "mel", "models", "open_records", "open_run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name == "models":
        return import_module("tfmusic.models")
    if name not in __all__:
        raise AttributeError(f"module 'tfmusic' has no attribute {name!r}")
    return getattr(import_module("tfmusic.api"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
