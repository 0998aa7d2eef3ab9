"""An explanation of one track as a page or a PNG: spectrogram, scores, parts, and what the prediction is based on."""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from tfmusic.core.contract import Contract
from tfmusic.reports.page import clock, render
from tfmusic.reports.pictures import choose_fonts
from tfmusic.reports.svg import PLACEHOLDERS, draw_spectrogram, name_times, style, to_svg

_LINES = 5
_ON_PAPER = {
    "ink": "#1a1c20", "faint": "#565d67", "line": "#d5d9df", "series1": "#1f56c4", "series2": "#b4500b",
    "series3": "#0b7a55", "series4": "#a3246f", "series5": "#6b46c1",
}  # fmt: skip


@dataclass(frozen=True)
class TrackPicture:
    """What the pictures of an explanation are drawn from.

    Attributes:
        contract: of the model.
        codes: the track as the model sees it, [n_frames, n_bins].
        result: the explanation as in its JSON file.
    """

    contract: Contract
    codes: np.ndarray
    result: Mapping[str, Any]

    @property
    def shown(self) -> list[str]:
        """The labels whose scores are drawn, the strongest first."""
        return list(self.result["timeline"]["scores"])[:_LINES]


def explanation_page(picture: TrackPicture) -> str:
    """Returns the page of a track."""
    result, scores = picture.result, picture.result["scores"]
    labels = [result["prediction"]] if isinstance(result["prediction"], str) else result["prediction"]
    return render(
        "explain.html",
        result=result,
        prediction=prediction_text(result),
        predicted=set(labels),
        legend=[(label, scores[label], False) for label in picture.shown],
        charts=[
            (label, _chart(picture, label, f"track-{i}")) for i, label in enumerate(result["importance"]["labels"])
        ],
        top=sorted(scores.items(), key=lambda item: -item[1])[:20],
    )


def explanation_png(picture: TrackPicture) -> tuple[bytes, bool]:
    """Returns a PNG with all of it, and whether this machine has fonts for all of its text."""
    label, lines = next(iter(picture.result["importance"]["labels"])), _text_lines(picture.result)
    fonts, missing = choose_fonts([*lines, *picture.shown])
    with (
        mpl.rc_context(style(_ON_PAPER) | {"font.family": fonts}),
        warnings.catch_warnings(),
        io.BytesIO() as file,
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = _draw(picture, label, _ON_PAPER, lines=lines)
        figure.savefig(file, format="png", dpi=150, facecolor="white", metadata={"Software": None})
        return file.getvalue(), not missing


def prediction_text(result: Mapping[str, Any]) -> str:
    """Returns the predicted label or tags of a track as text; "no tag" where there are none."""
    prediction = result["prediction"]
    return prediction if isinstance(prediction, str) else ", ".join(prediction) or "no tag"


def parts_lines(result: Mapping[str, Any]) -> list[str]:
    """Returns a line for each part: 0:00-0:42 and its labels with scores."""
    return [
        f"{clock(part['begin_s'])}-{clock(part['end_s'])}  "
        + "  ".join(f"{name} {score:.2f}".replace(" 0.", " .") for name, score in part["labels"].items())
        for part in result["parts"]
    ]


def headline(result: Mapping[str, Any]) -> str:
    """Returns the track, its prediction, and what the prediction was aggregated from, in a line."""
    aggregator = result["aggregator"].replace("_", " ")
    return f"{result['track_id']}: {prediction_text(result)} ({aggregator} over {result['windows']} windows)"


def _text_lines(result: Mapping[str, Any]) -> list[str]:
    return [headline(result), *parts_lines(result)[:12]]


def _chart(picture: TrackPicture, label: str, key: str) -> Markup:
    with mpl.rc_context(style(PLACEHOLDERS)):
        return to_svg(_draw(picture, label, PLACEHOLDERS), key)


def _draw(picture: TrackPicture, label: str, colours: Mapping[str, str], lines: Sequence[str] = ()) -> Figure:
    """Returns spectrogram, scores and weights over time, one below the other; weights of bands beside; text above."""
    figure = Figure(figsize=(8.4, 3.9 + 0.2 * len(lines)), layout="constrained")
    if lines:
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=9)
    axes = figure.subplots(3, 2, width_ratios=(8, 1.4), height_ratios=(3, 2, 1.2), squeeze=False)
    for empty in axes[1:, 1]:
        empty.set_axis_off()
    (spectrogram, bands), scores, moments = axes[0], axes[1, 0], axes[2, 0]
    draw_spectrogram(spectrogram, picture.codes, picture.contract)
    end = picture.result["duration_s"]
    _draw_scores(scores, picture, colours)
    if lines:  # on a page the legend is text beside the picture
        axes[1, 1].legend(
            *scores.get_legend_handles_labels(), loc="center left", fontsize=8, bbox_to_anchor=(-0.3, 0.5)
        )
    importance = picture.result["importance"]
    weights = importance["labels"][label]
    edges = np.array(importance["slice_edges_s"])
    _draw_signed(moments, edges, weights["slices"], colours, orientation="vertical")
    moments.set(xlabel="time (m:ss)", ylabel="weight")
    bins = np.array(importance["band_edges_bins"])
    _draw_signed(bands, bins, weights["bands"], colours, orientation="horizontal")
    bands.set(xlabel="weight", ylim=(0, picture.contract.n_bins), yticks=[])
    for over_time in (spectrogram, scores, moments):
        over_time.set_xlim(0, end)
        name_times(over_time)
    for upper in (spectrogram, scores):
        upper.tick_params(labelbottom=False)
    return figure


def _draw_scores(axes: Any, picture: TrackPicture, colours: Mapping[str, str]) -> None:
    line = picture.result["timeline"]
    for i, label in enumerate(picture.shown):
        axes.stairs(
            np.array(line["scores"][label], float), line["edges_s"], baseline=None,
            color=colours[f"series{i + 1}"], linewidth=1.6, label=label,
        )  # fmt: skip
    axes.set(ylim=(-0.04, 1.04), ylabel="score")


def _draw_signed(
    axes: Any, edges: np.ndarray, values: Sequence[float], colours: Mapping[str, str], *, orientation: str
) -> None:
    """Draws bars from 0: positive weights (for the label) in one colour, negative ones (against it) in another."""
    draw = axes.bar if orientation == "vertical" else axes.barh
    for colour, kept in (("series1", np.maximum(values, 0)), ("series2", np.minimum(values, 0))):
        sizes = {"width" if orientation == "vertical" else "height": np.diff(edges) * 0.92}
        draw(edges[:-1], kept, align="edge", color=colours[colour], **sizes)
