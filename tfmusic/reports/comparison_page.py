"""Several evaluated runs on one page: metrics with intervals, learning curves, differences of their configs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tfmusic.config.loading import load_config
from tfmusic.core.rundir import RunDir
from tfmusic.evaluation.compare import HEADER, compare, read_reports
from tfmusic.reports.evaluation_page import learning_charts
from tfmusic.reports.page import render, short_name, without_paths
from tfmusic.reports.svg import N_SERIES, interval_chart

_MAX_LABELS = 20


def comparison_page(runs: Sequence[RunDir]) -> str:
    """Returns the page; raises RunError where a run has not been evaluated."""
    names = [short_name(run.path) for run in runs]
    rows = iter(compare(runs))
    table = [(name, *next(rows)[1:]) for run, name in zip(runs, names, strict=True) for _ in read_reports(run)]
    return render(
        "comparison.html",
        names=names,
        header=HEADER,
        table=[[without_paths(cell) for cell in row] for row in table],
        tasks=_tasks(runs, names),
        learning=learning_charts(runs),
        n_series=N_SERIES,
        n_labels=_MAX_LABELS,
        differences=_differences(runs),
    )


def _tasks(runs: Sequence[RunDir], names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns for each task the chart of its runs and their F1 by label."""
    reports: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for run, name in zip(runs, names, strict=True):
        for report in read_reports(run):
            reports.setdefault(report["task"], []).append((name, report))
    return [_task(task, named) for task, named in reports.items()]


def _task(task: str, reports: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    values: list[tuple[str, float, float, float]] = [
        (name, report["value"], *report["interval"]) for name, report in reports
    ]
    chart: Markup = interval_chart(f"intervals-{task}", values, x_label=f"{reports[0][1]['metric']}, 95 % interval")
    labels: dict[str, int] = {}
    for _, report in reports:
        labels |= {label: entry["support"] for label, entry in report["labels"].items()}
    shown = sorted(labels, key=lambda label: -labels[label])[:_MAX_LABELS]
    rows = [
        (label, labels[label], [report["labels"].get(label, {}).get("f1") for _, report in reports]) for label in shown
    ]
    return {"name": task, "runs": [name for name, _ in reports], "chart": chart, "labels": rows}


def _differences(runs: Sequence[RunDir]) -> list[tuple[str, list[str]]]:
    """Returns the keys in which the configs differ, with the value of each run."""
    configs = [dict(_leaves(load_config(run.config).model_dump(mode="json"))) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    rows = [
        (key, [without_paths(json.dumps(config.get(key), ensure_ascii=False)) for config in configs]) for key in keys
    ]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
