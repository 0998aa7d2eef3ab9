"""Evaluates a run on tracks that it was not trained on, and says how far the numbers can be trusted.

A plain run is scored on the splits asked for, or on its validation fold. A cross-validation is scored out of fold:
every track once, by the model of the fold that holds it out, with a scorer fitted on the other folds. Where the run has
a classical baseline, that is scored on the same tracks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tfmusic.config.loading import load_config
from tfmusic.config.sections import Config
from tfmusic.console import console, format_table
from tfmusic.core.contract import Contract
from tfmusic.core.rundir import RunDir
from tfmusic.errors import RecordsError, UsageError, printable
from tfmusic.evaluation.held_out import TrackLogits, fit_scorers_apart, score_held_out, score_splits
from tfmusic.inference.predict import predictions_table
from tfmusic.inference.predictor import BATCH_SIZES, load_run
from tfmusic.records.manifest import Manifest
from tfmusic.scoring import metrics
from tfmusic.scoring.metrics import metric_intervals
from tfmusic.scoring.ranking import area_intervals, label_areas
from tfmusic.scoring.track_scorer import TrackScorer

_SHOWN_LABELS = 15
_LABEL_COLUMNS = ("label", "tracks", "precision", "recall", "f1", "roc_auc", "pr_auc")


@dataclass(frozen=True)
class Evaluation:
    """Scores of labelled tracks under every aggregator, and of their windows.

    Attributes:
        contract: labels and kind of the task.
        scorer: how windows become tracks; of several folds the first one's, whose shifts are its own.
        track_ids: names of the tracks.
        targets: bool [n_tracks, n_labels].
        scores: [n_tracks, n_labels] by aggregator.
        window_scores: [n_windows, n_labels] of all tracks, one track after the other.
        window_counts: how many of the windows each track has, int [n_tracks].
    """

    contract: Contract
    scorer: TrackScorer
    track_ids: tuple[str, ...]
    targets: np.ndarray
    scores: Mapping[str, np.ndarray]
    window_scores: np.ndarray
    window_counts: np.ndarray

    @classmethod
    def of(cls, contract: Contract, scorer: TrackScorer, tracks: TrackLogits) -> "Evaluation":
        """Returns the evaluation of the logits of labelled tracks."""
        logits = tracks.logits
        return cls(
            contract,
            scorer,
            tracks.track_ids,
            tracks.targets,
            {name: np.stack([scorer.track_scores(track, name) for track in logits]) for name in scorer.aggregators},
            scorer.window_scores(np.concatenate(logits)),
            np.array([len(track) for track in logits]),
        )

    @classmethod
    def join(cls, parts: Sequence["Evaluation"]) -> "Evaluation":
        """Returns one evaluation of the tracks of several folds; no two share a track."""
        first = parts[0]
        return cls(
            first.contract,
            first.scorer,
            tuple(track_id for part in parts for track_id in part.track_ids),
            np.concatenate([part.targets for part in parts]),
            {name: np.concatenate([part.scores[name] for part in parts]) for name in first.scores},
            np.concatenate([part.window_scores for part in parts]),
            np.concatenate([part.window_counts for part in parts]),
        )

    @property
    def headline(self) -> float:
        """The metric of the task under the scorer's aggregator."""
        return self._value(self.scorer.aggregator)

    @property
    def track_scores(self) -> np.ndarray:
        """Scores of the tracks under the scorer's aggregator, [n_tracks, n_labels]."""
        return self.scores[self.scorer.aggregator]

    def report(self) -> dict[str, Any]:
        """Returns all numbers as JSON-ready values."""
        kind, labels = self.contract.kind, self.contract.labels
        predicted, (predicted_names, true_names) = self.scorer.decide(self.track_scores), self.names()
        per_label, window_value = metrics.per_label(predicted, self.targets), self._window_value()
        columns: dict[str, list[Any]] = {name: values.tolist() for name, values in per_label.items()}
        for name, areas in zip(("roc_auc", "pr_auc"), label_areas(self.track_scores, self.targets), strict=True):
            columns[name] = [value if np.isfinite(value) else None for value in areas.tolist()]
        report: dict[str, Any] = {
            "task": self.contract.task,
            "metric": metrics.headline_name(kind),
            "value": self.headline,
            "interval": metrics.bootstrap_interval(metrics.hits_and_totals(predicted_names, true_names, kind)),
            "aggregator": self.scorer.aggregator,
            "tracks": len(self.track_ids),
            "windows": len(self.window_scores),
            "metrics": metric_intervals(predicted, self.targets, kind)
            | area_intervals(self.track_scores, self.targets),
            "aggregators": {name: self._value(name) for name in self.scores},
            "window_value": window_value,
            "track_gain": self.headline - window_value,
            "labels": {label: {name: values[i] for name, values in columns.items()} for i, label in enumerate(labels)},
            "baseline_value": metrics.majority_baseline(true_names, kind),
        }
        if kind == "single":
            counts = metrics.confusion(predicted.argmax(1), self.targets.argmax(1), len(labels))
            report["confusion"] = counts.tolist()
        return report

    def compare(self, other: "Evaluation") -> dict[str, Any]:
        """Returns how far this evaluation is ahead of that of another model on the same tracks: JSON-ready values."""
        places = {track_id: place for place, track_id in enumerate(other.track_ids)}
        order, kind = [places[track_id] for track_id in self.track_ids], self.contract.kind
        (own, true), (others, _) = self.names(), other.names()
        counts = metrics.hits_and_totals(own, true, kind)
        against = metrics.hits_and_totals([others[place] for place in order], true, kind)
        return {
            "value": other.headline,
            "gain": self.headline - other.headline,
            "interval": metrics.bootstrap_interval(counts, against=against),
        }

    def windows_of(self, place: int) -> np.ndarray:
        """Returns the window scores [n_windows, n_labels] of the track at a place."""
        first = int(self.window_counts[:place].sum())
        return self.window_scores[first : first + int(self.window_counts[place])]

    def names(self) -> tuple[list[Any], list[Any]]:
        """Returns predicted and true label names of every track, lists of names where a track has several."""
        labels = self.contract.labels
        return self.scorer.names(self.track_scores, labels), metrics.names(self.targets, labels, self.contract.kind)

    def _value(self, aggregator: str) -> float:
        return metrics.headline(self.scorer.decide(self.scores[aggregator]), self.targets, self.contract.kind)

    def _window_value(self) -> float:
        """Returns the metric of single windows; those of a track weigh 1 together, as it does among tracks."""
        kind, counts = self.contract.kind, self.window_counts
        predicted, targets = metrics.decide(self.window_scores, kind), np.repeat(self.targets, counts, axis=0)
        return metrics.headline(predicted, targets, kind, np.repeat(1 / counts, counts))


