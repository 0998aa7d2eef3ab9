"""`tfmusic evaluate RUN`: score a run on held-out tracks of its records."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.errors import RecordsError, UsageError
from tfmusic.quiet import start_tensorflow

if TYPE_CHECKING:
    from tfmusic.records.manifest import Manifest
    from tfmusic.reports.evaluation import Evaluation
    from tfmusic.rundir import RunDir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--records", type=Path, help="records folder (default the one the run was trained on)")
    parser.add_argument(
        "--split", action="append", help="split to score; may stand several times (default: validation)"
    )
    parser.add_argument("--out", type=Path, help="folder of the report (default RUN/evaluation)")


def run(args: argparse.Namespace) -> None:
    """Scores every track of the splits once, prints the report and writes it."""
    from tfmusic.console import console
    from tfmusic.folders import write_text
    from tfmusic.records.manifest import Manifest
    from tfmusic.reports.evaluation import format_report
    from tfmusic.reports.predictions import predictions_table
    from tfmusic.rundir import open_run, write_json

    folder = open_run(args.run_dir)
    used = folder.read_json(folder.records)
    manifest = Manifest.read(args.records or Path(used["folder"]))
    same = manifest.tracks_sha256 == used["tracks_sha256"]
    splits = args.split or (used["validation"] if same else [])
    if not splits:
        why = "trained on every fold" if same else f"not trained on {manifest.folder}"
        raise UsageError(
            f"{folder.path}: {why}, so pass --split with what to score; found {', '.join(manifest.splits)}."
            " Records of held-out tracks are built with build-records --contract RUN"
        )
    manifest.verify(splits)
    evaluation = _evaluate(folder, manifest, splits)
    trained_on = len(set(evaluation.track_ids) & set(used["training_tracks"]))
    note = _note(trained_on, chosen_on=same and set(splits) <= set(used["validation"]))
    report = evaluation.report() | {"splits": list(splits), "tracks_trained_on": trained_on, "note": note}
    console.say(format_report(report))
    console.say(report["note"])
    out = args.out or folder.evaluation
    write_json(report, out / "report.json")
    predicted, targets = evaluation.answers()
    scores = evaluation.scores[evaluation.aggregator]
    table = predictions_table(evaluation.track_ids, predicted, scores, evaluation.contract.labels, targets)
    write_text(out / "predictions.csv", table.to_csv(index=False))
    console.say(f"report: {out}")


def _evaluate(folder: "RunDir", manifest: "Manifest", splits: Sequence[str]) -> "Evaluation":
    start_tensorflow()
    from tfmusic.inputs.tracks import score_splits
    from tfmusic.reports.evaluation import Evaluation
    from tfmusic.serving.predict import PREDICT_BATCH, load_run

    loaded = load_run(folder)
    different = loaded.contract.difference(manifest.contract)
    if different:
        raise RecordsError(f"{manifest.folder}: must keep the contract of the model in {folder.path}: {different}")
    scored = score_splits(
        manifest,
        splits,
        loaded.model.predict_on_batch,
        frames=loaded.contract.frames,
        hop_frames=loaded.contract.hop_frames,
        batch_size=PREDICT_BATCH,
    )
    return Evaluation.of(
        loaded.contract,
        loaded.calibration,
        aggregator=loaded.aggregator,
        top_k=loaded.top_k,
        track_ids=scored.track_ids,
        logits=scored.logits,
        targets=scored.targets,
    )


def _note(trained_on: int, *, chosen_on: bool) -> str:
    """Returns what a reader must know before believing the number."""
    if trained_on:
        return f"note: the model was TRAINED on {trained_on} of these tracks: this is no estimate for new music"
    if chosen_on:
        return (
            "note: best epoch and threshold were chosen on these validation tracks: new music will score a little lower"
        )
    return "note: no track of these, by its id, was trained on"
