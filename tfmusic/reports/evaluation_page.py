"""report.html: an evaluation as a page, metrics first, then labels, calibration, tracks, training and splits.

`comparison_page` sets several runs side by side: metrics with intervals, learning curves, differences of their configs.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from markupsafe import Markup

from tfmusic.config.loading import load_config
from tfmusic.core.rundir import RunDir
from tfmusic.core.windows import segment_starts
from tfmusic.evaluation.compare import HEADER, compare, leaves, read_reports
from tfmusic.evaluation.evaluate import Evaluation
from tfmusic.records.format import holds_copies
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import StoredTrack, iterate_tracks
from tfmusic.reports.page import render, short_name, without_paths
from tfmusic.reports.svg import N_SERIES, Line, interval_chart, line_chart, track_chart
from tfmusic.scoring.metrics import reliability, threshold_curve, track_f1
from tfmusic.scoring.ranking import curves
from tfmusic.scoring.timeline import timeline

MAX_TRACKS = 4  # with the worst, and with the best predictions
_MAX_LABELS = 20
_MAX_CLASSES = 30  # of a confusion matrix; a larger one cannot be read
_MAX_LINES = 4


@dataclass(frozen=True)
class TrackView:
    """A track of the page: its prediction and true labels as text, its picture, and the legend of the picture."""

    track_id: str
    prediction: str
    truth: str
    counts: str
    chart: Markup
    legend: list[tuple[str, float, bool]]


def evaluation_page(evaluation: Evaluation, report: dict[str, Any], run: RunDir, manifest: Manifest) -> str:
    """Returns report.html.

    Args:
        evaluation: the scores.
        report: the content of report.json.
        run: the run that was evaluated, for its learning curves, config and environment.
        manifest: the records of the evaluated tracks, for their spectrograms.
    """
    scores = evaluation.track_scores
    environment = run.read_json(run.environment) if run.environment.is_file() else {}
    return render(
        "report.html",
        name=short_name(run.path),
        report=report,
        note=report["note"].removeprefix("note: "),
        kind=evaluation.contract.kind,
        window_s=evaluation.contract.frames / evaluation.contract.frames_per_s,
        labels=(labels := _label_rows(report["labels"])),
        curves=_curve_charts(evaluation, scores, [row["name"] for row in labels]),
        classes=_classes(labels, run, manifest),
        n_shown_labels=_MAX_LABELS,
        confusion=_confusion(report),
        confused=_confused(report),
        threshold=_threshold_chart(evaluation, scores),
        calibration=_calibration(evaluation, scores),
        learning=learning_charts([run]),
        ends=_ends(evaluation, scores, manifest),
        splits=_splits(manifest, report["splits"]),
        skipped=len(manifest.skipped),
        config=without_paths(run.config.read_text(encoding="utf-8")),
        environment=environment,
    )


def learning_charts(runs: Sequence[RunDir]) -> list[tuple[str, Markup]]:
    """Returns charts of loss and validation metric by epoch; none for ensembles.

    Each run has its own colour, up to `N_SERIES` runs; the folds of a cross-validation are fainter lines.
    """
    charts = []
    for key, what in (("loss", "training loss"), ("validation", "validation metric")):
        lines = [line for i, run in enumerate(runs[:N_SERIES]) for line in _learning_lines(run, key, i)]
        if lines:
            charts.append((what, line_chart(f"learning-{key}", lines, x_label="epoch", y_label=what)))
    return charts


def _learning_lines(run: RunDir, key: str, series: int) -> list[Line]:
    curves = [history for fold in (run.folds() or [run]) if (history := fold.history())]
    curves = [[row for row in curve if key in row] for curve in curves]
    opacity = 1.0 if len(curves) == 1 else 0.55
    return [
        Line([row["epoch"] for row in curve], [row[key] for row in curve], "", f"series{series + 1}", opacity)
        for curve in curves
        if curve
    ]


def _label_rows(labels: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [{"name": name} | values for name, values in labels.items()]
    return sorted(rows, key=lambda row: -row["support"])


def _confusion(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of the confusion matrix, with shares of the true class; none where it is too large to read."""
    if not 1 < len(report.get("confusion", ())) <= _MAX_CLASSES:
        return []
    return [
        {"name": name, "total": sum(row), "cells": [(count, count / max(sum(row), 1)) for count in row]}
        for name, row in zip(report["labels"], report["confusion"], strict=True)
    ]


