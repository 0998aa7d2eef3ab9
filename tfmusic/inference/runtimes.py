"""An exported model of segments, ONNX or LiteRT, run by the runtime of its format."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.core.contract import Contract
from tfmusic.core.runtime import without_runtime_notes
from tfmusic.errors import RunError, UsageError, one_line
from tfmusic.export.layout import FILES

_Shape = tuple[tuple[Any, ...], str]  # of one example, and the type of its cells


@dataclass(frozen=True)
class _Loaded:
    """A model in its runtime: what it takes, codes first and metadata last, what it gives, and how it is asked."""

    inputs: list[_Shape]
    outputs: list[_Shape]
    ask: Callable[[list[np.ndarray]], np.ndarray]


class SegmentModel:
    """Codes [batch, frames, n_bins], or a list of them and metadata [batch, n_tokens], to logits [batch, n_labels]."""

    def __init__(self, folder: Path, contract: Contract) -> None:
        """Loads the model.

        Raises:
            UsageError: the runtime is not installed.
            RunError: the runtime cannot read the file, or the model is not that of the contract.
        """
        form = next(form for form, name in FILES.items() if (folder / name).is_file())
        package, load = _RUNTIMES[form]
        self._path = folder / FILES[form]
        try:
            runtime = importlib.import_module(package)
        except ImportError as error:
            raise UsageError(f"{folder}: needs an extra: pip install 'tfmusic[{form}]'") from error
        with without_runtime_notes():
            try:
                self._loaded = load(runtime, str(self._path))
            except Exception as error:  # each runtime has errors of its own
                raise RunError(f"{self._path}: must be a model of {form}: {one_line(str(error))}") from error
        check_fits(self._path, contract, self._loaded.inputs, self._loaded.outputs)

    def predict_on_batch(self, inputs: Any) -> np.ndarray:
        """Returns the logits of a batch; raises RunError where the runtime fails."""
        try:
            return self._loaded.ask(inputs if isinstance(inputs, list) else [inputs])
        except Exception as error:
            raise RunError(f"{self._path}: the model cannot be run: {one_line(str(error))}") from error


def check_fits(path: Path, contract: Contract, inputs: Sequence[_Shape], outputs: Sequence[_Shape]) -> None:
    """Raises RunError where a model does not take what its contract says, or does not give it."""
    metadata = [((len(contract.metadata),), "float32")] if contract.metadata else []
    wanted = ([((contract.frames, contract.n_bins), contract.dtype), *metadata], [(len(contract.labels),)])
    found = (list(inputs), [shape for shape, _ in outputs])
    if wanted != found:
        raise RunError(
            f"{path}: must take and give what the contract beside it says, {wanted}. Received: {found}; bring"
            " back files that belong together, or make the folder anew"
        )


def _load_onnx(runtime: Any, path: str) -> _Loaded:
    # Its way of going on after an error prints to where our results go.
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"], enable_fallback=0)
    inputs = _in_order({one.name: _described(one.shape, one.type[7:-1]) for one in session.get_inputs()})
    outputs = {one.name: _described(one.shape, one.type[7:-1]) for one in session.get_outputs()}

    def ask(values: list[np.ndarray]) -> np.ndarray:
        return np.asarray(session.run(list(outputs), dict(zip(inputs, values, strict=True)))[0])

    return _Loaded(list(inputs.values()), list(outputs.values()), ask)


def _load_litert(runtime: Any, path: str) -> _Loaded:
    interpreter = runtime.Interpreter(path)
    details = interpreter.get_input_details(), interpreter.get_output_details()
    inputs, outputs = (
        {one["index"]: _described(one["shape"].tolist(), np.dtype(one["dtype"]).name) for one in some}
        for some in details
    )
    inputs, sink = _in_order(inputs), next(iter(outputs))

    def ask(values: list[np.ndarray]) -> np.ndarray:
        with without_runtime_notes():
            for place, array in zip(inputs, values, strict=True):
                interpreter.resize_tensor_input(place, array.shape)
            interpreter.allocate_tensors()
        for place, array in zip(inputs, values, strict=True):
            interpreter.set_tensor(place, array)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(sink))

    return _Loaded(list(inputs.values()), list(outputs.values()), ask)


def _described(shape: list[Any], dtype: str) -> _Shape:
    return tuple(shape[1:]), {"float": "float32"}.get(dtype, dtype)


def _in_order(inputs: dict[Any, _Shape]) -> dict[Any, _Shape]:
    """Returns the inputs with the codes first, which have one dimension more than metadata."""
    return dict(sorted(inputs.items(), key=lambda item: -len(item[1][0])))


_RUNTIMES: dict[str, tuple[str, Callable[[Any, str], _Loaded]]] = {
    "onnx": ("onnxruntime", _load_onnx),
    "litert": ("ai_edge_litert.interpreter", _load_litert),
}
