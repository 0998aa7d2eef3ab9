"""The evaluation of a task: headline metric, every aggregator, gain over single windows, every label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfmusic.console import format_table
from tfmusic.core.contract import Contract
from tfmusic.evaluation.held_out import TrackLogits
from tfmusic.scoring import metrics
from tfmusic.scoring.metrics import metric_intervals
from tfmusic.scoring.track_scorer import TrackScorer

_SHOWN_LABELS = 15


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
        report: dict[str, Any] = {
            "task": self.contract.task,
            "metric": metrics.headline_name(kind),
            "value": self.headline,
            "interval": metrics.bootstrap_interval(metrics.hits_and_totals(predicted_names, true_names, kind)),
            "aggregator": self.scorer.aggregator,
            "tracks": len(self.track_ids),
            "windows": len(self.window_scores),
            "metrics": metric_intervals(predicted, self.targets, kind),
            "aggregators": {name: self._value(name) for name in self.scores},
            "window_value": window_value,
            "track_gain": self.headline - window_value,
            "labels": {
                label: {name: values[i].item() for name, values in per_label.items()} for i, label in enumerate(labels)
            },
            "baseline_value": metrics.majority_baseline(true_names, kind),
        }
        if kind == "single":
            counts = metrics.confusion(predicted.argmax(1), self.targets.argmax(1), len(labels))
            report["confusion"] = counts.tolist()
        return report

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
        f"{report['task']}: {report['metric']} {report['value']:.4f}"
        f" (95 % interval {report['interval'][0]:.3f} to {report['interval'][1]:.3f}) on {report['tracks']:,} tracks of"
        f" {', '.join(report['splits'])} ({report['windows']:,} windows scored), aggregator {report['aggregator']}",
        f"single windows {report['window_value']:.4f}, gain of whole tracks {report['track_gain']:+.4f};"
        f" the majority baseline {report['baseline_value']:.4f}",
        *_fold_line(report),
        "",
        format_table(list(report["aggregators"].items()), ("aggregator", report["metric"])),
        "",
        format_table(_label_rows(report["labels"]), ("label", "tracks", "precision", "recall", "f1")),
    ]
    if len(report["labels"]) > _SHOWN_LABELS:
        lines.append(f"... {len(report['labels']) - _SHOWN_LABELS} more labels in report.json")
    return "\n".join(lines)


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
        (name, entry["support"], float(entry["precision"]), float(entry["recall"]), float(entry["f1"]))
        for name, entry in ordered[:_SHOWN_LABELS]
    ]
