"""One track explained, as a page or as a picture: its spectrogram, scores, parts, and what the answer rests on."""

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib import font_manager
from matplotlib.figure import Figure

from tfmusic.core.contract import Contract
from tfmusic.reports.page import clock, render
from tfmusic.reports.svg import STAND_IN, draw_spectrogram, style, to_svg

_LINES = 5
_ON_PAPER = {
    "ink": "#1a1c20", "faint": "#565d67", "line": "#d5d9df", "series1": "#1f56c4", "series2": "#b4500b",
    "series3": "#0b7a55", "series4": "#a3246f", "series5": "#6b46c1",
}  # fmt: skip
_WITH_HANGUL = (
    "Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo", "Source Han Sans KR",
    "Noto Sans CJK JP", "Baekmuk Gulim", "UnDotum",
)  # fmt: skip


@dataclass(frozen=True)
class TrackPicture:
    """What the pictures of an explanation are drawn from.

    Attributes:
        contract: of the model.
        cells: stored cells [n_frames, n_bins].
        told: the explanation, as JSON has it.
    """

    contract: Contract
    cells: np.ndarray
    told: Mapping[str, Any]

    @property
    def shown(self) -> list[str]:
        """The labels that have a line, the strongest first."""
        return list(self.told["timeline"]["scores"])[:_LINES]


def explanation_page(picture: TrackPicture) -> str:
    """Returns the page of a track."""
    told = picture.told
    charts = [(label, _chart(picture, label, f"track-{i}")) for i, label in enumerate(told["importance"]["labels"])]
    order = sorted(told["scores"], key=lambda name: -told["scores"][name])
    answer = [told["prediction"]] if isinstance(told["prediction"], str) else told["prediction"]
    return render(
        "explain.html",
        told=told,
        answer=", ".join(answer) or "nothing",
        chosen=set(answer),
        legend=[(label, told["scores"][label], False) for label in picture.shown],
        charts=charts,
        top=[(name, told["scores"][name]) for name in order[:20]],
    )


def explanation_png(picture: TrackPicture) -> tuple[bytes, bool]:
    """Returns a PNG with all of it, and whether some sign of its text has no font on this machine."""
    label = next(iter(picture.told["importance"]["labels"]))
    with (
        mpl.rc_context(style(_ON_PAPER) | {"font.family": fonts()}),
        warnings.catch_warnings(record=True) as noted,
        io.BytesIO() as file,
    ):
        warnings.simplefilter("always")
        figure = _draw(picture, label, _ON_PAPER, lines=_text_lines(picture.told))
        figure.savefig(file, format="png", dpi=150, facecolor="white", metadata={"Software": None})
        return file.getvalue(), any("missing from" in str(note.message) for note in noted)


def fonts() -> list[str]:
    """Returns the fonts of pictures: matplotlib's own, then those of this machine that have Korean and Japanese."""
    manager = font_manager.fontManager
    # Its list is made once on a machine, and does not know of fonts that were installed since.
    for path in set(font_manager.findSystemFonts()) - {font.fname for font in manager.ttflist}:
        with contextlib.suppress(Exception):  # a font that cannot be read is one that is not there
            manager.addfont(path)
    known = {font.name for font in manager.ttflist}
    return ["DejaVu Sans", *(name for name in _WITH_HANGUL if name in known)]


def parts_lines(told: Mapping[str, Any]) -> list[str]:
    """Returns a line for each part: 0:00-0:42 and its labels with scores."""
    return [
        f"{clock(part['begin_s'])}-{clock(part['end_s'])}  "
        + "  ".join(f"{name} {score:.2f}".replace(" 0.", " .") for name, score in part["labels"].items())
        for part in told["parts"]
    ]


def _text_lines(told: Mapping[str, Any]) -> list[str]:
    answer = told["prediction"] if isinstance(told["prediction"], str) else ", ".join(told["prediction"]) or "nothing"
    head = f"{told['track_id']}: {answer} ({told['aggregator'].replace('_', ' ')} over {told['windows']} windows)"
    return [head, *parts_lines(told)[:12]]


def _chart(picture: TrackPicture, label: str, key: str) -> Markup:
    with mpl.rc_context(style(STAND_IN)):
        return to_svg(_draw(picture, label, STAND_IN), key)


def _draw(picture: TrackPicture, label: str, colours: Mapping[str, str], lines: Sequence[str] = ()) -> Figure:
    """Returns spectrogram, scores and moments, one under the other, with the bands beside; text above where given."""
    figure = Figure(figsize=(8.4, 3.9 + 0.2 * len(lines)), layout="constrained")
    if lines:
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=9)
    axes = figure.subplots(3, 2, width_ratios=(8, 1.4), height_ratios=(3, 2, 1.2), squeeze=False)
    for below in axes[1:, 1]:
        below.set_axis_off()
    (above, beside), scores, moments = axes[0], axes[1, 0], axes[2, 0]
    draw_spectrogram(above, picture.cells, picture.contract)
    end = picture.told["duration_s"]
    _draw_scores(scores, picture, colours)
    if lines:  # on a page the legend is text beside the picture
        axes[1, 1].legend(
            *scores.get_legend_handles_labels(), loc="center left", fontsize=8, bbox_to_anchor=(-0.3, 0.5)
        )
    importance = picture.told["importance"]
    found = importance["labels"][label]
    edges = np.array(importance["slice_edges_s"])
    _draw_signed(moments, edges, found["slices"], colours, orientation="vertical")
    moments.set(xlabel="seconds", ylabel="weight")
    bins = np.array(importance["band_edges_bins"])
    _draw_signed(beside, bins, found["bands"], colours, orientation="horizontal")
    beside.set(xlabel="weight", ylim=(0, picture.contract.n_bins), yticks=[])
    for part in (above, scores, moments):
        part.set_xlim(0, end)
    for part in (above, scores):
        part.tick_params(labelbottom=False)
    return figure


def _draw_scores(axes: Any, picture: TrackPicture, colours: Mapping[str, str]) -> None:
    line = picture.told["timeline"]
    for i, label in enumerate(picture.shown):
        axes.stairs(
            line["scores"][label], line["edges_s"], baseline=None, color=colours[f"series{i + 1}"], linewidth=1.6,
            label=label,
        )  # fmt: skip
    axes.set(ylim=(-0.04, 1.04), ylabel="score")


def _draw_signed(
    axes: Any, edges: np.ndarray, values: Sequence[float], colours: Mapping[str, str], *, orientation: str
) -> None:
    """Draws bars from 0: what speaks for the label in one colour, what speaks against it in another."""
    draw = axes.bar if orientation == "vertical" else axes.barh
    for colour, kept in (("series1", np.maximum(values, 0)), ("series2", np.minimum(values, 0))):
        sizes = {"width" if orientation == "vertical" else "height": np.diff(edges) * 0.92}
        draw(edges[:-1], kept, align="edge", color=colours[colour], **sizes)
