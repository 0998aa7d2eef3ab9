"""Several runs side by side: what was trained how, and what came out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmusic.config.loading import load_config
from tfmusic.core.rundir import RunDir, reading
from tfmusic.errors import RunError

HEADER = ("run", "task", "model", "seed", "epochs", "scored on", "metric", "value", "95 % interval", "folds", "seconds")


def compare(runs: Sequence[RunDir]) -> list[tuple[str, ...]]:
    """Returns a row for every run and task, from its last evaluation.

    Raises:
        RunError: a run has not been evaluated.
    """
    rows = []
    for run in runs:
        with reading(run.evaluation):
            rows += [_row(run, report) for report in read_reports(run)]
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns the rows as a Markdown table."""
    lines = [HEADER, ["---"] * len(HEADER), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read_reports(run: RunDir) -> list[dict[str, Any]]:
    """Returns what the last evaluation of a run said of every task; raises RunError where it has none."""
    found = sorted(run.evaluation.rglob("report.json"))
    if not found:
        raise RunError(f"{run.path}: has no evaluation. `tfmusic evaluate {run.path}` makes one")
    return [run.read_json(path) for path in found]


def _row(run: RunDir, report: dict[str, Any]) -> tuple[str, ...]:
    config = load_config(run.config)
    if "interval" not in report:
        raise RunError(f"{run.path}: was evaluated by an older tfmusic. Run tfmusic evaluate {run.path} again")
    low, high = report["interval"]
    return (
        str(run.path),
        report["task"],
        _model(run, config.model.name),
        str(config.training.seed),
        str(config.training.epochs),
        f"{report['tracks']:,} tracks of {_splits(report)}",
        report["metric"],
        f"{report['value']:.3f}",
        f"{low:.3f} to {high:.3f}",
        _folds(report),
        f"{_seconds(run):,.0f}",
    )


def _model(run: RunDir, name: str) -> str:
    """Returns the name of the model, or of those that an ensemble joins with their shares."""
    if run.folds():
        return f"{_model(run.folds()[0], name)}, a model a fold"
    if not run.ensemble.is_file():
        return name
    members = run.read_json(run.ensemble)["members"]
    total = sum(member["weight"] for member in members) or 1.0
    return " + ".join(f"{member['weight'] / total:.2f} {member['run'].rsplit('/runs/', 1)[-1]}" for member in members)


def _splits(report: dict[str, Any]) -> str:
    return "all folds" if "folds" in report else ", ".join(report["splits"])


def _folds(report: dict[str, Any]) -> str:
    if "folds" not in report:
        return "-"
    values = np.array(report["folds"])
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _seconds(run: RunDir) -> float:
    """Returns the seconds that the epochs of a run took, those of all of its folds; 0 for runs that were joined."""
    return float(sum(line["seconds"] for one in (run.folds() or [run]) for line in one.history()))
