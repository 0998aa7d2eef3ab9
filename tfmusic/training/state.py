"""All that a resumed training needs, in one file that is replaced in one step."""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfmusic.errors import RunError
from tfmusic.training.optimizer import averages


def save_state(path: Path, variables: Sequence[Any], progress: Mapping[str, Any]) -> None:
    """Writes every variable of model and optimizer, random states included, and the progress as JSON."""
    arrays = {f"variable_{i}": np.asarray(variable) for i, variable in enumerate(variables)}
    text = np.frombuffer(json.dumps(dict(progress)).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name("state.tmp.npz")
    with tmp.open("wb") as file:
        np.savez(file, allow_pickle=False, progress=text, **arrays)
        file.flush()
        os.fsync(file.fileno())
    tmp.replace(path)


def load_state(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Returns progress and variables of a saved state.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as state:
            progress: dict[str, Any] = json.loads(bytes(state["progress"]).decode())
            n_variables = sum(name.startswith("variable_") for name in state.files)  # NumPy 1 adds a file of its own
            return progress, [state[f"variable_{i}"] for i in range(n_variables)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(
            f"{path}: damaged: must be the saved state of a training ({error}). Begin it anew, without --resume"
        ) from error


def restore(path: Path, variables: Sequence[Any], values: list[np.ndarray]) -> None:
    """Sets variables of model and optimizer to the values of a state.

    Raises:
        RunError: they are of another model or optimizer; `path` names the state.
    """
    shapes, wanted = [value.shape for value in values], [tuple(variable.shape) for variable in variables]
    if shapes != wanted:
        raise RunError(
            f"{path}: must fit the model and optimizer of the config. Received: {len(shapes)} variables where"
            f" {len(wanted)} are wanted, or other shapes; resume with the config the run began with"
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


@contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Puts the moving average of the weights into the model for a while, where the optimizer keeps one."""
    weights = model.trainable_variables
    found = averages(model.optimizer, weights)
    if not found:
        yield
        return
    raw = [np.array(weight) for weight in weights]
    for weight, average in zip(weights, found, strict=True):
        weight.assign(np.array(average))  # a copy: JAX must not be given one buffer twice
    try:
        yield
    finally:
        for weight, value in zip(weights, raw, strict=True):
            weight.assign(value)
