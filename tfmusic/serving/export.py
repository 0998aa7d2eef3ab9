"""A run folder to a SavedModel that answers for whole tracks, with contract, labels, report and card beside it."""

import shutil
from pathlib import Path

import tensorflow as tf

from tfmusic.folders import put_in_place, write_text
from tfmusic.models.folded import fold
from tfmusic.reports.card import CARD_JSON, CARD_MARKDOWN, card_markdown
from tfmusic.rundir import RunDir, write_json
from tfmusic.serving.predict import card_of, load_run
from tfmusic.serving.track_model import TrackModel, signatures


def export_run(run: RunDir, out: Path, task: str | None = None) -> None:
    """Writes the export folder; it appears under its name when complete.

    `task` says which task of a model with several is exported.

    Raises:
        UsageError: the model answers several tasks and `task` is none of them.
        RunError: the run has no model, contract or calibration.
    """
    loaded = load_run(run, task)
    module = TrackModel(
        fold(loaded.model), loaded.contract, loaded.calibration, aggregator=loaded.aggregator, top_k=loaded.top_k
    )
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        tf.saved_model.save(module, str(partial), signatures=signatures(module, loaded.contract))
        loaded.contract.save(partial / "contract.json")
        loaded.calibration.save(partial / "calibration.json")
        (partial / "labels.txt").write_text("".join(f"{name}\n" for name in loaded.contract.labels), encoding="utf-8")
        report = run.report_folder(loaded.contract.task) / "report.json"
        if report.is_file():
            shutil.copy(report, partial / "report.json")
        card = card_of(run, loaded)
        write_json(card, partial / CARD_JSON)
        write_text(partial / CARD_MARKDOWN, card_markdown(card))
        put_in_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
