"""An exported model of segments, ONNX or LiteRT, run by the runtime of its format."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.errors import RunError, UsageError
from tfmusic.serving.exported import FILES

_Ask = Callable[[list[np.ndarray]], np.ndarray]


class SegmentModel:
    """Codes [batch, frames, n_bins], or a list of them and metadata [batch, n_tokens], to logits [batch, n_labels]."""

    def __init__(self, folder: Path) -> None:
        """Loads the model.

        Raises:
            UsageError: the runtime is not installed.
            RunError: the runtime cannot read the file.
        """
        form = next(form for form, name in FILES.items() if (folder / name).is_file())
        package, load = _RUNTIMES[form]
        try:
            runtime = importlib.import_module(package)
        except ImportError as error:
            raise UsageError(f"{folder}: needs an extra: pip install 'tfmusic[{form}]'") from error
        try:
            self._ask = load(runtime, str(folder / FILES[form]))
        except Exception as error:  # each runtime has errors of its own
            raise RunError(f"{folder / FILES[form]}: must be a model of {form}: {error}") from error

    def predict_on_batch(self, inputs: Any) -> np.ndarray:
        """Returns the logits of a batch."""
        return self._ask(inputs if isinstance(inputs, list) else [inputs])


def _load_onnx(runtime: Any, path: str) -> _Ask:
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = _in_order({one.name: len(one.shape) for one in session.get_inputs()})

    def ask(inputs: list[np.ndarray]) -> np.ndarray:
        return np.asarray(session.run(["logits"], dict(zip(names, inputs, strict=True)))[0])

    return ask


def _load_litert(runtime: Any, path: str) -> _Ask:
    interpreter = runtime.Interpreter(path)
    places = _in_order({one["index"]: len(one["shape"]) for one in interpreter.get_input_details()})
    sink = interpreter.get_output_details()[0]["index"]

    def ask(inputs: list[np.ndarray]) -> np.ndarray:
        for place, values in zip(places, inputs, strict=True):
            interpreter.resize_tensor_input(place, values.shape)
        interpreter.allocate_tensors()
        for place, values in zip(places, inputs, strict=True):
            interpreter.set_tensor(place, values)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(sink))

    return ask


def _in_order(ranks: dict[Any, int]) -> list[Any]:
    """Returns the inputs with the codes first, which have one dimension more than metadata."""
    return sorted(ranks, key=lambda name: -ranks[name])


_RUNTIMES: dict[str, tuple[str, Callable[[Any, str], _Ask]]] = {
    "onnx": ("onnxruntime", _load_onnx),
    "litert": ("ai_edge_litert.interpreter", _load_litert),
}
