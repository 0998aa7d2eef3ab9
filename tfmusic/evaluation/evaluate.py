"""Evaluates a run on tracks that it was not trained on, and says how far the numbers can be trusted.

A plain run is scored on the splits asked for, or on its validation fold. A cross-validation is scored out of fold:
every track once, by the model of the fold that holds it out, with a scorer fitted on the other folds.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfmusic.config.loading import load_config
from tfmusic.config.sections import Config
from tfmusic.console import console
from tfmusic.core.contract import Contract
from tfmusic.core.rundir import RunDir
from tfmusic.errors import RecordsError, UsageError
from tfmusic.evaluation.evaluation import Evaluation
from tfmusic.evaluation.held_out import fit_scorers_apart, score_held_out, score_splits
from tfmusic.inference.predictor import BATCH_SIZES, load_run
from tfmusic.records.manifest import Manifest


@dataclass(frozen=True)
class EvaluationReport:
    """The evaluation of a task, and the JSON-ready report about it, with splits, audit and note."""

    evaluation: Evaluation
    report: dict[str, Any]


def evaluate(
    run: RunDir, manifest: Manifest, *, splits: Sequence[str] = (), task: str | None = None, with_metadata: bool = True
) -> list[EvaluationReport]:
    """Returns a report for every task, or for one.

    Args:
        run: a finished run.
        manifest: the records to score, those of the training or others of the same contract.
        splits: which splits; without any, what the training has held out.
        task: the task to score; None for all that the model predicts and the records have labels of.
        with_metadata: whether a model with metadata gets that of the tracks.

    Raises:
        UsageError: the model or the records have no such task, or splits are needed.
        RunError, RecordsError: the run or the records are damaged, or do not fit each other.
    """
    used = run.read_json(run.records)
    tasks = _choose_tasks(run, manifest, task)
    is_same = manifest.tracks_sha256 == used["tracks_sha256"]
    if is_same and not splits and _config(run).training.fold == "all":
        return _evaluate_folds(run, manifest, tasks, with_metadata=with_metadata)
    splits = list(splits) or (used["validation"] if is_same else [])
    if not splits:
        reason = "trained on every fold" if is_same else f"not trained on {manifest.folder}"
        raise UsageError(
            f"{run.path}: {reason}, so pass --split with what to score; the records have"
            f" {', '.join(manifest.splits)}. Records of held-out tracks are built with build-records --contract RUN"
        )
    manifest.verify(splits)
    has_validation = is_same and set(splits) & set(used["validation"])
    chosen = _chosen_on_validation(run) if has_validation else ""
    return [_evaluate_task(run, manifest, splits, name, chosen, with_metadata=with_metadata) for name in tasks]


def _choose_tasks(run: RunDir, manifest: Manifest, task: str | None) -> list[str]:
    predicted, labelled = Contract.load(run.contract).parts(), manifest.contract.parts()
    both = [name for name in predicted if name in labelled]
    if not both or task not in (None, *both):
        raise UsageError(
            f"{run.path}: --task must be one that the model predicts ({', '.join(predicted)}) and the records have"
            f" labels of ({', '.join(labelled)}). Received: {task or 'none'}"
        )
    return [task] if task else both


def _evaluate_task(
    run: RunDir, manifest: Manifest, splits: Sequence[str], task: str, chosen: str, *, with_metadata: bool
) -> EvaluationReport:
    predictor, stored = load_run(run, task), manifest.contract.parts()[task]
    difference = predictor.contract.difference(stored.contract)
    if difference:
        raise RecordsError(f"{manifest.folder}: must keep the contract of the model in {run.path}: {difference}")
    with console.progress("score", len(manifest.track_ids(splits)), "tracks") as progress:
        tracks = score_splits(
            manifest,
            splits,
            predictor.model.predict_on_batch,
            predictor.contract,
            batch_size=BATCH_SIZES[-1],
            with_metadata=with_metadata,
            on_track=progress.advance,
        ).part(stored.columns, has_own_logits=True)
    evaluation = Evaluation.of(predictor.contract, predictor.scorer, tracks)
    checked = audit([(run, tracks.track_ids)], manifest)
    note = _note(checked, chosen=chosen)
    return _report(evaluation, splits, checked, note, with_metadata=with_metadata)


def _evaluate_folds(
    run: RunDir, manifest: Manifest, tasks: Sequence[str], *, with_metadata: bool
) -> list[EvaluationReport]:
    n_tracks = sum(len(manifest.track_ids(fold.read_json(fold.records)["validation"])) for fold in run.folds())
    with console.progress("score", n_tracks, "tracks") as progress:
        held_out = score_held_out(run, manifest, with_metadata=with_metadata, on_track=progress.advance)
    options, reports = _config(run).evaluation, []
    for task in tasks:
        contract, folds = held_out.contract.parts()[task].contract, held_out.part(task)
        scorers = fit_scorers_apart(options, contract.kind, folds)
        parts = [Evaluation.of(contract, scorer, fold) for fold, scorer in zip(folds, scorers, strict=True)]
        scored = [(fold_run, fold.track_ids) for fold_run, fold in zip(run.folds(), folds, strict=True)]
        checked = audit(scored, manifest)
        note = _fold_note(run, checked, contract.kind)
        splits = [f"fold{number}" for number in range(len(folds))]
        report = _report(Evaluation.join(parts), splits, checked, note, with_metadata=with_metadata)
        report.report["folds"] = [part.headline for part in parts]
        reports.append(report)
    return reports


def _report(
    evaluation: Evaluation, splits: Sequence[str], checked: "Audit", note: str, *, with_metadata: bool
) -> EvaluationReport:
    return EvaluationReport(
        evaluation,
        evaluation.report()
        | {
            "splits": list(splits),
            "tracks_trained_on": checked.trained_on,
            "note": note if with_metadata else f"{note}; metadata left out",
            "audit": asdict(checked),
        },
    )


@dataclass(frozen=True)
class Audit:
    """What the scored tracks have in common with those that trained the model, in tracks.

    Attributes:
        scored: all of them.
        trained_on: have the id of a training track of the model that scored them.
        in_backbone: have the id of a track that trained the backbone or the embeddings that the model began with.
        shared_group: share an artist or album with a training track; None where the training records are gone.
        ungrouped: have neither a known artist nor a known album, so that nothing can be said.
    """

    scored: int
    trained_on: int
    in_backbone: int
    shared_group: int | None
    ungrouped: int


def audit(scored: Iterable[tuple[RunDir, Sequence[str]]], manifest: Manifest) -> Audit:
    """Returns the audit of tracks.

    Args:
        scored: runs, each with the ids of the tracks that it scored.
        manifest: the records of these tracks.
    """
    parts = [_audit_run(run, set(track_ids), manifest) for run, track_ids in scored]
    shared = [part.shared_group for part in parts if part.shared_group is not None]
    return Audit(
        sum(part.scored for part in parts),
        sum(part.trained_on for part in parts),
        sum(part.in_backbone for part in parts),
        sum(shared) if len(shared) == len(parts) else None,
        sum(part.ungrouped for part in parts),
    )


def _audit_run(run: RunDir, track_ids: set[str], manifest: Manifest) -> Audit:
    used = run.read_json(run.records)
    groups = [group for name, group in manifest.groups(list(manifest.splits)).items() if name in track_ids]
    training = _training_groups(used, manifest)
    return Audit(
        len(track_ids),
        len(track_ids & set(used["training_tracks"])),
        len(track_ids & set(used.get("backbone_tracks", ()))),
        None if training is None else sum(bool(group & training) for group in groups),
        sum(not group for group in groups),
    )


def _training_groups(used: dict[str, Any], manifest: Manifest) -> frozenset[str] | None:
    """Returns the artists and albums of the training tracks; None where their records are gone or have changed."""
    if used["tracks_sha256"] != manifest.tracks_sha256:
        try:
            manifest = Manifest.read(Path(used["folder"]))
        except RecordsError:
            return None
        if used["tracks_sha256"] != manifest.tracks_sha256:
            return None
    return frozenset().union(*manifest.groups(used["training"]).values())


def _note(checked: Audit, *, chosen: str) -> str:
    """Returns what a reader must know before believing the number; `chosen` was chosen on some of these tracks."""
    if checked.trained_on:
        return f"note: the model was TRAINED on {checked.trained_on} of these tracks: this is no estimate for new music"
    if checked.in_backbone:
        return (
            f"note: {checked.in_backbone} of these tracks have the ids of tracks that trained the backbone or the"
            " embeddings that the model began with; if they are the same tracks, new music will score lower"
        )
    if chosen:
        return (
            f"note: some of these tracks are validation tracks, on which the training has chosen: {chosen}; new music"
            " will score a little lower"
        )
    return "note: by their ids, none of these tracks was trained on"


def _fold_note(run: RunDir, checked: Audit, kind: str) -> str:
    """Returns what a reader must know of out-of-fold scores before believing them."""
    if checked.trained_on or checked.in_backbone:
        return _note(checked, chosen="")
    note = "note: every track was scored by the model whose fold holds it out"
    note += ", at a threshold of the other folds" if kind == "multi" else ""
    trainings = [training for fold in run.folds() for training in _trainings(fold)]
    if any(_config(training).training.select == "best" for training in trainings):
        note += "; epochs were chosen on these tracks, so new music will score a little lower"
    return note


def _chosen_on_validation(run: RunDir) -> str:
    """Returns what a training has chosen on its validation tracks, as text; empty for nothing."""
    kinds = [part.contract.kind for part in Contract.load(run.contract).parts().values()]
    chosen = []
    if any(_config(training).training.select == "best" for training in _trainings(run)):
        chosen.append("best epoch")
    if run.ensemble.is_file() and not run.folds():
        chosen.append("shares of the members")
    if "multi" in kinds and _config(run).evaluation.calibrate:
        chosen.append("threshold")
    return " and ".join(chosen)


def _trainings(run: RunDir) -> Iterator[RunDir]:
    """Yields the trainings that a run is made of: itself, or those of the members of an ensemble."""
    if not run.ensemble.is_file():
        yield run
        return
    for member in run.read_json(run.ensemble)["members"]:
        folder = RunDir(run.path / member["run"])
        if folder.config.is_file():
            yield from _trainings(folder)


def _config(run: RunDir) -> Config:
    return load_config(run.config)
