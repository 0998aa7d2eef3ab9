"""`tfmusic predict RUN|EXPORT INPUT... [--out FILE]`: predictions for tracks."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.commands import arguments
from tfmusic.errors import DataError

if TYPE_CHECKING:
    from tfmusic.inference.predict import Predictions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("model", type=Path, help="run folder or exported folder")
    parser.add_argument(
        "inputs",
        type=Path,
        nargs="+",
        help="AI Rush test folder, audio or .npy files, folders of them, or what tfmusic embed wrote",
    )
    parser.add_argument("--task", help="of a model for several tasks, the one to predict")
    arguments.add_output(parser, ".json: predictions in the order of the inputs; .csv: with track ids and scores")


def run(args: argparse.Namespace) -> None:
    """Writes the predictions in the order of the inputs, also where some tracks cannot be read."""
    arguments.check_output(args, ".json", ".csv")
    tracks = [track for path in args.inputs for track in arguments.find_tracks(path)]
    if not tracks:
        raise DataError(f"{', '.join(map(str, args.inputs))}: no tracks found")
    from tfmusic.console import console
    from tfmusic.inference.predict import predict_tracks

    _warn_of_other_question(args.model, args.inputs, args.task)
    with console.progress("predict", len(tracks), "tracks") as progress:
        predictions = predict_tracks(args.model, tracks, progress.advance, task=args.task)
    names = predictions.names()
    n_predicted = len(tracks) - len(predictions.skipped)
    console.result(predicted=n_predicted)
    if args.out is None:
        console.result(tracks=list(predictions.track_ids), predictions=names)
        console.show(json.dumps(names, ensure_ascii=False))
    else:
        _write(predictions, args.out)
        console.result(out=args.out)
        console.say(f"{n_predicted:,} predictions: {args.out}")
    skipped = [(predictions.track_ids[row], reason) for row, reason in sorted(predictions.skipped.items())]
    arguments.fail_on_skipped(skipped, len(tracks), lacks="prediction")


def _warn_of_other_question(model: Path, inputs: list[Path], task: str | None) -> None:
    from tfmusic.console import console
    from tfmusic.core.contract import Contract
    from tfmusic.datasets import airush

    if not (model / "contract.json").is_file():
        return
    task = task or Contract.load(model / "contract.json").task
    for path in inputs:
        question = airush.find_test(path)
        if task in airush.QUESTIONS and question not in (None, task):
            console.warn(f"{path} is the test part of {question}, the model predicts {task}")


def _write(predictions: "Predictions", path: Path) -> None:
    from tfmusic.core.files import write_json, write_text
    from tfmusic.inference.predict import predictions_table

    if path.suffix == ".json":
        return write_json(path, predictions.names())
    table = predictions_table(
        predictions.track_ids, predictions.names(), predictions.scores, predictions.contract.labels
    )
    return write_text(path, table.to_csv(index=False))
