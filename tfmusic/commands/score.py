"""`tfmusic score q2 PREDICTIONS LABELS`: the official metric of a file of predictions."""

import argparse
from dataclasses import asdict
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "task",
        choices=("q1", "q2", "q3", "single", "multi"),
        help="q1, q3, single: exact match; q2, multi: global micro-F1",
    )
    parser.add_argument(
        "predictions",
        type=Path,
        metavar="PREDICTIONS",
        help="JSON list in data_idx order, null for a track without prediction; or the .csv of predict, with scores",
    )
    parser.add_argument(
        "labels",
        type=Path,
        metavar="LABELS",
        help="true labels: a JSON list in data_idx order, or a table such as train_label",
    )
    parser.add_argument(
        "--share", type=_share, default=1.0, help="score the first part of the list alone, as .25 (default 1)"
    )


def _share(text: str) -> float:
    if not 0 < (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return value


def run(args: argparse.Namespace) -> None:
    """Prints the metric."""
    from tfmusic.console import console
    from tfmusic.datasets.airush import QUESTIONS
    from tfmusic.evaluation.score import score_files

    kind = QUESTIONS[args.task].kind if args.task in QUESTIONS else args.task
    score = score_files(args.predictions, args.labels, kind, args.share)
    if score.without_prediction:
        console.warn(
            f"{args.predictions}: {score.without_prediction:,} of {score.tracks:,} tracks have no prediction, which"
            " counts as wrong"
        )
    if score.without_scores:
        names = ", ".join(score.without_scores[:5]) + (", ..." if len(score.without_scores) > 5 else "")
        console.warn(
            f"{args.predictions}: no scores of {len(score.without_scores)} true labels, left out of areas: {names}"
        )
    console.result(task=args.task, **asdict(score))
    low, high = score.interval
    console.show(
        f"{args.task}: {score.metric} {score.value:.4f} (95 % interval {low:.3f} to {high:.3f}) on {score.tracks:,}"
        f" tracks (the majority baseline: {score.baseline_value:.4f})"
    )
    if score.areas:
        console.table([(name, *values) for name, values in score.areas.items()], ("metric", "value", "low", "high"))
    console.say(f"predictions {args.predictions}, labels {args.labels}")
