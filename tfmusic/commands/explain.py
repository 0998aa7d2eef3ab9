"""`tfmusic explain MODEL TRACK [--out FILE]`: what the prediction of a track is based on."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tfmusic.commands import arguments
from tfmusic.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from tfmusic.core.track import Track
    from tfmusic.inference.explain import Explanation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="run folder or exported folder")
    parser.add_argument(
        "input", type=Path, metavar="TRACK", help="file of one track, or a folder together with --track"
    )
    parser.add_argument("--track", help="of a folder, the id of the track")
    parser.add_argument("--task", help="of a model for several tasks, the one to explain")
    arguments.add_output(parser, ".html: a page; .png: a picture; .json: the numbers")


def run(args: argparse.Namespace) -> None:
    """Prints the prediction and the parts of the track, and writes the explanation where --out names a file."""
    arguments.check_output(args, ".html", ".png", ".json")
    from tfmusic.inference.inputs import find_tracks

    track = _choose(find_tracks([args.input]), args)
    from tfmusic.console import console
    from tfmusic.datasets.metadata import tokens_of
    from tfmusic.features.read import read_input
    from tfmusic.inference.explain import check_explainable, explain, n_passes
    from tfmusic.inference.predict import check_inputs
    from tfmusic.inference.predictor import load_predictor
    from tfmusic.pretrained.taggers import find_model

    predictor = load_predictor(find_model(args.model), args.task)
    check_explainable(predictor.contract)
    check_inputs(predictor.contract, [track.feature_path])
    power = read_input(track.feature_path, track.track_id, predictor.contract.feature)
    with console.progress("explain", n_passes(power.shape[1], predictor.contract), "passes") as progress:
        explanation = explain(predictor, power, track.track_id, tokens_of(track.metadata), progress.advance)
    _show(explanation)
    if args.out is not None:
        _write(explanation, power, args.out)


def _choose(tracks: "list[Track]", args: argparse.Namespace) -> "Track":
    """Returns the only track of the input, or the one that --track names."""
    chosen = [track for track in tracks if args.track in (None, track.track_id)]
    if len(chosen) != 1:
        received = f"{len(chosen):,} tracks" if chosen else f"no track {args.track}"
        ids = ", ".join(track.track_id for track in tracks[:3]) + (", ..." if len(tracks) > 3 else "")
        raise UsageError(
            f"{args.input}: explain must be given one track. Received: {received}; name one with --track: {ids}"
        )
    return chosen[0]


def _show(explanation: "Explanation") -> None:
    from tfmusic.console import console
    from tfmusic.reports.explanation import headline, parts_lines

    result = explanation.to_dict()
    console.result(explanation=result)
    for line in (headline(result), *parts_lines(result)):
        console.show(line)


def _write(explanation: "Explanation", power: "np.ndarray", out: Path) -> None:
    from tfmusic.console import console
    from tfmusic.core.files import write_bytes, write_text
    from tfmusic.core.scale import Encoder
    from tfmusic.reports.explanation import TrackPicture, explanation_page, explanation_png

    contract, result = explanation.predictor.contract, explanation.to_dict()
    if out.suffix == ".json":
        write_text(out, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
        return console.say(f"explanation: {out}")
    codes = Encoder(contract.scale, contract.dtype).encode(power)
    picture = TrackPicture(contract, codes, result)
    if out.suffix == ".html":
        write_text(out, explanation_page(picture))
    else:
        png, has_fonts = explanation_png(picture)
        write_bytes(out, png)
        if not has_fonts:
            console.warn(f"{out}: this machine has no font for some labels, which appear as boxes; use --out FILE.html")
    return console.say(f"explanation: {out}")
