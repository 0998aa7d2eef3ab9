"""A summary of the long tests by promise: `python -m pytest -p tests.torture -m torture -s`, for `make torture`.

A test states its number of trials with `record_property("trials", n)` (default 1) and a measurement with
`record_property("measured", text)`. A failed test is a promise that does not hold.
"""

from collections import defaultdict
from dataclasses import dataclass

PROMISES = {  # in the words of README, by the file of the test
    "test_kill": "killed at any moment",
    "test_faults": "a full or read-only disk, missing rights, ...",
    "test_rot": "a flipped bit",
    "test_fuzz": "untrusted files",
    "test_hostile_server": "serve",
    "test_long": "long trainings",
}
OTHERS = "every variant of what `make test` samples"


@dataclass
class Row:
    """What the tests of one promise have tried."""

    trials: int = 0
    tests: int = 0
    failed: int = 0
    skipped: int = 0
    minutes: float = 0.0


def pytest_terminal_summary(terminalreporter):
    """Prints a line for every promise, and what was measured."""
    reports = defaultdict(list)  # of setup, call and teardown of a test
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            reports[report.nodeid].append(report)
    if not reports:
        return
    rows, measured = defaultdict(Row), {}
    for place, parts in reports.items():
        row = rows[PROMISES.get(place.partition(".py")[0].rpartition("/")[2], OTHERS)]
        properties = dict(pair for part in parts for pair in part.user_properties)
        is_skipped = any(part.skipped for part in parts)
        row.skipped += is_skipped
        row.tests += not is_skipped
        row.trials += 0 if is_skipped else int(properties.get("trials", 1))
        row.failed += any(part.failed for part in parts)
        row.minutes += sum(part.duration for part in parts) / 60
        measured |= {place: properties["measured"]} if "measured" in properties else {}
    terminalreporter.section("promises")
    terminalreporter.write_line(f"{'promise':48}{'trials':>10}{'tests':>7}{'failed':>8}{'skipped':>9}{'minutes':>9}")
    for promise, row in rows.items():
        counts = f"{row.trials:>10,}{row.tests:>7}{row.failed:>8}{row.skipped:>9}{row.minutes:>9.1f}"
        terminalreporter.write_line(f"{promise:48}{counts}")
    for place, text in measured.items():
        terminalreporter.write_line(f"{place}: {text}")
