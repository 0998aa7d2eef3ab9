"""`tfmusic evaluate RUN`: score a run on held-out tracks of its records."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmusic.commands import arguments
from tfmusic.core.runtime import start_tensorflow
from tfmusic.errors import RecordsError, UsageError

if TYPE_CHECKING:
    from tfmusic.config.sections import Config
    from tfmusic.core.rundir import RunDir
    from tfmusic.evaluation.evaluation import Evaluation
    from tfmusic.records.manifest import Manifest


_WITHOUT = "; metadata left out"
DEFAULTS: dict[str, Any] = {"records": None, "split": None, "task": None, "out": None, "without_metadata": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--records", help="records folder, or its URL (default the one the run was trained on)")
    parser.add_argument(
        "--split", action="append", help="split to score; may stand several times (default: validation)"
    )
    parser.add_argument("--task", help="of a model for several tasks, the one to score (default: all)")
    parser.add_argument("--without-metadata", action="store_true", help="score as if the tracks had no metadata")
    parser.add_argument("--out", type=Path, help="folder of the report (default RUN/evaluation)")


def run(args: argparse.Namespace) -> None:
    """Scores every track of the splits once, prints the report and writes it."""
    from tfmusic.config.loading import load_config
    from tfmusic.core.rundir import open_run
    from tfmusic.evaluation.audit import audit
    from tfmusic.records.manifest import Manifest

    folder = open_run(args.run_dir)
    used = folder.read_json(folder.records)
    manifest = Manifest.read(arguments.find_records(args.records or used["folder"]))
    same = manifest.tracks_sha256 == used["tracks_sha256"]
    tasks = _tasks(folder, manifest, args.task)
    if same and not args.split and load_config(folder.config).training.fold == "all":
        return report_folds(folder, manifest, tasks, args.out, with_metadata=not args.without_metadata)
    splits = args.split or (used["validation"] if same else [])
    if not splits:
        why = "trained on every fold" if same else f"not trained on {manifest.folder}"
        raise UsageError(
            f"{folder.path}: {why}, so pass --split with what to score; found {', '.join(manifest.splits)}."
            " Records of held-out tracks are built with build-records --contract RUN"
        )
    manifest.verify(splits)
    trained_on = set(manifest.track_ids(splits)) & set(used["training_tracks"])
    in_backbone = set(manifest.track_ids(splits)) & set(used.get("backbone_tracks", ()))
    chosen = _chosen(folder) if same and set(splits) <= set(used["validation"]) else ""
    note = _note(len(trained_on), len(in_backbone), chosen=chosen)
    note += _WITHOUT if args.without_metadata else ""
    for task in tasks:
        evaluation = _evaluate(folder, manifest, splits, task, with_metadata=not args.without_metadata)
        seen = len(trained_on & set(evaluation.track_ids))
        report = evaluation.report() | {"splits": list(splits), "tracks_trained_on": seen, "note": note}
        report["audit"] = audit([(folder, list(evaluation.track_ids))], manifest).to_dict()
        with_metadata = not args.without_metadata
        out = _report_folder(folder, task, tasks, args.out, with_metadata=with_metadata)
        _write(evaluation, report, out, folder, manifest)
    return None


def report_folds(
    folder: "RunDir",
    manifest: "Manifest",
    tasks: Sequence[str] | None = None,
    out: Path | None = None,
    *,
    with_metadata: bool = True,
) -> None:
    """Reports a cross-validation: every track by the model of the fold that holds it out, once."""
    start_tensorflow()
    from tfmusic.console import console
    from tfmusic.evaluation.audit import audit
    from tfmusic.evaluation.evaluation import Evaluation
    from tfmusic.evaluation.held_out import fit_scorers_apart, score_held_out

    total = sum(len(manifest.track_ids(fold.read_json(fold.records)["validation"])) for fold in folder.folds())
    with console.progress("score", total, "tracks") as progress:
        held_out = score_held_out(folder, manifest, with_metadata=with_metadata, on_track=progress.advance)
    options = _config_of(folder).evaluation
    tasks = tasks or list(held_out.contract.parts())
    for task in tasks:
        folds, contract = held_out.part(task), held_out.contract.parts()[task].contract
        parts = [
            Evaluation.of(
                contract,
                scorer,
                track_ids=fold.track_ids,
                logits=fold.logits,
                targets=fold.targets,
            )
            for fold, scorer in zip(folds, fit_scorers_apart(options, contract.kind, folds), strict=True)
        ]
        evaluation = Evaluation.join(parts)
        values = [part.headline for part in parts]
        found = audit([(run, list(fold.track_ids)) for run, fold in zip(folder.folds(), folds, strict=True)], manifest)
        note = _fold_note(folder, found.trained_on, found.in_backbone, contract.kind) + (
            "" if with_metadata else _WITHOUT
        )
        splits = [f"fold{number}" for number in range(len(folds))]
        report = evaluation.report() | {"splits": splits, "folds": values, "tracks_trained_on": found.trained_on}
        report |= {"note": note, "audit": found.to_dict()}
        _write(
            evaluation, report, _report_folder(folder, task, tasks, out, with_metadata=with_metadata), folder, manifest
        )


def _fold_note(folder: "RunDir", seen: int, in_backbone: int, kind: str) -> str:
    """Returns what a reader must know of out-of-fold scores before believing them."""
    if seen or in_backbone:
        return _note(seen, in_backbone, chosen="")
    note = "note: every track was scored by the model whose fold holds it out"
    note += ", at a threshold of the other folds" if kind == "multi" else ""
    members = [one for fold in folder.folds() for one in _members(fold)]
    if any(_config_of(one).training.select == "best" for one in members):
        note += "; epochs were chosen on these tracks, so new music will score a little lower"
    return note


def _members(run: "RunDir") -> "list[RunDir]":
    """Returns the trainings that a run is made of: itself, or the members of an ensemble."""
    from tfmusic.core.rundir import RunDir

    if not run.ensemble.is_file():
        return [run]
    found = [RunDir(run.path / member["run"]) for member in run.read_json(run.ensemble)["members"]]
    return [one for member in found if member.config.is_file() for one in _members(member)]


def _config_of(run: "RunDir") -> "Config":
    """Returns the config that a run was trained with."""
    from tfmusic.config.loading import load_config

    return load_config(run.config)


def _report_folder(
    folder: "RunDir", task: str, tasks: Sequence[str], asked: Path | None, *, with_metadata: bool
) -> Path:
    """Returns where a report goes; one without metadata stands apart, so that it is not taken for the run's own."""
    if asked:
        return asked / task if len(tasks) > 1 else asked
    out = folder.report_folder(task)
    return out if with_metadata else out.with_name(f"{out.name}-without-metadata")