def format_report(report: dict[str, Any]) -> str:
    """Returns the report as text for a terminal."""
    lines = [
        printable(
            f"{report['task']}: {report['metric']} {report['value']:.4f}"
            f" (95 % interval {report['interval'][0]:.3f} to {report['interval'][1]:.3f}) on {report['tracks']:,}"
            f" tracks of {', '.join(report['splits'])} ({report['windows']:,} windows scored), aggregator"
            f" {report['aggregator']}"
        ),
        f"single windows {report['window_value']:.4f}, gain of whole tracks {report['track_gain']:+.4f};"
        f" the majority baseline {report['baseline_value']:.4f}",
        *_baseline_line(report),
        *_fold_line(report),
        "",
        format_table(
            [(name, *values) for name, values in report["metrics"].items()], ("metric", "value", "low", "high")
        ),
        *_left_out_line(report["labels"]),
        "",
        format_table(list(report["aggregators"].items()), ("aggregator", report["metric"])),
        "",
        format_table(_label_rows(report["labels"]), _LABEL_COLUMNS),
    ]
    if len(report["labels"]) > _SHOWN_LABELS:
        lines.append(f"... {len(report['labels']) - _SHOWN_LABELS} more labels in report.json")
    return "\n".join(lines)


def _left_out_line(labels: dict[str, Any]) -> list[str]:
    """Returns the labels of which the areas under curves say nothing, as no track has them, or every track."""
    names = [name for name, entry in labels.items() if entry.get("roc_auc") is None]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (
        [printable(f"without ROC-AUC, as no scored track has them, or all: {', '.join(names[:5])}{more}")]
        if names
        else []
    )


