"""How soon the command line answers, against the import of TensorFlow alone."""

import json
import subprocess
import sys
from collections.abc import Iterator

from tests.benchmarks.cases import Command, environment
from tests.benchmarks.comparison import Options, Result, Target, measure

HEAVY = ("tensorflow", "keras", "numpy", "pandas", "pydantic")
_ANSWERS = {"tfmusic --help": (["--help"], 0), "a wrong argument": (["fit", "q2", "--wrong"], 2)}
_LIST_IMPORTS = """
import contextlib, io, json, sys
from tfmusic.cli import main
output = io.StringIO()
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
    main(sys.argv[1:])
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def run(options: Options) -> Iterator[Result]:
    """Yields the comparison, and which large packages each answer imported."""
    whole = Command("import tensorflow", [sys.executable, "-c", "import tensorflow"])
    answers = [
        Command(name, [sys.executable, "-m", "tfmusic", *arguments], exit_code=code)
        for name, (arguments, code) in _ANSWERS.items()
    ]
    targets = [Target((answer.name,), (whole.name,), "wall time", at_most=0.05) for answer in answers]
    notes = [f"{name}: of {', '.join(HEAVY)} it imports {imported(words)}" for name, (words, _) in _ANSWERS.items()]
    yield measure("start-up: processes", [whole, *answers], targets, options, notes)


def imported(arguments: list[str]) -> str:
    """Returns which large packages an answer of the command line imports, as text."""
    program = [sys.executable, "-c", _LIST_IMPORTS, *arguments]
    done = subprocess.run(program, capture_output=True, text=True, check=True, env=environment())
    found = [name for name in json.loads(done.stdout) if name in HEAVY]
    return ", ".join(found) or "none"
