"""The folder of a model: a run or an export, which files it holds, and the runtime of each export format."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.core.contract import Contract
from tfmusic.core.files import check_files
from tfmusic.core.rundir import is_run
from tfmusic.core.runtime import start_tensorflow, without_runtime_notes
from tfmusic.errors import RunError, UsageError, one_line
from tfmusic.inference.graphs import check_litert, check_onnx, check_saved_model

_Shape = tuple[tuple[Any, ...], str]  # of one example, and the type of its values


@dataclass(frozen=True)
class _Session:
    """A model in its runtime: shapes of its inputs, codes first and metadata last, of its outputs, and how it runs."""

    inputs: list[_Shape]
    outputs: list[_Shape]
    run: Callable[[list[np.ndarray]], np.ndarray]


def window_format(folder: Path) -> str | None:
    """Returns the format of an exported model of windows; None for a SavedModel, a run, or any other folder."""
    return next((form for form, runtime in RUNTIMES.items() if (folder / runtime.file).is_file()), None)


class ExportedWindowModel:
    """Codes [batch, frames, n_bins], or a list of them and metadata [batch, n_tokens], to logits [batch, n_labels]."""

    def __init__(self, folder: Path, contract: Contract) -> None:
        """Loads the model.

        Raises:
            UsageError: the runtime is not installed.
            RunError: the runtime cannot read the file, or the model does not fit the contract.
        """
        form = window_format(folder)
        assert form is not None
        runtime = RUNTIMES[form]
        self._path = folder / runtime.file
        try:
            package = importlib.import_module(runtime.package)
        except ImportError as error:
            raise UsageError(f"{folder}: needs an extra: pip install 'tfmusic[{form}]'") from error
        check_model(folder)
        with without_runtime_notes():
            try:
                self._session = runtime.load(package, str(self._path))
            except Exception as error:  # each runtime has errors of its own
                raise RunError(f"{self._path}: must be a model of {form}: {one_line(str(error))}") from error
        check_fits(self._path, contract, self._session.inputs, self._session.outputs)

    def predict_on_batch(self, inputs: Any) -> np.ndarray:
        """Returns the logits of a batch; raises RunError where the runtime fails."""
        try:
            return self._session.run(inputs if isinstance(inputs, list) else [inputs])
        except Exception as error:
            raise RunError(f"{self._path}: the model cannot be run: {one_line(str(error))}") from error


def check_fits(path: Path, contract: Contract, inputs: Sequence[_Shape], outputs: Sequence[_Shape]) -> None:
    """Raises RunError where the inputs or outputs of a model are not those of its contract."""
    metadata = [((len(contract.metadata),), "float32")] if contract.metadata else []
    expected = ([((contract.frames, contract.n_bins), contract.dtype), *metadata], [(len(contract.labels),)])
    received = (list(inputs), [shape for shape, _ in outputs])
    if expected != received:
        raise RunError(
            f"{path}: must take and give what the contract beside it says, {expected}. Received: {received}; restore"
            " both files from the same training, or export again"
        )


def check_model(folder: Path) -> None:
    """Checks the graph of an export before a runtime loads it; LiteRT's is checked when it is loaded.

    Raises:
        RunError: it is damaged, or holds what no export of tfmusic does; the message names it.
    """
    path = folder / MODEL_FILES[window_format(folder) or "saved_model"]
    try:
        if path.name == SAVED_MODEL:
            check_saved_model(folder)
        elif path.suffix == ".onnx":
            check_onnx(path)
    except ValueError as error:
        raise RunError(f"{path}: must be a model as tfmusic exports it: {one_line(str(error))}") from error


def load_predict_fn(folder: Path) -> Callable[..., dict[str, np.ndarray]]:
    """Returns the function of a SavedModel: linear power [n_bins, n_frames] and metadata tokens to numpy arrays.

    The arrays are `track_scores`, `window_scores` and `window_starts`. A model without metadata ignores the tokens.

    Raises:
        RunError: the graph holds what no export of tfmusic does.
    """
    check_model(folder)
    start_tensorflow()
    import tensorflow as tf

    module = tf.saved_model.load(str(folder))
    has_metadata = "with_metadata" in module.signatures
    # A signature is one graph for tracks of all lengths. The loaded module itself would trace one for each new length:
    # .1 s every time, and memory that is never given back.
    signature = module.signatures["with_metadata" if has_metadata else "serving_default"]

    def predict(power: np.ndarray, tokens: Sequence[str] = ()) -> dict[str, np.ndarray]:
        metadata = {"tokens": tf.constant(tokens, tf.string)} if has_metadata else {}
        outputs = signature(mel=tf.constant(power), **metadata)
        return {name: value.numpy() for name, value in outputs.items()}

    predict.module = module  # type: ignore[attr-defined]  # keeps the variables alive
    return predict


def _load_onnx(package: Any, path: str) -> _Session:
    # enable_fallback would print to standard output after an error, among our results.
    session = package.InferenceSession(path, providers=["CPUExecutionProvider"], enable_fallback=0)
    inputs = _codes_first({node.name: _described(node.shape, node.type[7:-1]) for node in session.get_inputs()})
    outputs = {node.name: _described(node.shape, node.type[7:-1]) for node in session.get_outputs()}

    def run(arrays: list[np.ndarray]) -> np.ndarray:
        return np.asarray(session.run(list(outputs), dict(zip(inputs, arrays, strict=True)))[0])

    return _Session(list(inputs.values()), list(outputs.values()), run)


def _load_litert(package: Any, path: str) -> _Session:
    interpreter = package.Interpreter(path)
    check_litert([operation["op_name"] for operation in interpreter._get_ops_details()])
    inputs = _codes_first(_tensors(interpreter.get_input_details()))
    outputs = _tensors(interpreter.get_output_details())
    logits = next(iter(outputs))

    def run(arrays: list[np.ndarray]) -> np.ndarray:
        with without_runtime_notes():
            for index, array in zip(inputs, arrays, strict=True):
                interpreter.resize_tensor_input(index, array.shape)
            interpreter.allocate_tensors()
        for index, array in zip(inputs, arrays, strict=True):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(logits))

    return _Session(list(inputs.values()), list(outputs.values()), run)


def _tensors(details: list[dict[str, Any]]) -> dict[int, _Shape]:
    """Returns the shapes of LiteRT's tensors by their indices."""
    return {tensor["index"]: _described(tensor["shape"].tolist(), np.dtype(tensor["dtype"]).name) for tensor in details}