def _baseline_line(report: dict[str, Any]) -> list[str]:
    """Returns how far the model is ahead of the classical baseline, if that was trained."""
    if "classical_baseline" not in report:
        return []
    baseline = report["classical_baseline"]
    low, high = baseline["interval"]
    lines = [
        f"the classical baseline {baseline['value']:.4f}, a linear layer on descriptors; this model"
        f" {baseline['gain']:+.4f} (95 % interval {low:+.3f} to {high:+.3f})"
    ]
    if baseline["gain"] < 0:
        lines.append(
            "note: the model is BEHIND its classical baseline: train it longer, begin with a pretrained backbone, or"
            " use the baseline itself, the run in its folder baseline"
        )
    elif low <= 0:
        lines.append("note: that lead over the classical baseline is within chance")
    return lines


def _fold_line(report: dict[str, Any]) -> list[str]:
    """Returns the values of the folds of a cross-validation with their mean and standard deviation."""
    if "folds" not in report:
        return []
    values = np.array(report["folds"])
    listed = " ".join(f"{value:.3f}" for value in values)
    return [f"folds {listed}: mean {values.mean():.4f}, standard deviation {values.std(ddof=1):.4f}"]


def _label_rows(labels: dict[str, Any]) -> list[tuple[Any, ...]]:
    ordered = sorted(labels.items(), key=lambda item: -item[1]["support"])
    return [
        (name, entry["support"], *("-" if entry.get(key) is None else float(entry[key]) for key in _LABEL_COLUMNS[2:]))
        for name, entry in ordered[:_SHOWN_LABELS]
    ]


@dataclass(frozen=True)
class EvaluationReport:
    """The evaluation of a task, and the JSON-ready report about it, with splits, audit and note."""

    evaluation: Evaluation
    report: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        """Every metric of the whole tracks by its name, the first one the task's own."""
        return {name: value for name, (value, *_) in self.report["metrics"].items()}

    @property
    def labels(self) -> pd.DataFrame:
        """A row for each label: precision, recall, F1, and support, the number of its tracks."""
        return pd.DataFrame.from_dict(self.report["labels"], orient="index")

    @property
    def predictions(self) -> pd.DataFrame:
        """A row for each track: prediction, target and scores, as in predictions.csv."""
        predicted, targets = self.evaluation.names()
        labels, scores = self.evaluation.contract.labels, self.evaluation.track_scores
        return predictions_table(self.evaluation.track_ids, predicted, scores, labels, targets)


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
    reports = _evaluate(run, manifest, splits, task, with_metadata=with_metadata)
    if run.baseline.calibration.is_file():
        for report, other in zip(reports, _evaluate(run.baseline, manifest, splits, task), strict=True):
            report.report["classical_baseline"] = report.evaluation.compare(other.evaluation)
    return reports


def _evaluate(
    run: RunDir, manifest: Manifest, splits: Sequence[str], task: str | None, *, with_metadata: bool = True
) -> list[EvaluationReport]:
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
        duplicates: are the same music as a training track of another id: equal bytes, or a name with another suffix.
    """

    scored: int
    trained_on: int
    in_backbone: int
    shared_group: int | None
    ungrouped: int
    duplicates: int = 0


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
        sum(part.duplicates for part in parts),
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
        len(track_ids & manifest.duplicates_of(used["training_tracks"])),
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
    if checked.duplicates:
        return (
            f"note: the model was trained on the same music as {checked.duplicates} of these tracks under other names:"
            " new music will score lower"
        )
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
    return "note: by their ids and files, none of these tracks was trained on"


def _fold_note(run: RunDir, checked: Audit, kind: str) -> str:
    """Returns what a reader must know of out-of-fold scores before believing them."""
    if checked.trained_on or checked.duplicates or checked.in_backbone:
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
    members = run.members()
    if not members:
        yield run
    for member in members:
        if member.config.is_file():
            yield from _trainings(member)


def _config(run: RunDir) -> Config:
    return load_config(run.config)
