"""Answers for whole tracks of different lengths: the SavedModel against `model.predict` and against PyTorch."""

from collections.abc import Iterator, Mapping

from tests.benchmarks.cases import Asked, BenchmarkError, Worker
from tests.benchmarks.comparison import Options, Result, Target, measure, opened

_NETWORK, _WIDTH = "resnet18", 16  # the model of the configs q1 and q3


def run(options: Options) -> Iterator[Result]:
    """Yields the comparison."""
    hop_frames = max(options.frames // 2, 1)
    shape = {"name": _NETWORK, "width": options.width or _WIDTH, "frames": options.frames, "hop_frames": hop_frames}
    folder, env = str(options.work / "export"), options.thread_variables
    ours = Worker("tests.benchmarks.saved_model:tracks", {"folder": folder, **shape}, env=env)
    layouts = {
        f"PyTorch, {layout}, a track at a time": Worker(
            "tests.benchmarks.torch_twins:tracks", {**shape, "layout": layout}, options.torch_python, env
        )
        for layout in ("contiguous", "channels_last")
    }
    with opened(ours, *layouts.values()):
        counts = {worker.facts["parameters"] for worker in (ours, *layouts.values()) if not worker.missing}
        if len(counts) != 1:
            raise BenchmarkError(f"the networks must have the same number of parameters. Received: {counts}")
        saved = Asked("SavedModel, a track at a time", ours, "saved_model", options.seconds)
        by_segment = Asked("model.predict, a segment at a time", ours, "segment", options.seconds)
        theirs = [Asked(name, worker, "track", options.seconds) for name, worker in layouts.items()]
        targets = [
            Target((saved.name,), (by_segment.name,), "units per wall s", at_least=4.0),
            Target((saved.name,), tuple(layouts), "units per wall s", at_least=1.5),
            Target((saved.name,), tuple(layouts), "units per CPU s"),
        ]
        title = (
            f"serving: windows of {options.frames} x 128, one each {hop_frames} frames, of tracks of 600 to 9,000"
            f" frames; {_NETWORK} of width {shape['width']}"
        )
        yield measure(title, [saved, by_segment, *theirs], targets, options)
    yield _waveforms(options, shape)


def _waveforms(options: Options, shape: Mapping[str, object]) -> Result:
    """Returns the comparison of places where the spectrogram of a waveform can be computed."""
    folder, env = str(options.work / "sound"), options.thread_variables
    worker = Worker("tests.benchmarks.saved_model:waveforms", {"folder": folder, **shape}, env=env)
    with opened(worker):
        names = {
            "graph": "waveform in the graph",
            "numpy": "mel by numpy, then the graph",
            "librosa": "mel by librosa, then the graph",
        }
        cases = {way: Asked(names[way], worker, way, options.seconds) for way in worker.facts["ways"]}
        targets = [
            Target((names["graph"],), (names[way],), "units per wall s", at_least=1.0)
            for way in cases
            if way != "graph"
        ]
        title = f"serving: waveforms of 30 s at 16 kHz to scores; {_NETWORK} of width {shape['width']}"
        return measure(title, list(cases.values()), targets, options)
