"""`tfmusic evaluate RUN`: score a run on held-out tracks of its records."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.commands import arguments
from tfmusic.core.runtime import start_tensorflow

if TYPE_CHECKING:
    from tfmusic.core.rundir import RunDir
    from tfmusic.evaluation.evaluate import EvaluationReport
    from tfmusic.records.manifest import Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--records", help="records folder, or its URL (default the one the run was trained on)")
    parser.add_argument("--split", action="append", help="split to score; may be repeated (default: validation)")
    parser.add_argument("--task", help="of a model for several tasks, the one to score (default: all)")
    parser.add_argument("--without-metadata", action="store_true", help="score as if the tracks had no metadata")
    arguments.add_output(parser, "folder of the report (default RUN/evaluation, replaced each time)", metavar="FOLDER")


def run(args: argparse.Namespace) -> None:
    """Scores every track of the splits once, prints the report and writes it."""
    arguments.check_output_folder(args)
    from tfmusic.core.files import check_own_files
    from tfmusic.core.rundir import open_run
    from tfmusic.records.manifest import Manifest

    run_dir = open_run(args.run_dir)
    check_own_files(run_dir.path)
    records = args.records or Path(run_dir.read_json(run_dir.records)["folder"])  # a path: a file may name no URL
    manifest = Manifest.read(arguments.find_records(records))
    with_metadata = not args.without_metadata
    report(run_dir, manifest, splits=args.split or (), task=args.task, out=args.out, with_metadata=with_metadata)


def report(
    run_dir: "RunDir",
    manifest: "Manifest",
    *,
    splits: Sequence[str] = (),
    task: str | None = None,
    out: Path | None = None,
    with_metadata: bool = True,
) -> None:
    """Evaluates a run as `evaluation.evaluate` does; prints and writes the report of every task."""
    start_tensorflow()
    from tfmusic.evaluation.evaluate import evaluate

    reports = evaluate(run_dir, manifest, splits=splits, task=task, with_metadata=with_metadata)
    for result in reports:
        name = result.evaluation.contract.task
        folder = run_dir.report_folder(name)
        if not with_metadata:  # beside the run's own report, not in its place
            folder = folder.with_name(f"{folder.name}-without-metadata")
        if out is not None:
            folder = out / name if len(reports) > 1 else out
        _write(result, folder, run_dir, manifest)


def _write(result: "EvaluationReport", out: Path, run_dir: "RunDir", manifest: "Manifest") -> None:
    """Prints the report of a task and writes it, with its page and the predictions."""
    from tfmusic.console import console
    from tfmusic.core.files import write_json, write_text
    from tfmusic.evaluation.evaluate import format_report
    from tfmusic.reports.evaluation_page import evaluation_page

    evaluation, values = result.evaluation, result.report
    page = evaluation_page(evaluation, values, run_dir, manifest)  # first: where it fails, no half report is left
    console.result(report=values)
    console.show(*format_report(values).split("\n"))
    console.show(values["note"])
    write_json(out / "report.json", values)
    write_text(out / "predictions.csv", result.predictions.to_csv(index=False))
    write_text(out / "report.html", page)
    console.say(f"report: {out / 'report.html'}")
