"""What an evaluation says: headline metric, every aggregator, gain over segments, every label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfmusic.console import format_table
from tfmusic.core.contract import Contract
from tfmusic.scoring import metrics
from tfmusic.scoring.aggregate import AGGREGATORS
from tfmusic.scoring.calibrate import Calibration
from tfmusic.scoring.curves import metric_intervals


@dataclass(frozen=True)
class Evaluation:
    """Track scores of labelled tracks under every aggregator, and segment scores.

    Attributes:
        contract: labels and kind of the task.
        aggregator: the one that decides.
        track_ids: names of the tracks.
        targets: bool [n_tracks, n_labels].
        scores: [n_tracks, n_labels] by aggregator.
        segment_scores: [n_segments, n_labels] of all tracks.
        segment_targets: bool [n_segments, n_labels].
        segment_counts: int [n_tracks], how many of the segments each track has, one after the other.
        limits: how many tags an answer may have.
    """

    contract: Contract
    aggregator: str
    track_ids: tuple[str, ...]
    targets: np.ndarray
    scores: dict[str, np.ndarray]
    segment_scores: np.ndarray
    segment_targets: np.ndarray
    segment_counts: np.ndarray
    limits: metrics.Limits

    @classmethod
    def of(
        cls,
        contract: Contract,
        calibration: Calibration,
        *,
        aggregator: str,
        top_k: int,
        track_ids: tuple[str, ...],
        logits: Sequence[np.ndarray],
        targets: np.ndarray,
    ) -> "Evaluation":
        """Returns the evaluation of logits [n_segments, n_labels] of every track."""
        kind = contract.kind
        scores = {
            name: np.stack(
                [calibration.track_scores(track, kind=kind, aggregator=name, top_k=top_k) for track in logits]
            )
            for name in AGGREGATORS
        }
        return cls(
            contract,
            aggregator,
            track_ids,
            targets,
            scores,
            calibration.segment_scores(np.concatenate(logits), kind=kind),
            np.repeat(targets, [len(track) for track in logits], axis=0),
            np.array([len(track) for track in logits]),
            calibration.limits,
        )

    @classmethod
    def join(cls, parts: Sequence["Evaluation"]) -> "Evaluation":
        """Returns one evaluation of the tracks of several, which no two share; labels and aggregator are the same."""
        first = parts[0]
        if len(parts) == 1:
            return first
        return cls(
            first.contract,
            first.aggregator,
            tuple(track_id for part in parts for track_id in part.track_ids),
            np.concatenate([part.targets for part in parts]),
            {name: np.concatenate([part.scores[name] for part in parts]) for name in first.scores},
            np.concatenate([part.segment_scores for part in parts]),
            np.concatenate([part.segment_targets for part in parts]),
            np.concatenate([part.segment_counts for part in parts]),
            first.limits,
        )

    @property
    def headline(self) -> float:
        """The task's metric under the aggregator that decides."""
        return self._value(self.aggregator)

    def _value(self, aggregator: str) -> float:
        return metrics.headline(self.scores[aggregator], self.targets, self.contract.kind, limits=self.limits)

    def report(self) -> dict[str, Any]:
        """Returns everything as JSON-ready values."""
        kind, labels = self.contract.kind, self.contract.labels
        predicted = metrics.decide(self.scores[self.aggregator], kind, self.limits)
        # Those of a track sum to 1, so that long tracks count no more than short ones.
        weights = np.repeat(1 / self.segment_counts, self.segment_counts)
        segment = metrics.headline(self.segment_scores, self.segment_targets, kind, weights)
        per_label = metrics.per_label(predicted, self.targets)
        report: dict[str, Any] = {
            "task": self.contract.task,
            "metric": metrics.headline_name(kind),
            "value": self.headline,
            "interval": metrics.bootstrap_interval(metrics.answer_counts(*self.answers(), kind)),
            "aggregator": self.aggregator,
            "tracks": len(self.track_ids),
            "segments": len(self.segment_scores),
            "metrics": metric_intervals(predicted, self.targets, kind),
            "aggregators": {name: self._value(name) for name in self.scores},
            "segment_value": segment,
            "track_gain": self.headline - segment,
            "labels": {
                label: {name: values[i].item() for name, values in per_label.items()} for i, label in enumerate(labels)
            },
            "baseline_value": metrics.best_constant(self.answers()[1], kind),
        }
        if kind == "single":
            counts = metrics.confusion(predicted.argmax(1), self.targets.argmax(1), len(labels))
            report["confusion"] = counts.tolist()
        return report

    def segments_of(self, place: int) -> np.ndarray:
        """Returns the segment scores [n_segments, n_labels] of the track at a place."""
        first = int(self.segment_counts[:place].sum())
        return self.segment_scores[first : first + int(self.segment_counts[place])]

    def answers(self) -> tuple[list[Any], list[Any]]:
        """Returns predicted and true label names (lists of them for several tags) of every track."""
        predicted = metrics.decide(self.scores[self.aggregator], self.contract.kind, self.limits)
        labels, kind = self.contract.labels, self.contract.kind
        return metrics.names(predicted, labels, kind), metrics.names(self.targets, labels, kind)


def format_report(report: dict[str, Any]) -> str:
    """Returns the report as text for a terminal."""
    lines = [
        f"{report['task']}: {report['metric']} {report['value']:.4f}"
        f" (95 % interval {report['interval'][0]:.3f} to {report['interval'][1]:.3f}) on {report['tracks']:,} tracks of"
        f" {', '.join(report['splits'])} ({report['segments']:,} windows scored), aggregator {report['aggregator']}",
        f"single windows {report['segment_value']:.4f}, gain of whole tracks {report['track_gain']:+.4f};"
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


_SHOWN_LABELS = 15


def _label_rows(labels: dict[str, Any]) -> list[tuple[Any, ...]]:
    ordered = sorted(labels.items(), key=lambda item: -item[1]["support"])
    return [
        (name, entry["support"], float(entry["precision"]), float(entry["recall"]), float(entry["f1"]))
        for name, entry in ordered[:_SHOWN_LABELS]
    ]
