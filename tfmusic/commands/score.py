"""`tfmusic score q2 PREDICTIONS ANSWERS`: the official metric of two answer files."""

import argparse
from pathlib import Path
from typing import Any

from tfmusic.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "task",
        choices=("q1", "q2", "q3", "single", "multi"),
        help="q1, q3, single: exact match; q2, multi: global micro-F1",
    )
    parser.add_argument("predictions", type=Path, help="JSON list in data_idx order")
    parser.add_argument("answers", type=Path, help="JSON list in data_idx order")


def run(args: argparse.Namespace) -> None:
    """Prints the metric."""
    from tfmusic.console import console
    from tfmusic.datasets.airush import QUESTIONS
    from tfmusic.scoring.metrics import answer_counts, best_constant, bootstrap_interval, headline_name, score_answers

    kind = QUESTIONS[args.task].kind if args.task in QUESTIONS else args.task
    predicted, answers = _read(args.predictions, kind), _read(args.answers, kind)
    if len(predicted) != len(answers):
        raise DataError(
            f"{args.predictions}: must have one answer for each of the {len(answers)} of {args.answers}."
            f" Received: {len(predicted)}"
        )
    value = score_answers(predicted, answers, kind)
    low, high = bootstrap_interval(answer_counts(predicted, answers, kind))
    constant = best_constant(answers, kind)
    console.tell(
        task=args.task,
        metric=headline_name(kind),
        value=value,
        interval=[low, high],
        tracks=len(answers),
        constant_answer_value=constant,
    )
    console.show(
        f"{args.task}: {headline_name(kind)} {value:.4f} (95 % interval {low:.3f} to {high:.3f})"
        f" on {len(answers):,} tracks"
        f" (the best single answer for all tracks: {constant:.4f})"
    )
    console.say(f"predictions {args.predictions}, answers {args.answers}")


def _read(path: Path, kind: str) -> list[Any]:
    from tfmusic.datasets.airush_metadata import read_json

    answers = read_json(path)
    fits = _is_name if kind == "single" else _is_names
    if not isinstance(answers, list) or not answers or not all(map(fits, answers)):
        wanted = "names" if kind == "single" else "lists of names"
        raise DataError(f"{path}: must be a JSON list of {wanted}, one a track, not empty")
    return answers


def _is_name(value: object) -> bool:
    return isinstance(value, str)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_name, value))
