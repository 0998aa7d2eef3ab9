"""`tfmusic models [CONFIG]`: the architectures with their cost and receptive field, for the input of a task."""

import argparse
import time
from typing import TYPE_CHECKING, Any

from tfmusic.commands import arguments
from tfmusic.core.runtime import start_tensorflow

if TYPE_CHECKING:
    from tfmusic.config.sections import Config

_MEASURE_BATCH, _MEASURE_S = 16, 2.0
_DEFAULT_OUTPUTS = 10  # where only the data can say how many labels there are
_EMBEDDING_DIMS = 1506  # of musicnn, as an example of embeddings, which the mlp is for


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

    # The width of a config for embeddings is that of the mlp, too large for networks on spectrograms.
    names = ["mlp"] if config.model.name == "mlp" else list(BUILDERS)
    rows = [_row(name, config, measure=args.measure) for name in names]
    header = (
        "model",
        "parameters",
        "million multiply-adds",
        "receptive field",
        *(["windows/s"] if args.measure else []),
    )
    console.result(models=[dict(zip(header, row, strict=True)) for row in rows])
    console.table(rows, header, digits=1)
    seconds = config.input.frames * config.feature.hop_length / config.feature.sample_rate_hz
    width = "the papers' widths" if config.model.width is None else f"width {config.model.width}"
    console.say(
        f"{width}; for one window of {config.input.frames} frames ({seconds:.1f} s) of {config.feature.n_bins} bins"
        f" and {_n_outputs(config)} outputs; mlp: one embedding of {_EMBEDDING_DIMS:,}"
    )


def _row(name: str, config: "Config", *, measure: bool) -> tuple[Any, ...]:
    from tfmusic.models import build_model
    from tfmusic.models.cost import multiply_adds, receptive_field

    frames, n_bins = (1, _EMBEDDING_DIMS) if name == "mlp" else (config.input.frames, config.feature.n_bins)
    model = build_model(name, frames=frames, n_bins=n_bins, n_outputs=_n_outputs(config), width=config.model.width)
    reach = receptive_field(model)
    field = "all" if reach is None else f"{reach:,} frames"
    row = (name, model.count_params(), multiply_adds(model) / 1e6, field)
    return (*row, _windows_per_s(model)) if measure else row


def _n_outputs(config: "Config") -> int:
    """Returns the usual number of labels of the data set; only its records know for sure."""
    return config.data.n_labels or _DEFAULT_OUTPUTS


def _windows_per_s(model: Any) -> float:
    """Returns predicted windows a second, without the first call, which compiles."""
    import numpy as np

    model.compile(jit_compile=False)
    codes = np.zeros((_MEASURE_BATCH, *model.input.shape[1:]), np.uint8)
    model.predict_on_batch(codes)
    begin, calls = time.monotonic(), 0
    while time.monotonic() - begin < _MEASURE_S:
        model.predict_on_batch(codes)
        calls += 1
    return calls * _MEASURE_BATCH / (time.monotonic() - begin)
