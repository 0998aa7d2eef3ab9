"""Trained models from their files."""

import json
import zipfile
from pathlib import Path

import keras

from tfmusic.errors import RunError


def load_saved(path: Path) -> keras.Model:
    """Returns the model of a .keras file, not compiled.

    Raises:
        RunError: the file is missing or damaged, or the model would run code of its own.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such file; it must be a Keras model of tfmusic")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises errors of any kind on a damaged archive
        theirs = _saved_by(path)
        if theirs and theirs.split(".")[0] != keras.__version__.split(".")[0]:
            raise RunError(
                f"{path}: saved by Keras {theirs}, which Keras {keras.__version__} cannot read: use it on its own"
                " stack, or export it there (a SavedModel answers anywhere), or train on from its weights here with"
                " model.init_from"
            ) from error
        raise RunError(
            f"{path}: must be a Keras model of tfmusic: {(str(error) or repr(error)).splitlines()[0][:300]}"
        ) from error


def _saved_by(path: Path) -> str | None:
    """Returns the version of Keras that wrote a .keras file, or None of a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(archive.read("metadata.json"))["keras_version"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile):
        return None
