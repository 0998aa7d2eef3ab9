"""A run folder to a SavedModel that answers for whole tracks, with contract, labels, report and card beside it."""

import shutil
from pathlib import Path

import tensorflow as tf

from tfmusic.errors import RunError
from tfmusic.models.folded import fold
from tfmusic.rundir import RunDir
from tfmusic.serving.exported import export_folder, write_card
from tfmusic.serving.loading import LoadedRun, card_of, load_run
from tfmusic.serving.track_model import TrackModel, signatures


def export_run(run: RunDir, out: Path, task: str | None = None) -> None:
    """Writes the export folder; it appears under its name when complete.

    `task` says which task of a model with several is exported.

    Raises:
        UsageError: the model answers several tasks and `task` is none of them, or another process writes the folder.
        RunError: the run has no model, contract or calibration.
    """
    loaded = load_run(run, task)
    module = TrackModel(
        fold(loaded.model), loaded.contract, loaded.calibration, aggregator=loaded.aggregator, top_k=loaded.top_k
    )
    with export_folder(out, loaded) as folder:
        _save(module, folder, loaded)
        report = run.report_folder(loaded.contract.task) / "report.json"
        if report.is_file():
            shutil.copy(report, folder / "report.json")
        write_card(folder, card_of(run, loaded))


def _save(module: TrackModel, folder: Path, loaded: LoadedRun) -> None:
    try:
        tf.saved_model.save(module, str(folder), signatures=signatures(module, loaded.contract))
    except tf.errors.OpError as error:  # what the system says of the disk stands behind the path
        why = error.message.rpartition("; ")[2].partition(" [Op:")[0]
        raise RunError(f"{folder.parent}: the model cannot be written there: {why}") from error
