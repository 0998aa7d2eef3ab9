"""`python -m tests.benchmarks SUBJECT`: ratios measured side by side in one run."""

import argparse
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks import comparison
from tests.benchmarks.comparison import Options, Result
from tfmusic.cli import Parser, add_output_options, execute
from tfmusic.commands import arguments
from tfmusic.console import console
from tfmusic.errors import UsageError

SUBJECTS = ("converter", "inputs", "models", "serving", "startup")
NETWORKS = ("crnn", "cnn2d", "resnet18", "resnet34")
PACKAGES = ("tensorflow", "keras", "jax", "torch", "numpy")


def main(words: Sequence[str]) -> int:
    """Measures what the command line asks for and returns the exit code."""
    parser = Parser(prog="python -m tests.benchmarks", description=__doc__, allow_abbrev=False)
    add_arguments(parser)
    add_output_options(parser)
    try:
        args = parser.parse_args(words)
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return execute(run, args)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("subject", choices=[*SUBJECTS, "all"], help="what to compare")
    parser.add_argument("--repeats", type=arguments.positive, default=5, help="rounds A B C A B C ... (default 5)")
    parser.add_argument("--seconds", type=_above_zero, default=2.0, help="of one measurement of a stream or a network")
    parser.add_argument("--gigabytes", type=_above_zero, default=1.0, help="of float32 spectrograms (default 1)")
    parser.add_argument(
        "--tracks", type=_ten_times, default=4000, help="where memory is compared with that of a tenth (default 4000)"
    )
    parser.add_argument(
        "--work", type=Path, help="folder for the files, which are removed at the end (default: temporary)"
    )
    parser.add_argument(
        "--torch-python", default=sys.executable, metavar="PYTHON", help="a Python with PyTorch (default: this one)"
    )
    parser.add_argument("--addons-python", metavar="PYTHON", help="a Python with TensorFlow 2.15 and tensorflow-addons")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS, help="of models (default: all)")
    parser.add_argument("--width", type=arguments.positive, help="of the networks (default: the papers')")
    parser.add_argument(
        "--threads", type=arguments.positive, help="of each process of a network (default: theirs, all cores)"
    )
    parser.add_argument("--batch-size", type=arguments.positive, default=16, help="of the networks (default 16)")
    parser.add_argument("--frames", type=arguments.positive, default=157, help="of their input (default 157)")
    parser.add_argument(
        "--precisions", nargs="+", default=["float32"], choices=["float32", "mixed_bfloat16"], help="of the networks"
    )


def run(args: argparse.Namespace) -> None:
    """Measures, prints one table of cases and one of ratios for each comparison, and at the end one of all ratios."""
    _check(args)
    machine = describe_machine()
    for name, text in machine.items():
        console.show(f"{name}: {text}")
    console.result(environment=machine, load_before=load())
    console.show(f"load before: {load()}")
    subjects, results = SUBJECTS if args.subject == "all" else (args.subject,), list[Result]()
    for subject in subjects:
        with tempfile.TemporaryDirectory(prefix="tfmusic-benchmark-", dir=args.work) as work:
            module = importlib.import_module(f"tests.benchmarks.{subject}")
            for result in module.run(_options(args, Path(work))):
                _show(subject, result)
                results.append(result)
    console.show("")
    console.show("All ratios, ours by theirs:")
    console.table(comparison.summary_rows(results), comparison.SUMMARY_HEADER)
    console.show(f"load after: {load()}")
    console.result(load_after=load())


def _check(args: argparse.Namespace) -> None:
    """Refuses what would fail only after minutes."""
    if args.work is not None and not args.work.is_dir():
        raise UsageError(f"{args.work}: --work must be an existing folder")
    for option, python in (("--torch-python", args.torch_python), ("--addons-python", args.addons_python)):
        if python is not None and shutil.which(python) is None:
            raise UsageError(f"{option} must be an executable Python. Received: {python}")
    needed, free = 3.0 * args.gigabytes * 1e9, shutil.disk_usage(args.work or tempfile.gettempdir()).free
    if args.subject in ("converter", "inputs", "all") and free < needed:
        raise UsageError(
            f"--gigabytes {args.gigabytes:g} needs {needed / 1e9:.1f} GB for files, and"
            f" {args.work or tempfile.gettempdir()} has {free / 1e9:.1f}: pass fewer, or another --work"
        )


def _options(args: argparse.Namespace, work: Path) -> Options:
    return Options(
        work=work,
        gigabytes=args.gigabytes,
        tracks=args.tracks,
        repeats=args.repeats,
        seconds=args.seconds,
        torch_python=args.torch_python,
        addons_python=args.addons_python,
        networks=tuple(args.networks),
        batch_size=args.batch_size,
        frames=args.frames,
        width=args.width,
        threads=args.threads,
        precisions=tuple(args.precisions),
        on_sample=lambda name, sample: console.say(f"{name}: {sample.units / sample.seconds:,.3g} units/s"),
    )


def _show(subject: str, result: Result) -> None:
    console.show("")
    console.show(result.title)
    console.table(comparison.sample_rows(result.samples), comparison.SAMPLE_HEADER)
    console.show("")
    console.table(comparison.ratio_rows(result.ratios), comparison.RATIO_HEADER)
    for note in result.notes:
        console.show(note)
    document = {
        "subject": subject,
        "title": result.title,
        "samples": {name: [asdict(sample) for sample in samples] for name, samples in result.samples.items()},
        "ratios": [asdict(ratio) | {"verdict": ratio.verdict} for ratio in result.ratios],
        "notes": list(result.notes),
    }
    console.result(comparisons=document)


def _above_zero(text: str) -> float:
    value = float(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def _ten_times(text: str) -> int:
    value = int(text)
    if value < 200 or value % 10:
        raise argparse.ArgumentTypeError(f"must be 200 or more, and a multiple of 10, got {text}")
    return value


def describe_machine() -> dict[str, str]:
    """Returns processor, cores, memory, system and versions by name."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version}" for name, version in _versions().items()),
    }


def load() -> str:
    """Returns the load averages of 1, 5 and 15 minutes. Above the number of cores, wall times mean little."""
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
