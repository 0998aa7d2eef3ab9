"""What a benchmark measures: wall time, CPU time and peak memory of a process and its children."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_WARM_BATCHES = 8  # more than any stream here has ready before it is asked


class Clock:
    """Measures the body of a `with`: wall and CPU seconds of this process, its threads and its live children."""

    def __init__(self) -> None:
        self.seconds = self.cpu_s = 0.0
        self.bytes_out = 0  # what the body wrote, where its part says so

    def __enter__(self) -> Self:
        self._begin_s, self._begin_cpu_s = time.perf_counter(), _cpu_s()
        return self

    @property
    def elapsed_s(self) -> float:
        """Wall seconds since the body began."""
        return time.perf_counter() - self._begin_s

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds, self.cpu_s = self.elapsed_s, _cpu_s() - self._begin_cpu_s


Part = Callable[[Clock, float], float]  # measures about so many seconds with the clock, returns the units done


@dataclass(frozen=True)
class Bench:
    """What a worker can measure: parts by name, and facts about them that a comparison checks or shows."""

    parts: Mapping[str, Part]
    facts: Mapping[str, Any] = field(default_factory=dict)


class CannotMeasureError(Exception):
    """A bench that makes no sense here; its text says why."""


def pulling(batches: Iterator[Any], batch_size: int) -> Part:
    """Returns a part that counts what an endless stream hands over, beyond what it had ready."""

    def pull(clock: Clock, seconds: float) -> float:
        for _ in range(_WARM_BATCHES):
            next(batches)
        n_batches = 0
        with clock:
            while clock.elapsed_s < seconds:
                next(batches)
                n_batches += 1
        return float(n_batches * batch_size)

    return pull


def repeating(call: Callable[[], Any], units: float) -> Part:
    """Returns a part that counts the units of calls; one call before the clock starts is not counted."""

    def repeat(clock: Clock, seconds: float) -> float:
        call()
        n_calls = 0
        with clock:
            while clock.elapsed_s < seconds:
                call()
                n_calls += 1
        return n_calls * units

    return repeat


def peak_bytes() -> int:
    """Returns the peak resident memory of this process plus those of its live children; what they share counts twice.

    It is a process's own, from the start of its program on: `ru_maxrss` begins with the memory of the parent.
    """
    return sum(_peak_bytes(pid) for pid in [os.getpid(), *_children()])


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def _cpu_s() -> float:
    return time.process_time() + sum(_cpu_s_of(pid) for pid in _children())


def _cpu_s_of(pid: int) -> float:
    """Returns user and system time of a process; its name in the line may hold spaces, and ends with a bracket."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _children() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]
