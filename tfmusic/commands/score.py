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
    parser.add_argument("predictions", type=Path, help="JSON list in data_idx order; null for a track without answer")
    parser.add_argument("answers", type=Path, help="JSON list in data_idx order")


def run(args: argparse.Namespace) -> None:
    """Prints the metric."""
    from tfmusic.console import console
    from tfmusic.datasets.airush import QUESTIONS
    from tfmusic.scoring.metrics import answer_counts, best_constant, bootstrap_interval, headline_name, score_answers

    kind = QUESTIONS[args.task].kind if args.task in QUESTIONS else args.task
    predicted, answers = _read(args.predictions, kind, may_lack=True), _read(args.answers, kind)
    if len(predicted) != len(answers):
        raise DataError(
            f"{args.predictions}: must have one answer for each of the {len(answers)} of {args.answers}."
            f" Received: {len(predicted)}"
        )
    _check_same_labels(predicted, answers, kind, args)
    n_missing = predicted.count(None)
    if n_missing:
        console.warn(
            f"{args.predictions}: {n_missing:,} of {len(answers):,} tracks have no answer, which counts as wrong"
        )
        predicted = [([] if kind == "multi" else None) if answer is None else answer for answer in predicted]
    value = score_answers(predicted, answers, kind)
    low, high = bootstrap_interval(answer_counts(predicted, answers, kind))
    constant = best_constant(answers, kind)
    console.result(
        task=args.task,
        metric=headline_name(kind),
        value=value,
        interval=[low, high],
        tracks=len(answers),
        without_answer=n_missing,
        baseline_value=constant,
    )
    console.show(
        f"{args.task}: {headline_name(kind)} {value:.4f} (95 % interval {low:.3f} to {high:.3f})"
        f" on {len(answers):,} tracks"
        f" (the majority baseline: {constant:.4f})"
    )
    console.say(f"predictions {args.predictions}, answers {args.answers}")


def _read(path: Path, kind: str, *, may_lack: bool = False) -> list[Any]:
    """Returns a list of names, or of lists of names; with `may_lack`, None for a track without an answer."""
    from tfmusic.datasets.airush_metadata import read_json

    answers = read_json(path)
    wanted, fits = ("names", _is_name) if kind == "single" else ("lists of names", _is_names)
    if isinstance(answers, list) and answers and all(fits(one) or (may_lack and one is None) for one in answers):
        return answers
    raise DataError(f"{path}: must be a JSON list of {wanted}, one a track, not empty")


def _check_same_labels(predicted: list[Any], answers: list[Any], kind: str, args: argparse.Namespace) -> None:
    """Raises DataError where not one name that is predicted is among the answers: they are of other tasks."""
    mine, theirs = _names(predicted, kind), _names(answers, kind)
    if mine and theirs and mine.isdisjoint(theirs):
        raise DataError(
            f"{args.predictions}: must be of the same task as {args.answers}, which has labels such as"
            f" {min(theirs)!r}. Received: {min(mine)!r} and such alone, so every answer would be wrong"
        )


def _names(answers: list[Any], kind: str) -> set[str]:
    given = [answer for answer in answers if answer is not None]
    return set(given) if kind == "single" else {name for answer in given for name in answer}


def _is_name(value: object) -> bool:
    return isinstance(value, str)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_name, value))