def _tasks(folder: "RunDir", manifest: "Manifest", asked: str | None) -> list[str]:
    """Returns the tasks to score: the one asked for, or all that the model answers and the records have labels of."""
    from tfmusic.core.contract import Contract

    answered, labelled = Contract.load(folder.contract).parts(), manifest.contract.parts()
    both = [task for task in answered if task in labelled]
    if not both or asked not in (None, *both):
        raise UsageError(
            f"{folder.path}: --task must be one that the model answers ({', '.join(answered)}) and the records have"
            f" labels of ({', '.join(labelled)}). Received: {asked or 'none'}"
        )
    return [asked] if asked else both


def _write(evaluation: "Evaluation", report: dict[str, Any], out: Path, folder: "RunDir", manifest: "Manifest") -> None:
    """Prints the report of a task and writes it, its page and the predictions."""
    from tfmusic.console import console
    from tfmusic.core.files import write_json, write_text
    from tfmusic.evaluation.evaluation import format_report
    from tfmusic.inference.predict import predictions_table
    from tfmusic.reports.evaluation_page import evaluation_page

    page = evaluation_page(evaluation, report, folder, manifest)  # first: a fault in it leaves no half report
    console.result(report=report)
    console.show(format_report(report))
    console.show(report["note"])
    write_json(out / "report.json", report)
    predicted, targets = evaluation.answers()
    table = predictions_table(
        evaluation.track_ids, predicted, evaluation.track_scores, evaluation.contract.labels, targets
    )
    write_text(out / "predictions.csv", table.to_csv(index=False))
    write_text(out / "report.html", page)
    console.say(f"report: {out / 'report.html'}")


def _evaluate(
    folder: "RunDir", manifest: "Manifest", splits: Sequence[str], task: str, *, with_metadata: bool
) -> "Evaluation":
    start_tensorflow()
    from tfmusic.console import console
    from tfmusic.evaluation.evaluation import Evaluation
    from tfmusic.evaluation.held_out import score_splits
    from tfmusic.inference.predictor import BATCH_SIZES, load_run

    loaded, stored = load_run(folder, task), manifest.contract.parts()[task]
    different = loaded.contract.difference(stored.contract)
    if different:
        raise RecordsError(f"{manifest.folder}: must keep the contract of the model in {folder.path}: {different}")
    with console.progress("score", len(manifest.track_ids(splits)), "tracks") as progress:
        scored = score_splits(
            manifest,
            splits,
            loaded.model.predict_on_batch,
            loaded.contract,
            batch_size=BATCH_SIZES[-1],
            with_metadata=with_metadata,
            on_track=progress.advance,
        ).part(stored.columns, has_own_logits=True)
    return Evaluation.of(
        loaded.contract,
        loaded.scorer,
        track_ids=scored.track_ids,
        logits=scored.logits,
        targets=scored.targets,
    )


def _chosen(run: "RunDir") -> str:
    """Returns what a training has chosen on its validation tracks, or nothing."""
    from tfmusic.core.contract import Contract

    members = [_config_of(one).training.select for one in _members(run)]
    chosen = ["best epoch"] if "best" in members else []
    chosen += ["shares of the members"] if run.ensemble.is_file() and not run.folds() else []
    kinds = [part.contract.kind for part in Contract.load(run.contract).parts().values()]
    chosen += ["threshold"] if "multi" in kinds and _config_of(run).evaluation.calibrate else []
    return " and ".join(chosen)


def _note(trained_on: int, in_backbone: int, *, chosen: str) -> str:
    """Returns what a reader must know before believing the number."""
    if trained_on:
        return f"note: the model was TRAINED on {trained_on} of these tracks: this is no estimate for new music"
    if in_backbone:
        return (
            f"note: tracks of the same names as {in_backbone} of these have trained the backbone or the embeddings"
            " that the model began with: if they are the same, new music will score lower"
        )
    if chosen:
        return f"note: chosen on these validation tracks: {chosen}; new music will score a little lower"
    return "note: no track of these, by its id, was trained on"