def _confused(report: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Returns the most frequent confusions: true class, predicted class, tracks."""
    names = list(report["labels"])
    pairs = [
        (names[i], names[j], count)
        for i, row in enumerate(report.get("confusion", ()))
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:5]


def _curve_charts(evaluation: Evaluation, scores: np.ndarray, names: Sequence[str]) -> list[tuple[str, Markup]]:
    """Returns ROC and precision-recall of the labels that most tracks have; none where no label has both kinds."""
    places = [evaluation.contract.labels.index(name) for name in names]
    shown = [place for place in places if 0 < evaluation.targets[:, place].sum() < len(scores)][:N_SERIES]
    found = [curves(scores[:, place], evaluation.targets[:, place]) for place in shown]
    ids = [evaluation.contract.labels[place] for place in shown]

    def chart(key: str, x: str, y: str, x_label: str, y_label: str, *, has_diagonal: bool) -> Markup:
        lines = [
            Line(getattr(curve, x).tolist(), getattr(curve, y).tolist(), name, f"series{i}")
            for i, (name, curve) in enumerate(zip(ids, found, strict=True), 1)
        ]
        return line_chart(
            key, lines, x_label=x_label, y_label=y_label, has_diagonal=has_diagonal, x_range=(0, 1), y_range=(0, 1.02)
        )

    if not shown:
        return []
    return [
        ("ROC", chart("roc", "false_share", "recall", "false positive rate", "true positive rate", has_diagonal=True)),
        ("Precision-recall", chart("pr", "recall", "precision", "recall", "precision", has_diagonal=False)),
    ]


def _classes(labels: Sequence[dict[str, Any]], run: RunDir, manifest: Manifest) -> list[tuple[str, int, int]]:
    """Returns label, training tracks and evaluated tracks; none where the training records are others."""
    splits = run.read_json(run.records)["training"]
    if not set(splits) <= set(manifest.splits):
        return []
    counts = manifest.count_labels([split for split in splits if not holds_copies(split)])
    return [(row["name"], counts[row["name"]], row["support"]) for row in labels]


def _threshold_chart(evaluation: Evaluation, scores: np.ndarray) -> Markup | None:
    if evaluation.contract.kind == "single":
        return None
    curve = threshold_curve(scores, evaluation.targets, np.linspace(0, 1, 101))
    lines = [
        Line(curve.thresholds.tolist(), curve.f1.tolist(), "micro-F1", "series1"),
        Line(curve.thresholds.tolist(), curve.precision.tolist(), "precision", "series2"),
        Line(curve.thresholds.tolist(), curve.recall.tolist(), "recall", "series3"),
    ]
    return line_chart(
        "threshold", lines, x_label="threshold", y_label="over all tracks and tags", mark_x=0.5, x_range=(0, 1),
        y_range=(0, 1),
    )  # fmt: skip


def _calibration(evaluation: Evaluation, scores: np.ndarray) -> dict[str, Any]:
    """Returns the reliability diagram and the expected calibration error."""
    if evaluation.contract.kind == "single":
        confidence, hits = scores.max(1), evaluation.targets[np.arange(len(scores)), scores.argmax(1)]
    else:
        confidence, hits = scores.ravel(), evaluation.targets.ravel()
    bins = reliability(confidence, hits)
    line = Line(bins.score.tolist(), bins.share.tolist(), "", "series1", has_points=True)
    chart = line_chart(
        "calibration", [line], x_label="mean score", y_label="share of correct predictions", has_diagonal=True,
        x_range=(0, 1), y_range=(0, 1),
    )  # fmt: skip
    return {"chart": chart, "error": bins.error, "scores": int(bins.count.sum())}


def _ends(evaluation: Evaluation, scores: np.ndarray, manifest: Manifest) -> list[tuple[str, list[TrackView]]]:
    """Returns the tracks with the worst and the best predictions, with pictures; no wrong one is among the best."""
    order = np.argsort(_quality(evaluation, scores), kind="stable")
    n = min(MAX_TRACKS, len(order) // 2)
    is_right = (evaluation.scorer.decide(scores) & evaluation.targets).any(1)
    chosen = {"worst": order[:n].tolist(), "best": [place for place in order[::-1].tolist() if is_right[place]][:n]}
    chosen = {which: places for which, places in chosen.items() if places}
    names = {evaluation.track_ids[place] for places in chosen.values() for place in places}
    stored = _find(manifest, names)
    return [
        (which, [_view(evaluation, scores, place, stored[evaluation.track_ids[place]]) for place in places])
        for which, places in chosen.items()
    ]


def _quality(evaluation: Evaluation, scores: np.ndarray) -> np.ndarray:
    """Returns the quality of each prediction: the score of the true label; of tags F1, then the margin of scores."""
    targets = evaluation.targets
    if evaluation.contract.kind == "single":
        return np.asarray(scores[np.arange(len(scores)), targets.argmax(1)])
    others = np.maximum((~targets).sum(1), 1)
    margin = (scores * targets).sum(1) / np.maximum(targets.sum(1), 1) - (scores * ~targets).sum(1) / others
    f1 = track_f1(evaluation.scorer.decide(scores), targets)
    return np.asarray(f1 + 1e-3 * margin)


def _find(manifest: Manifest, names: set[str]) -> dict[str, list[StoredTrack]]:
    """Returns the stored stretches of tracks by track id; each split is read only as far as needed."""
    stored: dict[str, list[StoredTrack]] = {}
    for split in manifest.splits:
        wanted = names.intersection(manifest.track_ids([split])) - set(stored)
        tracks = groupby(iterate_tracks(manifest, split), key=lambda stretch: stretch.track_id)
        while wanted:
            name, stretches = next(tracks)
            if name in wanted:
                stored[name] = list(stretches)
                wanted.remove(name)
    return stored


def _view(evaluation: Evaluation, scores: np.ndarray, place: int, stretches: list[StoredTrack]) -> TrackView:
    contract, labels = evaluation.contract, evaluation.contract.labels
    track_scores, truth = scores[place], np.flatnonzero(evaluation.targets[place]).tolist()
    shown = _shown(track_scores, truth)
    codes = np.concatenate([stretch.codes for stretch in stretches])
    lengths = [len(stretch.codes) for stretch in stretches]
    begins = np.cumsum([0, *lengths[:-1]])  # parts of the track that are not stored are left out
    starts = np.concatenate(
        [
            begin + segment_starts(length, frames=contract.frames, hop_frames=contract.hop_frames)
            for begin, length in zip(begins, lengths, strict=True)
        ]
    )
    line = timeline(evaluation.windows_of(place), starts, frames=contract.frames, n_frames=len(codes))
    predicted = np.flatnonzero(evaluation.scorer.decide(track_scores[None])[0]).tolist()
    chart = track_chart(
        f"track-{place}",
        codes,
        contract,
        edges_s=line.edges / contract.frames_per_s,
        scores=line.scores[:, shown],
    )
    return TrackView(
        stretches[0].track_id,
        ", ".join(labels[i] for i in predicted) or "no tag",
        ", ".join(labels[i] for i in truth),
        _counts(set(predicted), set(truth)) if contract.kind == "multi" else "",
        chart,
        [(labels[i], float(track_scores[i]), i in truth) for i in shown],
    )


def _counts(predicted: set[int], truth: set[int]) -> str:
    return f"{len(predicted & truth)} of {len(truth)} true tags found, {len(predicted - truth)} wrong"


def _shown(scores: np.ndarray, truth: list[int]) -> list[int]:
    """Returns the labels to draw: true labels with the highest scores, then any labels; highest score first."""
    order = np.argsort(-scores, kind="stable").tolist()
    first = [i for i in order if i in truth][: _MAX_LINES // 2]
    shown = first + [i for i in order if i not in first][: _MAX_LINES - len(first)]
    return sorted(shown, key=order.index)


def _splits(manifest: Manifest, scored: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "tracks": split.tracks, "segments": split.segments, "is_scored": name in scored}
        for name, split in manifest.splits.items()
    ]


_MAX_LABELS = 20


def comparison_page(runs: Sequence[RunDir]) -> str:
    """Returns the page; raises RunError where a run has not been evaluated."""
    names = [short_name(run.path) for run in runs]
    rows = iter(compare(runs))
    table = [(name, *next(rows)[1:]) for run, name in zip(runs, names, strict=True) for _ in read_reports(run)]
    return render(
        "comparison.html",
        names=names,
        header=HEADER,
        table=[[without_paths(cell) for cell in row] for row in table],
        tasks=_tasks(runs, names),
        learning=learning_charts(runs),
        n_series=N_SERIES,
        n_labels=_MAX_LABELS,
        differences=_differences(runs),
    )


def _tasks(runs: Sequence[RunDir], names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns for each task the chart of its runs and their F1 by label."""
    reports: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for run, name in zip(runs, names, strict=True):
        for report in read_reports(run):
            reports.setdefault(report["task"], []).append((name, report))
    return [_task(task, named) for task, named in reports.items()]


def _task(task: str, reports: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    values: list[tuple[str, float, float, float]] = [
        (name, report["value"], *report["interval"]) for name, report in reports
    ]
    chart: Markup = interval_chart(f"intervals-{task}", values, x_label=f"{reports[0][1]['metric']}, 95 % interval")
    labels: dict[str, int] = {}
    for _, report in reports:
        labels |= {label: entry["support"] for label, entry in report["labels"].items()}
    shown = sorted(labels, key=lambda label: -labels[label])[:_MAX_LABELS]
    rows = [
        (label, labels[label], [report["labels"].get(label, {}).get("f1") for _, report in reports]) for label in shown
    ]
    return {"name": task, "runs": [name for name, _ in reports], "chart": chart, "labels": rows}


def _differences(runs: Sequence[RunDir]) -> list[tuple[str, list[str]]]:
    """Returns the keys in which the configs differ, with the value of each run."""
    configs = [dict(leaves(load_config(run.config).model_dump(mode="json"))) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    rows = [
        (key, [without_paths(json.dumps(config.get(key), ensure_ascii=False)) for config in configs]) for key in keys
    ]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
