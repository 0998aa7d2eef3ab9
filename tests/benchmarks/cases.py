"""Cases of a comparison: whole commands, and workers that stay open; measured in turn, round by round."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

_PACKAGE_PARENT = Path(__file__).parents[2]
_TAIL_LINES = 15


@dataclass(frozen=True)
class Sample:
    """One measurement: wall and CPU seconds, peak memory, units of work done, bytes written where that is asked."""

    seconds: float
    cpu_s: float
    units: float
    peak_bytes: int
    bytes_out: int = 0


class Case(Protocol):
    """Something that is measured under a name; `missing` says why it cannot be."""

    @property
    def name(self) -> str:
        """What the tables call it."""

    @property
    def missing(self) -> str:
        """Why it cannot be measured here, else empty."""

    def measure(self) -> Sample:
        """Returns one measurement."""


class BenchmarkError(RuntimeError):
    """A process of a benchmark ended with an error: a bug of ours, or a package that does not work here."""


@dataclass(frozen=True)
class Command:
    """A whole process with its children, from its start to its end.

    Attributes:
        name: what the tables call it.
        argv: the command.
        units: of work that it does.
        out: file or folder that it writes; it is removed before each measurement, or at its end.
        exit_code: what it must return.
        to_file: whether its standard output goes to `out`.
    """

    name: str
    argv: Sequence[str]
    units: float = 1.0
    out: Path | None = None
    exit_code: int = 0
    to_file: bool = False
    missing: str = ""

    def measure(self) -> Sample:
        """Returns wall and CPU time of the process and its children, and the peak memory of the largest of them."""
        _remove(self.out)
        os.sync()  # what an earlier case has still to write must not be written in this one's time
        with tempfile.TemporaryFile() as errors, self._open_output() as output:
            begin_s = time.perf_counter()
            process = subprocess.Popen(self.argv, stdout=output, stderr=errors, env=environment())
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:
                process.terminate()
                raise
            seconds = time.perf_counter() - begin_s
            process.returncode = os.waitstatus_to_exitcode(status)  # else it would wait for what has ended
            if process.returncode != self.exit_code:
                raise BenchmarkError(f"{' '.join(self.argv[:6])}: exit code {process.returncode}\n{_tail(errors)}")
        bytes_out = _size(self.out)
        _remove(self.out)
        cpu_s = usage.ru_utime + usage.ru_stime
        return Sample(seconds, cpu_s, self.units, usage.ru_maxrss << 10, bytes_out)

    def _open_output(self) -> IO[bytes]:
        return self.out.open("wb") if self.to_file and self.out else Path(os.devnull).open("wb")


@dataclass
class Worker:
    """A process that stays open and measures parts of one bench, each when it is asked."""

    function: str  # module:function, which returns a Bench
    arguments: Mapping[str, Any]
    python: str = sys.executable
    env: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""

    def __enter__(self) -> Self:
        module, function = self.function.split(":")
        program = [self.python, "-m", "tests.benchmarks.worker", module, function, json.dumps(self.arguments)]
        self._errors = tempfile.TemporaryFile()  # closed with the worker
        self._process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment(self.env),
        )
        try:
            first = self._read()
        except BaseException:
            self._close(kill=True)
            raise
        self.facts = first.get("facts", {})
        self.missing = first.get("missing", "")
        return self

    def measure(self, part: str, seconds: float) -> Sample:
        """Returns one measurement of a part."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading says why
            self._process.stdin.write(f"{part} {seconds}\n")
            self._process.stdin.flush()
        return Sample(**self._read())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(kill=kind is not None)

    def _close(self, *, kill: bool) -> None:
        if kill:
            self._process.kill()
        self._process.communicate()  # closes its input, which ends it
        self._errors.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise BenchmarkError(f"{self.function}: the process ended with {code}\n{_tail(self._errors)}")
        values: dict[str, Any] = json.loads(line)
        return values


@dataclass(frozen=True)
class Asked:
    """A part of a worker as a case."""

    name: str
    worker: Worker
    part: str
    seconds: float

    @property
    def missing(self) -> str:
        """Why the worker cannot measure here, else empty."""
        return self.worker.missing

    def measure(self) -> Sample:
        """Returns one measurement."""
        return self.worker.measure(self.part, self.seconds)


def in_turn(cases: Sequence[Case], repeats: int, on_sample: Callable[[str, Sample], None]) -> dict[str, list[Sample]]:
    """Returns the samples of every case by its name: A B C A B C ...; none of those that are missing."""
    usable = [case for case in cases if not case.missing]
    samples: dict[str, list[Sample]] = {case.name: [] for case in usable}
    assert len(samples) == len(usable), "two cases of one name"
    for _ in range(repeats):
        for case in usable:
            samples[case.name].append(sample := case.measure())
            on_sample(case.name, sample)
    return samples


def run_once(function: str, **arguments: Any) -> Mapping[str, Any]:
    """Returns the facts of a bench that only prepares something, in a process of its own."""
    with Worker(function, arguments) as worker:
        return worker.facts


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the variables of a child: this tfmusic first on its path, and quiet packages."""
    paths = [str(_PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])]
    fixed = {"PYTHONPATH": os.pathsep.join(paths), "TF_CPP_MIN_LOG_LEVEL": "2"}
    return {**os.environ, **fixed, **(more or {})}


def _size(path: Path | None) -> int:
    if path is None or not path.exists():
        return 0
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _remove(path: Path | None) -> None:
    if path is not None and path.is_dir():
        shutil.rmtree(path)
    elif path is not None:
        path.unlink(missing_ok=True)


def _tail(errors: IO[bytes]) -> str:
    errors.seek(0)
    return "\n".join(errors.read().decode(errors="replace").splitlines()[-_TAIL_LINES:])
