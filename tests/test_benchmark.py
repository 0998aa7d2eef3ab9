"""`make benchmark`: every case runs, ratios are those of the samples, nothing stays behind."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import comparison, rivals
from tests.benchmarks.__main__ import main
from tests.benchmarks.cases import BenchmarkError, Command, Sample, Worker, in_turn
from tests.benchmarks.clock import Clock
from tests.benchmarks.comparison import Result, Target, compare

ROOT = Path(__file__).parents[1]
HAS_TORCH = importlib.util.find_spec("torch") is not None
SMALL = ("--repeats", "1", "--seconds", "0.05")


def benchmark(*arguments):
    """Returns the JSON document of a benchmark in a process of its own, which TensorFlow has not made large."""
    command = [sys.executable, "-m", "tests.benchmarks", *arguments, "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def comparisons(document):
    found = document["comparisons"]
    return found if isinstance(found, list) else [found]


def sample(seconds, *, cpu_s=1.0, units=1.0, peak_bytes=1):
    return Sample(seconds, cpu_s, units, peak_bytes)


def test_a_ratio_is_the_median_over_rounds_of_what_was_measured_in_the_same_round():
    """A round that was slow for both changes no ratio."""
    samples = {"a": [sample(2), sample(20), sample(3)], "b": [sample(1), sample(10), sample(2)]}
    ratio = compare(Target(("a",), ("b",), "wall time", at_most=1.9), samples, [])
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 1.5, 2.0)
    assert ratio.verdict == "missed"
    assert compare(Target(("a",), ("b",), "wall time", at_most=2.0), samples, []).verdict == "met"
    assert compare(Target(("a",), ("b",), "wall time", at_least=2.1), samples, []).verdict == "missed"
    assert compare(Target(("a",), ("b",), "wall time"), samples, []).verdict == ""
    for measure in ("wall time", "units per wall s"):
        assert compare(Target(("a",), ("b",), measure), samples, []).standing == "behind"
        assert compare(Target(("b",), ("a",), measure), samples, []).standing == "ahead"
        assert compare(Target(("a",), ("a",), measure), samples, []).standing == "level"
    rows = comparison.summary_rows([Result("crnn: segments", samples, [ratio])])
    assert rows[0][0] == "crnn" and rows[0][-2:] == ("missed", "behind")


@pytest.mark.parametrize(("measure", "best"), [("units per wall s", "quick"), ("CPU time a unit", "thrifty")])
def test_the_best_of_each_side_counts(measure, best):
    """Best is the highest rate, or the lowest time, of the medians."""
    samples = {"quick": [sample(1, cpu_s=9)], "thrifty": [sample(2, cpu_s=1)], "other": [sample(1)]}
    assert compare(Target(("quick", "thrifty"), ("other",), measure), samples, []).ours == best
    assert compare(Target(("other",), ("quick", "thrifty"), measure), samples, []).against == best


def test_cases_are_measured_in_turn_and_missing_ones_are_told():
    """A B A B, and a ratio to what is missing says why there is none."""
    order = []

    class Case:
        def __init__(self, name, missing=""):
            self.name, self.missing = name, missing

        def measure(self):
            order.append(self.name)
            return sample(1)

    cases = [Case("a"), Case("gone", "no package torch"), Case("b")]
    samples = in_turn(cases, 2, lambda name, sample: None)
    assert order == ["a", "b", "a", "b"]
    ratio = compare(Target(("a",), ("gone",), "wall time", at_most=1.0), samples, cases)
    assert ratio.verdict == "no package torch"
    assert comparison.ratio_rows([ratio])[0][3] == "-"


def test_a_command_is_measured_with_its_children_and_what_it_wrote(tmp_path):
    """CPU time of a child of the command counts, bytes are those of the file, and the file is gone afterwards."""
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint('x' * 99)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    found = Command("burn", [sys.executable, "-c", code], out=tmp_path / "out", to_file=True).measure()
    assert found.cpu_s > 0.3
    assert found.seconds > 0.0
    assert found.bytes_out == 100
    assert found.peak_bytes > 1 << 20
    assert not (tmp_path / "out").exists()


def test_a_process_that_fails_ends_the_benchmark_with_its_last_words(tmp_path):
    """Neither a command nor a worker that breaks gives a figure."""
    with pytest.raises(BenchmarkError, match=r"exit code 3\n.*the reason"):
        Command(
            "bad", [sys.executable, "-c", "import sys; print('the reason', file=sys.stderr); sys.exit(3)"]
        ).measure()
    with (
        pytest.raises(BenchmarkError, match="No such file"),
        Worker("tests.benchmarks.rivals:array", {"path": str(tmp_path / "none.npy"), "batch_size": 1, "frames": 1}),
    ):
        pass


def test_a_worker_measures_again_and_again_and_says_what_it_lacks(tmp_path):
    """Rates are units by time; a package that is missing is no error."""
    np.save(tmp_path / "cells.npy", np.zeros((40, 20, 8), np.uint8))
    arguments = {"path": str(tmp_path / "cells.npy"), "batch_size": 4, "frames": 10}
    with Worker("tests.benchmarks.rivals:array", arguments) as worker:
        for part in ("plain", "training", "plain"):
            found = worker.measure(part, 0.02)
            assert found.units > 0
            assert found.units % 4 == 0
            assert found.seconds >= 0.02
            assert 0 < found.cpu_s < 10 * found.seconds + 1
    with Worker("tests.benchmarks.no_such_bench:open", {}) as worker:
        assert worker.missing.startswith("no package tests.benchmarks.no_such_bench in ")


def test_arguments_are_checked_before_anything_is_measured(tmp_path, capsys):
    """One line, exit code 2."""
    assert main(["startup", "--work", str(tmp_path / "none")]) == 2
    assert "--work must be an existing folder" in capsys.readouterr().err
    assert main(["startup", "--torch-python", "/no/python"]) == 2
    assert "--torch-python must be an executable Python. Received: /no/python" in capsys.readouterr().err
    assert main(["converter", "--gigabytes", "1e9"]) == 2
    assert "pass fewer, or another --work" in capsys.readouterr().err


@pytest.mark.torture
def test_startup_imports_nothing_large():
    """Help and a wrong argument answer in a small part of the time of `import tensorflow`."""
    document = benchmark("startup", *SMALL)
    (found,) = comparisons(document)
    assert {ratio["target"]["at_most"] for ratio in found["ratios"]} == {0.05}
    assert all(ratio["median"] < 0.5 for ratio in found["ratios"])  # far off the target: a shared machine
    assert all(note.endswith("it imports none") for note in found["notes"])
    assert document["environment"]["processor"]


@pytest.mark.torture
def test_converter_compares_with_cat_and_with_the_float_list_design(tmp_path):
    """Every case has a sample, records are a quarter of the bytes, memory does not grow; the folder is empty after."""
    document = benchmark("converter", *SMALL, "--gigabytes", "0.02", "--tracks", "200", "--work", str(tmp_path))
    others, memory = comparisons(document)
    assert len(others["samples"]) == 4
    assert all(len(some) == 1 for some in others["samples"].values())
    by_measure = {ratio["target"]["measure"]: ratio["median"] for ratio in others["ratios"]}
    assert by_measure["bytes a unit"] == pytest.approx(4.0, rel=0.1)
    assert memory["ratios"][0]["median"] < 1.5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_every_stream_hands_over_segments(records, music, tmp_path):
    """Ours, raw, plain and augmented; the original's examples; one array, which holds every segment of the records."""
    from tests.benchmarks import original, streams
    from tfmusic.records.manifest import Manifest
    from tfmusic.records.reader import iterate

    manifest = Manifest.read(records)
    frames, n_bins = manifest.segment_frames, manifest.contract.n_bins
    found = rivals.write_array(str(records), str(tmp_path / "array.npy")).facts["segments"]
    stored = np.load(tmp_path / "array.npy")
    segments = [cells for split in manifest.splits for _, cells in iterate(manifest, split)]
    assert found == len(segments)
    np.testing.assert_array_equal(stored, np.stack(segments))
    original.write_files(str(music / "q2"), str(tmp_path / "floats"), frames, 20)
    benches = {
        "raw": streams.raw(str(records), 8),
        "plain": streams.ours(str(records), 8, None, "none"),
        "training": streams.ours(str(records), 8, 64, "LD"),
        "original": original.stream(str(tmp_path / "floats"), 8, frames, 64, n_bins),
        "array": rivals.array(str(tmp_path / "array.npy"), 8, 64),
    }
    for name, bench in benches.items():
        for part in bench.parts.values():
            clock = Clock()
            assert part(clock, 0.02) >= 8, name
            assert clock.cpu_s > 0, name
    clock = Clock()
    warp = streams.warp(8, frames, n_bins, 40).parts["warp"]
    assert warp(clock, 0.02) >= 8


