"""Trained models from their files."""

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
        raise RunError(
            f"{path}: must be a Keras model of tfmusic: {(str(error) or repr(error)).splitlines()[0][:300]}"
        ) from error
