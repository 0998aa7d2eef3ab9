"""A summary of the long tests by promise: `python -m pytest -p tests.torture -m torture -s`, for `make torture`.

A test says how often it has tried by `record_property("trials", n)`, and what it has measured by
`record_property("measured", text)`; else it is one trial. A test that fails is a promise that does not hold.
"""

from collections import defaultdict

PROMISES = {  # in the words of README, by the file of the test
    "test_kill": "killed at any moment",
    "test_faults": "a full or read-only disk, missing rights, ...",
    "test_rot": "a flipped bit",
    "test_fuzz": "files of strangers",
    "test_hostile_server": "serve",
    "test_long": "long trainings",
}


def pytest_terminal_summary(terminalreporter):
    """Prints a line for every promise: trials, tests, failures, minutes; and what was measured."""
    rows, measured = defaultdict(lambda: [0, 0, 0, 0, 0.0]), []
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if report.when != "call" and outcome == "passed":
                continue
            told = dict(report.user_properties)
            row = rows[PROMISES.get(report.nodeid.partition(".py")[0].rpartition("/")[2], report.nodeid)]
            row[0] += int(told.get("trials", 1)) if outcome != "skipped" else 0
            row[1] += outcome != "skipped"
            row[2] += outcome in ("failed", "error")
            row[3] += outcome == "skipped"
            row[4] += report.duration / 60
            measured += [(report.nodeid, told["measured"])] if "measured" in told else []
    if not rows:
        return
    terminalreporter.section("promises")
    terminalreporter.write_line(f"{'promise':48}{'trials':>10}{'tests':>7}{'failed':>8}{'skipped':>9}{'minutes':>9}")
    for promise, (trials, tests, failed, skipped, minutes) in rows.items():
        terminalreporter.write_line(f"{promise:48}{trials:>10,}{tests:>7}{failed:>8}{skipped:>9}{minutes:>9.1f}")
    for place, text in measured:
        terminalreporter.write_line(f"{place}: {text}")
