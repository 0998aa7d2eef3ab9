"""Export as ONNX: the model of a window, with contract, calibration and card inside the file as well as beside it."""

import warnings
from pathlib import Path

import keras
import numpy as np

from tfmusic.export.card import CARD_JSON
from tfmusic.inference.model_folder import RUNTIMES
from tfmusic.inference.predictor import WindowPredictor


def write(predictor: WindowPredictor, folder: Path) -> None:
    """Writes the model into an export folder that holds contract, calibration and card already."""
    path = folder / RUNTIMES["onnx"].file
    convert(predictor.model, path)
    _add_metadata(path, [folder / name for name in ("contract.json", "calibration.json", CARD_JSON)])


def convert(model: keras.Model, path: Path) -> None:
    """Writes the graph of a model to a file."""
    _hold_constants(model)
    codes_and_metadata = [np.zeros((1, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]
    model(codes_and_metadata if len(codes_and_metadata) > 1 else codes_and_metadata[0])  # Keras exports built models
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converter uses old names of numpy
        model.export(path, format="onnx", verbose=False)


def _hold_constants(model: keras.Model) -> None:
    """Makes mean and variance of normalisation plain arrays: as tensors they would become inputs of the graph."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _hold_constants(layer)
        elif isinstance(layer, keras.layers.Normalization):
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)


def _add_metadata(path: Path, files: list[Path]) -> None:
    """Adds the texts of files to the metadata of the model, whose file may travel alone; names its output `logits`."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {file.name: file.read_text(encoding="utf-8") for file in files})
    output = model.graph.output[0]
    converter_name, output.name = output.name, "logits"
    for node in model.graph.node:
        node.output[:] = ["logits" if name == converter_name else name for name in node.output]
        node.input[:] = ["logits" if name == converter_name else name for name in node.input]
    onnx.checker.check_model(model)
    onnx.save(model, path)
