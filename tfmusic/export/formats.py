"""The formats of exports. Each is a module of this package whose `write(predictor, folder)` saves the model.

A SavedModel takes a whole track. ONNX and LiteRT take codes of windows [batch, frames, n_bins] and return logits
[batch, n_labels]; what turns a track into codes and logits into a prediction lies beside the model, in contract.json
and calibration.json.
"""

import importlib
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.errors import UsageError

if TYPE_CHECKING:
    from tfmusic.core.rundir import RunDir


@dataclass(frozen=True)
class Format:
    """A format: the module that writes it, its title, and the package of its extra, which needs Keras 3."""

    module: str
    title: str
    package: str | None = None


FORMATS = {
    "saved_model": Format("tfmusic.export.savedmodel", "SavedModel"),
    "onnx": Format("tfmusic.export.onnx", "ONNX, model of windows", "tf2onnx"),
    "litert": Format("tfmusic.export.litert", "LiteRT, model of windows", "ai_edge_litert"),
}


def export_run(run: "RunDir", out: Path, format_name: str = "saved_model", task: str | None = None) -> None:
    """Writes the best model of a run to a folder, which appears under its name when it is complete.

    Args:
        run: the run.
        out: the folder.
        format_name: a key of `FORMATS`.
        task: which task of a model for several.

    Raises:
        UsageError: the format needs another package or Keras 3, `task` is none of the model's, or another process
            writes the folder.
        RunError: the run has no model, contract or calibration, or a layer that the format does not have.
    """
    _check_installed(format_name)
    from tfmusic.export.card import model_card
    from tfmusic.export.layout import export_folder, write_card
    from tfmusic.inference.predictor import load_run

    predictor = load_run(run, task)
    with export_folder(out, predictor) as folder:
        write_card(folder, model_card(run, predictor))
        report = run.report_folder(predictor.contract.task) / "report.json"
        if report.is_file():
            shutil.copy(report, folder / "report.json")
        importlib.import_module(FORMATS[format_name].module).write(predictor, folder)


def _check_installed(format_name: str) -> None:
    package = FORMATS[format_name].package
    if package is None:
        return
    import keras

    from tfmusic.models.ops import IS_KERAS_3

    if not IS_KERAS_3:
        raise UsageError(
            f"--format {format_name} needs Keras 3, on the default stack. Received: Keras {keras.__version__};"
            " use --format saved_model"
        )
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"--format {format_name} needs an extra: pip install 'tfmusic[{format_name}]'")
