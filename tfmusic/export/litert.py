"""Export as LiteRT (formerly TensorFlow Lite): the model of a window, for phones and small devices."""

import warnings
from pathlib import Path

import keras

from tfmusic.errors import RunError
from tfmusic.inference.model_folder import RUNTIMES
from tfmusic.inference.predictor import WindowPredictor


def write(predictor: WindowPredictor, folder: Path) -> None:
    """Writes the model into an export folder; raises RunError where it has recurrent layers or mixed precision."""
    model = predictor.model
    if half := {layer.compute_dtype for layer in model.layers} & {"float16", "bfloat16"}:
        raise RunError(
            "--format litert needs a model of training.precision=float32, since LiteRT alone has no other operations."
            f" Received: {', '.join(half)}; use --format onnx or saved_model"
        )
    recurrent = [
        layer.name for layer in model.layers if isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional)
    ]
    if recurrent:
        raise RunError(
            "--format litert needs a model without recurrent layers, since LiteRT alone cannot run their loops."
            f" Received: {', '.join(recurrent)}; use --format onnx"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.export(folder / RUNTIMES["litert"].file, format="litert", verbose=False)
