"""The parsers of `tests.fuzz` with inputs that atheris chooses: `python -m tests.guided --seconds 60 [TARGET ...]`.

atheris (libFuzzer for Python; `pip install atheris`, Python 3.11) keeps and changes what reaches new branches of
tfmusic's own functions; every tenth input is a good one spoiled. Each target runs in a process of its own, for it ends
with the process. What is found is kept as `find-TARGET-...` in the folder of `--keep`.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FunctionType

from tests.fuzz import check, silent, spoil_value, targets

MOST_BYTES = 20_000
MOST_MIB = 6000


def fuzz(name, seconds, folder, keep):
    """Fuzzes one target; does not return."""
    import atheris

    target, rng = targets(folder)[name], random.Random(0)
    functions = own_functions()
    for function in functions:
        atheris.instrument_func(function)
    sys.stderr.write(f"{name}: {len(functions)} functions watched\n")

    def mutated(data, most, seed):
        if rng.random() < 0.1:
            return as_bytes(target.spoil(rng.choice(target.seeds), random.Random(seed)))[:most]
        return atheris.Mutate(data, most)

    def once(data):
        if target.spoil is spoil_value:  # a parser of values, not of their text
            try:
                data = json.loads(data)
            except (ValueError, RecursionError):
                return
        check(target.parse, data)

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(as_bytes(seed))
    options = [f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}", f"-artifact_prefix={keep}/find-{name}-"]
    options += ["-timeout=0", f"-rss_limit_mb={MOST_MIB}", "-print_final_stats=1", "-verbosity=0", str(corpus)]
    signal.signal(signal.SIGALRM, silent)  # check() sets the time; libFuzzer's own is off
    atheris.Setup([sys.argv[0], *options], once, custom_mutator=mutated)
    atheris.Fuzz()


def as_bytes(spoiled):
    return spoiled if isinstance(spoiled, bytes) else json.dumps(spoiled).encode()


def own_functions():
    """Returns the functions and methods of all modules of tfmusic that have been imported."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "tfmusic"]
    holders = [*modules, *(value for module in modules for value in vars(module).values() if isinstance(value, type))]
    members = [getattr(value, "__func__", value) for holder in holders for value in vars(holder).values()]
    ours = [one for one in members if isinstance(one, FunctionType) and one.__module__.startswith("tfmusic.")]
    return list(dict.fromkeys(ours))


def run(arguments):
    """Fuzzes the targets named, one after the other; returns 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=[])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", type=Path, default=Path("finds"), help="folder for what was found")
    parser.add_argument("--here", action="store_true", help="in this very process, which must be of one target")
    args = parser.parse_args(arguments)
    args.keep.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        if args.here:
            fuzz(args.targets[0], args.seconds, Path(name), args.keep)
        found = 0
        for target in args.targets or targets(Path(name)):
            begin = time.monotonic()
            words = [sys.executable, "-m", "tests.guided", "--here", "--seconds", str(args.seconds)]
            done = subprocess.run([*words, "--keep", str(args.keep), target], stderr=subprocess.PIPE, text=True)
            executions = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
            found += done.returncode != 0
            sys.stdout.write(f"{target}: {''.join(executions) or '?'} executions, {time.monotonic() - begin:.0f} s, ")
            sys.stdout.write("nothing found\n" if done.returncode == 0 else f"found:\n{done.stderr[-3000:]}\n")
            sys.stdout.flush()
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
