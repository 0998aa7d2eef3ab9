"""The segment model in other formats, ONNX and LiteRT, for places where there is no TensorFlow.

Input `codes` [batch, frames, n_bins] in the contract's storage type, any batch; output logits [batch, n_labels]. What
turns a track into codes and logits into an answer stands beside it: contract, labels and calibration.
"""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from tfmusic.core.rundir import RunDir
from tfmusic.errors import RunError, UsageError
from tfmusic.export.card import CARD_JSON, model_card
from tfmusic.export.layout import export_folder, write_card
from tfmusic.inference.model_folder import FILES
from tfmusic.inference.predictor import load_run
from tfmusic.models.ops import IS_KERAS_3

_PACKAGES = {"onnx": "tf2onnx", "litert": "ai_edge_litert"}


def export_segments(run: RunDir, out: Path, form: str, task: str | None = None) -> None:
    """Writes the folder of the segment model; it appears under its name when complete.

    Args:
        run: the run.
        out: the folder.
        form: `onnx` or `litert`.
        task: which task of a model with several.

    Raises:
        UsageError: what writes the format is not installed or needs Keras 3, `task` is none of the model's, or
            another process writes the folder.
        RunError: the run has no model, contract or calibration, or a layer that the format does not have.
    """
    if not IS_KERAS_3:
        raise UsageError(
            f"--format {form} must be asked of Keras 3, on the default stack. Received: Keras {keras.__version__};"
            " a SavedModel can be exported here"
        )
    if importlib.util.find_spec(_PACKAGES[form]) is None:
        raise UsageError(f"--format {form} needs an extra: pip install 'tfmusic[{form}]'")
    loaded = load_run(run, task)
    with export_folder(out, loaded) as folder:
        _make_ready(loaded.model)
        _WRITERS[form](loaded.model, folder / FILES[form])
        write_card(folder, model_card(run, loaded))
        if form == "onnx":
            _put_contract_inside(folder)


def _make_ready(model: keras.Model) -> None:
    """Does what Keras wants of a model before an export: it must have been called."""
    _hold_constants(model)
    nothing = [np.zeros((1, *some.shape[1:]), some.dtype) for some in model.inputs]
    model(nothing if len(nothing) > 1 else nothing[0])


def _hold_constants(model: keras.Model) -> None:
    """Makes mean and variance plain arrays: as tensors of their own they would become inputs of an ONNX graph."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _hold_constants(layer)
        elif isinstance(layer, keras.layers.Normalization):
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)


def _write_onnx(model: keras.Model, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the converter, about names of numpy
        model.export(path, format="onnx", verbose=False)


def _write_litert(model: keras.Model, path: Path) -> None:
    recurrent = [
        layer.name for layer in model.layers if isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional)
    ]
    if recurrent:
        raise RunError(
            f"--format litert is for models without recurrent layers, whose loops LiteRT alone cannot run. Received:"
            f" {', '.join(recurrent)}; export to onnx"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.export(path, format="litert", verbose=False)


def _put_contract_inside(folder: Path) -> None:
    """Adds contract, calibration and card to the metadata of an ONNX file, which may travel alone."""
    import onnx

    model = onnx.load(folder / FILES["onnx"])
    texts = {
        name: (folder / name).read_text(encoding="utf-8") for name in ("contract.json", "calibration.json", CARD_JSON)
    }
    onnx.helper.set_model_props(model, texts)
    model.graph.output[0].name, old = "logits", model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["logits" if name == old else name for name in node.output]
        node.input[:] = ["logits" if name == old else name for name in node.input]
    onnx.checker.check_model(model)
    onnx.save(model, folder / FILES["onnx"])


_WRITERS: dict[str, Callable[[keras.Model, Path], None]] = {"onnx": _write_onnx, "litert": _write_litert}
