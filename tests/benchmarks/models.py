"""Training steps and inference of our networks against the same networks in PyTorch."""

import statistics
import sys
from collections.abc import Iterator
from typing import Any

from tests.benchmarks.cases import Asked, BenchmarkError, Worker
from tests.benchmarks.comparison import Options, Result, Target, measure, opened

_N_BINS, _N_OUTPUTS = 128, 10
_WIDTH = 64  # the papers'
_LEAST = {"train": 1.0, "infer": 1.5}
_TRAINING_COST = 3  # passes: forward, and backward to inputs and to weights
# Several processes share a GPU here, so none may take most of its memory at its start.
_SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}


def run(options: Options) -> Iterator[Result]:
    """Yields a comparison a network and precision."""
    for precision in options.precisions:
        for name in options.networks:
            yield _compare(name, precision, options)


def _compare(name: str, precision: str, options: Options) -> Result:
    shape = {"name": name, "frames": options.frames, "n_bins": _N_BINS, "n_outputs": _N_OUTPUTS}
    shape |= {"width": options.width or _WIDTH, "batch_size": options.batch_size, "precision": precision}
    ours = {
        "Keras": _worker("keras_speed", options, shape, jit=False),
        "Keras, jit": _worker("keras_speed", options, shape, jit=True),
    }
    theirs = {
        "PyTorch": _worker("torch_twins", options, shape, layout="contiguous"),
        "PyTorch, channels_last": _worker("torch_twins", options, shape, layout="channels_last"),
        "PyTorch, torch.compile": _worker("torch_twins", options, shape, layout="channels_last", compiled=True),
    }
    workers = ours | theirs
    with opened(*workers.values()):
        _check_same(workers)
        cases = [
            Asked(f"{part}: {case}", worker, part, options.seconds)
            for part in _LEAST
            for case, worker in workers.items()
        ]
        peak = Asked("matmul: Keras (GFLOP)", _usable(ours), "matmul", options.seconds)
        targets = [
            Target(
                tuple(f"{part}: {case}" for case in ours),
                tuple(f"{part}: {case}" for case in theirs),
                "units per wall s",
                at_least=least,
            )
            for part, least in _LEAST.items()
        ]
        backend, device = (_usable(ours).facts[fact] for fact in ("backend", "device"))
        title = (
            f"{name}, {precision}, Keras on {backend}, {device}: segments of {options.frames} x {_N_BINS},"
            f" {options.batch_size} a step"
        )
        result = measure(title, [*cases, peak], targets, options)
        return Result(title, result.samples, result.ratios, _shares(result, _usable(ours), peak.name))


def _worker(module: str, options: Options, shape: dict[str, Any], **more: Any) -> Worker:
    python = options.torch_python if module.startswith("torch") else sys.executable
    env = _SHARED | options.thread_variables
    return Worker(f"tests.benchmarks.{module}:network", shape | more, python, env)


def _usable(workers: dict[str, Worker]) -> Worker:
    """Returns the first worker that can measure."""
    for worker in workers.values():
        if not worker.missing:
            return worker
    raise BenchmarkError(f"Keras cannot be measured here: {next(iter(workers.values())).missing}")


def _check_same(workers: dict[str, Worker]) -> None:
    """Refuses to compare networks of different sizes."""
    counts = {case: worker.facts["parameters"] for case, worker in workers.items() if not worker.missing}
    if len(set(counts.values())) != 1:
        raise BenchmarkError(f"the networks must have the same number of parameters. Received: {counts}")


def _shares(result: Result, ours: Worker, peak: str) -> list[str]:
    """Returns which share of the measured rate of matrix products each case reaches, and what it must be fed with."""

    def rate(name: str) -> float:
        return statistics.median(sample.units / sample.seconds for sample in result.samples[name])

    lines = [f"{ours.facts['parameters']:,} parameters, {ours.facts['gflop']:.2f} GFLOP a segment forward"]
    for name in result.samples:
        if name == peak:
            continue
        cost = ours.facts["gflop"] * (_TRAINING_COST if name.startswith("train") else 1)
        lines.append(f"{name}: {100 * rate(name) * cost / rate(peak):.0f} % of the rate of matrix products")
    fed = max(rate(name) for name in result.samples if name.startswith("train: Keras"))
    return [*lines, f"the input must deliver {fed:,.0f} segments/s to keep training busy"]
