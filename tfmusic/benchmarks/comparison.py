"""One comparison: cases measured in turn, and the ratios that are wanted of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmusic.benchmarks.cases import Case, Worker, in_turn
from tfmusic.benchmarks.ratios import Ratio, Samples, Target, compare


@dataclass(frozen=True)
class Options:
    """How large and how often.

    Attributes:
        work: an empty folder for files.
        gigabytes: of float32 spectrograms.
        tracks: the larger number of tracks where memory is compared with that of a tenth.
        repeats: rounds.
        seconds: of one measurement of a worker.
        torch_python: a Python that has PyTorch.
        addons_python: a Python that has TensorFlow 2.15 with tensorflow-addons, or None.
        networks: names of models.
        batch_size: segments at a time.
        frames: length of a model's input.
        width: of the networks, or None for the papers'.
        threads: of each process that runs a network, or None for all cores.
        precisions: of the networks.
        on_sample: called with the name of a case after each measurement.
    """

    work: Path
    gigabytes: float
    tracks: int
    repeats: int
    seconds: float
    torch_python: str
    addons_python: str | None
    networks: tuple[str, ...]
    batch_size: int
    frames: int
    width: int | None
    threads: int | None
    precisions: tuple[str, ...]
    on_sample: Callable[[str], None]

    @property
    def thread_variables(self) -> dict[str, str]:
        """Variables that hold TensorFlow and PyTorch to so many threads; XLA on JAX knows none."""
        if self.threads is None:
            return {}
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        return dict.fromkeys(names, str(self.threads))


@dataclass(frozen=True)
class Result:
    """What a comparison found.

    Attributes:
        title: what was compared, and by what unit.
        samples: of every case by its name.
        ratios: round by round.
        notes: lines that belong to it.
    """

    title: str
    samples: Samples
    ratios: Sequence[Ratio]
    notes: Sequence[str] = ()


def measure(
    title: str, cases: Sequence[Case], targets: Sequence[Target], options: Options, notes: Sequence[str] = ()
) -> Result:
    """Returns the result of cases whose workers, if any, stand open."""
    samples = in_turn(cases, options.repeats, options.on_sample)
    return Result(title, samples, [compare(target, samples, cases) for target in targets], notes)


@contextmanager
def opened(*workers: Worker) -> Iterator[None]:
    """Opens workers one after another, so that none warms up in the time of another, and closes them."""
    with ExitStack() as stack:
        for worker in workers:
            stack.enter_context(worker)
        yield


def facts_line(facts: dict[str, Any]) -> str:
    """Returns facts as one line."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())
