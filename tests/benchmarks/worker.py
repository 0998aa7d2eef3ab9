"""The child process of a worker case: opens one bench, then measures a part of it each time it is asked.

Called as `python -m tests.benchmarks.worker MODULE FUNCTION ARGUMENTS`, the last as JSON. It answers with lines of
JSON: first the facts of the bench, or which package is missing, then a measurement for every line `PART SECONDS` that
it reads. All cases of a comparison stand open together and are asked in turn, so that what else the machine does
meets all of them alike, and what is imported, compiled and warmed up is so once.
"""

import importlib
import json
import os
import sys
from typing import Any, TextIO

from tests.benchmarks.clock import Bench, CannotMeasureError, Clock, peak_bytes


def main(module: str, function: str, arguments: str) -> None:
    """Serves one bench until its parent closes the pipe."""
    answers = _take_stdout()
    try:
        bench: Bench = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    except ModuleNotFoundError as error:
        _answer(answers, {"missing": f"no package {error.name} in {sys.executable}"})
        return
    except CannotMeasureError as error:
        _answer(answers, {"missing": str(error)})
        return
    _answer(answers, {"facts": dict(bench.facts)})
    for line in sys.stdin:
        part, seconds = line.split()
        clock = Clock()
        units = bench.parts[part](clock, float(seconds))
        measured = {"seconds": clock.seconds, "cpu_s": clock.cpu_s, "bytes_out": clock.bytes_out}
        _answer(answers, {**measured, "units": units, "peak_bytes": peak_bytes()})
    # Some packages take seconds to tear down, or wait for threads of theirs: there is nothing left to lose.
    os._exit(0)


def _take_stdout() -> TextIO:
    """Returns standard output for the answers alone; what packages print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _answer(answers: TextIO, values: dict[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
