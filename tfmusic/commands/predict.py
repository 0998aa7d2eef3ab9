"""`tfmusic predict RUN|EXPORT INPUT... [--out FILE]`: predictions for tracks."""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path

from tfmusic.commands import arguments
from tfmusic.errors import UsageError, printable


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
    parser.add_argument("--workers", type=arguments.positive, default=1, help="processes that decode (default 1)")
    arguments.add_output(
        parser,
        ".json: predictions in the order of the inputs; .csv or .jsonl: a line for each track, with id, path and"
        " scores, written as it goes; .npy: the scores [n_tracks, n_labels], and .decisions.npy beside it, in the order"
        " of the inputs and of the model's labels, as MediaEval's evaluation takes them",
    )
    parser.add_argument("--excel", action="store_true", help="begin a .csv with the mark by which Excel knows UTF-8")
    parser.add_argument("--resume", action="store_true", help="go on with the .csv or .jsonl file that --out names")


def run(args: argparse.Namespace) -> None:
    """Writes the predictions in the order of the inputs, also where some tracks cannot be read."""
    if args.resume:
        if args.overwrite or args.out is None or args.out.suffix not in (".csv", ".jsonl"):
            raise UsageError("--resume is for --out FILE.csv or FILE.jsonl, without --overwrite")
        args.overwrite = True  # with what is there
    arguments.check_output(args, ".json", ".csv", ".jsonl", ".npy")
    if args.excel and (args.out is None or args.out.suffix != ".csv"):
        raise UsageError(f"--excel is for --out FILE.csv. Received: {args.out or 'no --out'}")
    from tfmusic.console import console
    from tfmusic.core.files import check_target_file, locked, write_json
    from tfmusic.inference.inputs import find_tracks
    from tfmusic.inference.model_folder import choose_task, load_contract
    from tfmusic.inference.predict import PredictionFile, decisions_path, predict_tracks, write_matrices
    from tfmusic.pretrained.taggers import find_model

    is_matrix = args.out is not None and args.out.suffix == ".npy"
    if is_matrix:
        check_target_file(decisions_path(args.out), overwrite=args.overwrite)
    args.model = find_model(args.model)
    tracks = find_tracks(args.inputs)
    _warn_of_other_question(args.model, args.inputs, args.task)
    is_stream = args.out is not None and args.out.suffix in (".csv", ".jsonl")
    file = PredictionFile(args.out, resume=args.resume, with_mark=args.excel) if is_stream else None
    names, skipped, matrix = [], [], []
    try:
        # A file that is written as it goes has one writer at a time; a folder is not made before the first line.
        lock = locked(args.out) if is_stream and args.out.parent.is_dir() else nullcontext()
        with lock, console.progress("predict", len(tracks), "tracks") as bar:
            rows = predict_tracks(args.model, tracks, bar.advance, task=args.task, workers=args.workers, file=file)
            for row in rows:
                names.append(row.prediction)
                matrix += [row] if is_matrix else []
                skipped += [(row.track.track_id, row.skipped)] if row.skipped else []
    except KeyboardInterrupt:
        if file is not None:
            console.warn(f"{args.out}: the same command with --resume goes on after the tracks that it has")
        raise
    earlier = file.earlier if file is not None else {}
    skipped = [(name, reason) for name, (_, reason) in earlier.items() if reason] + skipped
    n_predicted = len(names) + len(earlier) - len(skipped)
    console.result(predicted=n_predicted)
    if args.out is None:
        paths = [printable(str(track.feature_path)) for track in tracks]
        console.result(tracks=[track.track_id for track in tracks], paths=paths, predictions=names)
        console.show(json.dumps(names, ensure_ascii=False))
    else:
        if is_matrix:
            contract = load_contract(args.model)
            write_matrices(args.out, matrix, contract.parts()[choose_task(contract, args.task)].contract.labels)
        elif file is None:
            write_json(args.out, names)
        console.result(out=args.out)
        console.say(f"{n_predicted:,} predictions: {args.out}" + (f", {len(earlier):,} earlier" if earlier else ""))
    arguments.fail_on_skipped(skipped, len(names) + len(earlier), lacks="prediction")


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
