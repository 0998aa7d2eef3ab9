"""Several runs side by side: what was trained how, and what came out; and all runs of a folder at a glance."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.config.loading import dump_value, find_config, load_config
from tfmusic.config.sections import Config
from tfmusic.core.files import locked
from tfmusic.core.rundir import RunDir, reading
from tfmusic.errors import ConfigError, RunError, TfmusicError, UsageError, printable

_AREAS = ("ROC-AUC", "PR-AUC")  # macro
HEADER = (
    "run", "task", "model", "seed", "epochs", "scored on", "metric", "value", "95 % interval", *_AREAS, "folds",
    "seconds",
)  # fmt: skip
OVERVIEW = ("run", "state", "score", "MB", "date", "differs from the config of its task in")


def find_runs(root: Path, tasks: Sequence[str] = ()) -> list[RunDir]:
    """Returns the run folders `root/TASK/NAME` or `root/NAME`, of some tasks or of all, the newest first."""
    outer = [path for path in root.glob("*") if (path / "config.yaml").is_file()]
    inner = [path for path in root.glob("*/*") if (path / "config.yaml").is_file() and path.parent not in outer]
    chosen = [RunDir(path) for path in outer + inner if not tasks or {path.name, path.parent.name} & set(tasks)]
    return sorted(chosen, key=lambda run: -run.config.stat().st_mtime)


def overview(run: RunDir) -> tuple[str, ...]:
    """Returns a row of `OVERVIEW`; a run that cannot be read says why in its state."""
    size = sum(path.lstat().st_size for path in run.path.rglob("*") if not path.is_dir())
    date = datetime.fromtimestamp(run.config.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    try:
        config = load_config(run.config)
        with reading(run.evaluation):
            score = _score(run) if run.calibration.is_file() else "-"  # while it trains, that of an older model
            row = (_state(run, config), score, f"{size / 1e6:,.1f}", date, _differences(config))
    except TfmusicError as error:
        row = (f"damaged: {error}", "-", f"{size / 1e6:,.1f}", date, "-")
    return (str(run.path), *row)


def remove_run(path: Path) -> int:
    """Removes a run folder and returns its bytes.

    Raises:
        UsageError: it is no run folder, is a link, or another process is writing it.
    """
    inner = ("contract.json", "fold*/config.yaml", "*/fold*/config.yaml")  # a training, cross-validations
    is_a_run = (path / "config.yaml").is_file() and any(any(path.glob(name)) for name in inner)
    if path.is_symlink() or not is_a_run:
        raise UsageError(f"{path}: must be a run folder, which tfmusic fit writes. Received: none; nothing is removed")
    size = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
    with locked(path):
        shutil.rmtree(path)
    return size


def _state(run: RunDir, config: Config) -> str:
    if run.calibration.is_file():
        return "finished"
    n_folds = len(run.folds())
    if config.training.fold == "all":
        return f"unfinished: {n_folds} of {config.data.folds} folds"
    return f"unfinished: epoch {len(run.history())} of {config.training.epochs}"


def _score(run: RunDir) -> str:
    """Returns metric, value and interval of the last evaluation of each task; "-" where there is none."""
    if not list(run.evaluation.rglob("report.json")):
        return "-"
    scores = []
    for report in read_reports(run):
        low, high = report["interval"]
        scores.append(f"{report['task']} {report['metric']} {report['value']:.3f} [{low:.3f}, {high:.3f}]")
    return ", ".join(scores)


def _differences(config: Config) -> str:
    """Returns the keys that differ from the shipped config of the same task; "-" for none, or no such config."""
    try:
        usual = dict(leaves(load_config(find_config(config.task_name)).model_dump(mode="json")))
    except ConfigError:
        return "-"
    own = dict(leaves(config.model_dump(mode="json")))
    changed = [f"{key}={dump_value(value)}" for key, value in own.items() if value != usual.get(key)]
    return " ".join(changed) or "-"


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every key of a nested mapping with its value, as `section.key`."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


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
    return "\n".join("| " + " | ".join(map(printable, line)) + " |" for line in lines)


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
        *(f"{report['metrics'][name][0]:.3f}" if name in report["metrics"] else "-" for name in _AREAS),
        _folds(report),
        f"{run.seconds:,.0f}",
    )


def _model(run: RunDir, name: str) -> str:
    """Returns the name of the model, or of those that an ensemble joins with their shares."""
    if run.folds():
        return f"{_model(run.folds()[0], name)}, a model a fold"
    members = run.members().values()
    total = sum(member.weight for member in members) or 1.0
    parts = [f"{member.weight / total:.2f} {member.run.rsplit('/runs/', 1)[-1]}" for member in members]
    return " + ".join(parts) or name


def _splits(report: dict[str, Any]) -> str:
    return "all folds" if "folds" in report else ", ".join(report["splits"])


def _folds(report: dict[str, Any]) -> str:
    if "folds" not in report:
        return "-"
    values = np.array(report["folds"])
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"
