"""One comparison: cases measured in turn, the ratios that are wanted of them, and their tables."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.cases import Case, Sample, Worker, in_turn

Samples = Mapping[str, Sequence[Sample]]

# What a ratio is of; a rate is better when it is high, the others when they are low.
MEASURES: dict[str, Callable[[Sample], float]] = {
    "wall time": lambda sample: sample.seconds,
    "wall time a unit": lambda sample: sample.seconds / sample.units,
    "units per wall s": lambda sample: sample.units / sample.seconds,
    "units per CPU s": lambda sample: sample.units / max(sample.cpu_s, 1e-9),
    "CPU time a unit": lambda sample: sample.cpu_s / sample.units,
    "peak memory": lambda sample: sample.peak_bytes,
    "bytes a unit": lambda sample: sample.bytes_out / sample.units,
}


@dataclass(frozen=True)
class Target:
    """What a ratio must reach: `at least` or `at most` a limit, or nothing, where it is only to be seen."""

    ours: tuple[str, ...]  # names of cases, the best of which counts
    against: tuple[str, ...]
    measure: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def limit(self) -> str:
        """The target as text."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"<= {self.at_most:g}" if self.at_most is not None else ""


@dataclass(frozen=True)
class Ratio:
    """A ratio over the rounds; `why_not` says why there is none."""

    target: Target
    ours: str
    against: str
    median: float = 0.0
    low: float = 0.0
    high: float = 0.0
    why_not: str = ""

    @property
    def verdict(self) -> str:
        """Whether the median reaches the target."""
        if self.why_not or not self.target.limit:
            return self.why_not
        least, most = self.target.at_least, self.target.at_most
        is_met = self.median >= least if least is not None else self.median <= (most or 0.0)
        return "met" if is_met else "missed"

    @property
    def standing(self) -> str:
        """Whether the first is ahead of the second, behind, or level within a hundredth; empty without a ratio."""
        if self.why_not:
            return ""
        target = self.target
        is_rate = "per" in target.measure if target.limit == "" else target.at_least is not None
        gain = self.median if is_rate else 1 / max(self.median, 1e-12)
        return "level" if abs(gain - 1) < 0.01 else "ahead" if gain > 1 else "behind"


def compare(target: Target, samples: Samples, cases: Sequence[Case]) -> Ratio:
    """Returns the ratio of the best of ours to the best of theirs, by their medians, round by round."""
    missing = {case.name: case.missing for case in cases if case.missing}
    for names in (target.ours, target.against):
        if not any(name in samples for name in names):
            why = next((missing[name] for name in names if name in missing), "not measured")
            return Ratio(target, target.ours[0], target.against[0], why_not=why)
    ours, against = (_best(names, samples, target.measure) for names in (target.ours, target.against))
    value = MEASURES[target.measure]
    rounds = [value(a) / max(value(b), 1e-12) for a, b in zip(samples[ours], samples[against], strict=True)]
    return Ratio(target, ours, against, statistics.median(rounds), min(rounds), max(rounds))


def _best(names: Sequence[str], samples: Samples, measure: str) -> str:
    best = max if "per" in measure else min
    return best(
        (name for name in names if name in samples),
        key=lambda name: statistics.median(map(MEASURES[measure], samples[name])),
    )


def sample_rows(samples: Samples) -> list[tuple[Any, ...]]:
    """Returns a row a case: name, wall seconds with their spread, rates, CPU a unit, peak memory; medians."""
    rows = []
    for name, some in samples.items():
        walls = [sample.seconds for sample in some]
        per_s, cpu_ms, peak = (
            statistics.median(map(MEASURES[measure], some))
            for measure in ("units per wall s", "CPU time a unit", "peak memory")
        )
        spread = f"{_short(statistics.median(walls))} ({_short(min(walls))} - {_short(max(walls))})"
        rows.append((name, spread, _short(per_s), _short(cpu_ms * 1e3), round(peak / 1e6)))
    return rows


SAMPLE_HEADER = ("case", "wall s (min - max)", "units/s", "CPU ms a unit", "peak MB")


def ratio_rows(ratios: Sequence[Ratio]) -> list[tuple[str, ...]]:
    """Returns a row a ratio: what, against what, by what, median with its spread, target, verdict."""
    return [
        (
            ratio.ours,
            ratio.against,
            ratio.target.measure,
            "-" if ratio.why_not else _short(ratio.median),
            "" if ratio.why_not else f"{_short(ratio.low)} - {_short(ratio.high)}",
            ratio.target.limit,
            ratio.verdict,
        )
        for ratio in ratios
    ]


def summary_rows(results: Sequence["Result"]) -> list[tuple[str, ...]]:
    """Returns a row a ratio of all comparisons: which, what, against what, median, target, verdict, standing."""
    return [
        (
            result.title.partition(":")[0],
            ratio.ours,
            ratio.against,
            "-" if ratio.why_not else f"{_short(ratio.median)} of {ratio.target.measure}",
            ratio.target.limit,
            "not measured" if ratio.why_not else ratio.verdict,
            ratio.standing,
        )
        for result in results
        for ratio in result.ratios
    ]


SUMMARY_HEADER = ("comparison", "what", "against", "ratio", "target", "", "")
RATIO_HEADER = ("what", "against", "ratio of", "median", "min - max", "target", "")


def _short(value: float) -> str:
    """Returns a number with three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


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
        on_sample: called with the name of a case and its sample after each measurement.
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
    on_sample: Callable[[str, Sample], None]

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