@pytest.mark.parametrize("frames", [3, 64, 161, 400])
def test_the_rivals_warp_is_a_warp(frames):
    """Rows never go back, begin at the first frame, end at the last, and one point has moved."""
    rows = rivals.warped_rows(np.random.default_rng(0), 50, frames)
    assert rows.shape == (50, frames)
    assert (np.diff(rows, axis=1) >= 0).all()
    assert (rows[:, 0] == 0).all()
    assert (rows[:, -1] == frames - 1).all()
    assert frames == 3 or (rows != np.arange(frames)).any()


@pytest.mark.torture
def test_serving_compares_whole_tracks():
    """The SavedModel answers faster than a window at a time does."""
    found, sound = comparisons(benchmark("serving", *SMALL, "--width", "4"))
    assert found["ratios"][0]["median"] > 1.0
    assert {"waveform in the graph", "mel by numpy, then the graph"} <= set(sound["samples"])


@pytest.mark.torture
def test_models_compare_the_same_network():
    """Training and inference are measured; where PyTorch is not installed, the table says so."""
    document = benchmark("models", *SMALL, "--networks", "crnn", "--width", "4", "--batch-size", "2", "--threads", "1")
    (found,) = comparisons(document)
    assert {"train: Keras", "infer: Keras"} <= set(found["samples"])
    if not HAS_TORCH:
        assert all("no package torch" in ratio["verdict"] for ratio in found["ratios"])
        pytest.skip("PyTorch is not installed (extra `benchmark`): compared with nothing")
    assert all(ratio["median"] > 0 for ratio in found["ratios"])


@pytest.mark.parametrize("name", ["crnn", "cnn2d", "resnet18", "resnet34"])
def test_the_networks_in_pytorch_are_ours(name):
    """Trainable parameters are as many, and logits have the same shape."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra `benchmark`)")
    from tests.benchmarks.torch_twins import build, extra_parameters
    from tfmusic.models import build_model

    network = build(name, 100, 40, 3, 8)
    ours = build_model(name, frames=100, n_bins=40, n_outputs=3, width=8)
    n_ours = sum(int(np.prod(variable.shape)) for variable in ours.trainable_variables)
    assert sum(p.numel() for p in network.parameters()) - extra_parameters(network) == n_ours
    assert network(torch.zeros(2, 100, 40, dtype=torch.uint8)).shape == (2, 3)
