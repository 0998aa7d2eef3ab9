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

from tfmusic.core.files import replacing_folder, write_checksums, write_json, write_text
from tfmusic.errors import UsageError

if TYPE_CHECKING:
    from tfmusic.core.rundir import RunDir
    from tfmusic.inference.predictor import WindowPredictor


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
    from tfmusic.inference.predictor import load_run

    predictor = load_run(run, task)
    with replacing_folder(out) as partial:
        _write_documents(run, predictor, partial)
        importlib.import_module(FORMATS[format_name].module).write(predictor, partial)
        files = [path for path in partial.rglob("*") if path.is_file()]
        write_checksums(partial, [path.relative_to(partial).as_posix() for path in files])


def _write_documents(run: "RunDir", predictor: "WindowPredictor", folder: Path) -> None:
    """Writes everything but the model: contract, calibration, labels, card, and the report of the run if it has one."""
    from tfmusic.export.card import CARD_JSON, CARD_MARKDOWN, card_markdown, model_card
    from tfmusic.scoring.track_scorer import save_scorers

    contract, card = predictor.contract, model_card(run, predictor)
    contract.save(folder / "contract.json")
    save_scorers({contract.task: predictor.scorer}, folder / "calibration.json")
    write_text(folder / "labels.txt", "".join(f"{label}\n" for label in contract.labels))
    write_json(folder / CARD_JSON, card)
    write_text(folder / CARD_MARKDOWN, card_markdown(card))
    report = run.report_folder(contract.task) / "report.json"
    if report.is_file():
        shutil.copy(report, folder / report.name)


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
