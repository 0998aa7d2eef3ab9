"""`tfmusic models [CONFIG]`: what there is to choose from, for the input of a task."""

import argparse
import time
from typing import TYPE_CHECKING, Any

from tfmusic.commands import arguments
from tfmusic.core.runtime import start_tensorflow

if TYPE_CHECKING:
    from tfmusic.config.sections import Config

_MEASURE_BATCH, _MEASURE_S = 16, 2.0
_SOME_OUTPUTS = 10  # of a task whose number of labels only its data can tell
_EMBEDDING_DIMS = 1506  # the mlp is for embeddings; those of musicnn stand for them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("config", nargs="?", default="q1", help="task (default q1) or path of a .yaml file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.path=value", help="model.width=null: the papers' widths"
    )
    parser.add_argument("--measure", action="store_true", help="also measure predictions a second on this machine")


def run(args: argparse.Namespace) -> None:
    """Prints the table."""
    from tfmusic.console import console

    config = arguments.read_config(args)
    start_tensorflow()
    from tfmusic.models import BUILDERS

    # A config for embeddings has a width that is the mlp's: no network of spectrograms could be built with it.
    names = ["mlp"] if config.model.name == "mlp" else list(BUILDERS)
    rows = [_row(name, config, measure=args.measure) for name in names]
    header = (
        "model",
        "parameters",
        "million multiply-adds",
        "receptive field",
        *(["segments/s"] if args.measure else []),
    )
    console.result(models=[dict(zip(header, row, strict=True)) for row in rows])
    console.table(rows, header, digits=1)
    seconds = config.input.frames * config.feature.hop_length / config.feature.sample_rate_hz
    width = "the papers' widths" if config.model.width is None else f"width {config.model.width}"
    console.say(
        f"{width}; for one segment of {config.input.frames} frames ({seconds:.1f} s) of {config.feature.n_bins} bins"
        f" and {_n_outputs(config)} outputs; mlp: one embedding of {_EMBEDDING_DIMS:,}"
    )


def _row(name: str, config: "Config", *, measure: bool) -> tuple[Any, ...]:
    from tfmusic.models import build_model
    from tfmusic.models.cost import multiply_adds, receptive_field

    frames, n_bins = (1, _EMBEDDING_DIMS) if name == "mlp" else (config.input.frames, config.feature.n_bins)
    model = build_model(name, frames=frames, n_bins=n_bins, n_outputs=_n_outputs(config), width=config.model.width)
    reach = receptive_field(model)
    seen = "all" if reach is None else f"{reach:,} frames"
    row = (name, model.count_params(), multiply_adds(model) / 1e6, seen)
    return (*row, _segments_per_s(model)) if measure else row


def _n_outputs(config: "Config") -> int:
    """Returns how many labels the data set has as a rule; only records know for sure."""
    return config.data.n_labels or _SOME_OUTPUTS


def _segments_per_s(model: Any) -> float:
    """Returns predictions a second; the first call, which compiles, is left out."""
    import numpy as np

    model.compile(jit_compile=False)
    codes = np.zeros((_MEASURE_BATCH, *model.input.shape[1:]), np.uint8)
    model.predict_on_batch(codes)
    begin, calls = time.monotonic(), 0
    while time.monotonic() - begin < _MEASURE_S:
        model.predict_on_batch(codes)
        calls += 1
    return calls * _MEASURE_BATCH / (time.monotonic() - begin)