def _described(shape: list[Any], dtype: str) -> _Shape:
    return tuple(shape[1:]), {"float": "float32"}.get(dtype, dtype)


def _codes_first(inputs: dict[Any, _Shape]) -> dict[Any, _Shape]:
    """Returns the inputs with the codes first, which have one dimension more than metadata."""
    return dict(sorted(inputs.items(), key=lambda item: -len(item[1][0])))


@dataclass(frozen=True)
class Runtime:
    """What runs a format of exported models of windows: its file in the folder, its package, and how it is loaded."""

    file: str
    package: str
    load: Callable[[Any, str], _Session]


RUNTIMES = {
    "onnx": Runtime("model.onnx", "onnxruntime", _load_onnx),
    "litert": Runtime("model.tflite", "ai_edge_litert.interpreter", _load_litert),
}


SAVED_MODEL = "saved_model.pb"
MODEL_FILES = {"saved_model": SAVED_MODEL} | {form: runtime.file for form, runtime in RUNTIMES.items()}


def is_export(folder: Path) -> bool:
    """Whether a folder holds an exported model."""
    return any((folder / name).is_file() for name in MODEL_FILES.values())


def load_contract(folder: Path) -> Contract:
    """Returns the contract of a run or an export.

    Raises:
        RunError: the folder is neither, or it is damaged.
    """
    if not is_export(folder) and not is_run(folder):
        raise RunError(f"{folder}: must be a run folder with a trained model, or a folder that tfmusic export wrote")
    check_files(folder, only=["contract.json"] if is_run(folder) else None)
    return Contract.load(folder / "contract.json")


def choose_task(contract: Contract, task: str | None) -> str:
    """Returns the task to predict, the only one where `task` is None; raises UsageError where that is not clear."""
    tasks = list(contract.parts())
    if task is None and len(tasks) == 1:
        return tasks[0]
    if task not in tasks:
        raise UsageError(
            f"--task must be one of {', '.join(tasks)}, the tasks of the model. Received: {task or 'none'}"
        )
    return task
