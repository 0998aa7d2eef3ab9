"""Matplotlib figures as SVG in a page, in the light or dark colours of its style sheet.

Matplotlib draws with placeholder colours, which the SVG then replaces by variables of the style sheet (`--ink`,
`--series1`, ...). Text stays text, so that the browser shows it in its own fonts.
"""

import base64
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.features.filterbanks import bin_hz
from tfmusic.reports.page import clock

N_SERIES = 5

_NAMES = ("ink", "faint", "line", *(f"series{i + 1}" for i in range(N_SERIES)))
PLACEHOLDERS = {name: f"#0{i + 1}0{i + 1}0{i + 1}" for i, name in enumerate(_NAMES)}
_PALETTE_SIZE = 64
_FREQUENCIES_HZ = (50, 100, 200, 500, 1000, 2000, 4000, 8000, 16000)  # that are written beside bins
_LEAST_GAP = 0.09  # of the height, between two of them


def style(colours: Mapping[str, str]) -> Any:
    """Returns the style of all figures for `matplotlib.rc_context`, in some colours by name."""
    return {
        "svg.fonttype": "none",
        "text.parse_math": False,  # a label may hold a dollar sign
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": colours["faint"],
        "axes.labelcolor": colours["ink"],
        "text.color": colours["ink"],
        "xtick.color": colours["faint"],
        "ytick.color": colours["faint"],
        "grid.color": colours["line"],
        "axes.grid": True,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
    }


@dataclass(frozen=True)
class Line:
    """One line of a chart: its points, name in the legend (none if empty), colour and opacity."""

    x: Sequence[float]
    y: Sequence[float]
    name: str = ""
    colour: str = "series1"
    opacity: float = 1.0
    has_points: bool = False


def line_chart(
    key: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    mark_x: float | None = None,
    has_diagonal: bool = False,
) -> Markup:
    """Returns a chart of lines.

    Args:
        key: a name that is unique in the page.
        lines: what is drawn.
        x_label, y_label: of the axes.
        x_range, y_range: limits of the axes, by default those of the lines.
        mark_x: position of a dotted vertical line.
        has_diagonal: whether a dotted line shows x = y.
    """
    with mpl.rc_context(style(PLACEHOLDERS)):
        figure, axes = _figure(4.4, 2.7)
        if mark_x is not None:
            axes.axvline(mark_x, color=PLACEHOLDERS["faint"], linestyle=":", linewidth=1)
        if has_diagonal:
            axes.plot([0, 1], [0, 1], color=PLACEHOLDERS["faint"], linestyle=":", linewidth=1)
        for line in lines:
            axes.plot(
                line.x, line.y, color=PLACEHOLDERS[line.colour], alpha=line.opacity, linewidth=1.6,
                label=line.name or None, marker="o" if line.has_points or len(line.x) == 1 else None, markersize=3.5,
            )  # fmt: skip
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set(**{name: ends for name, ends in (("xlim", x_range), ("ylim", y_range)) if ends is not None})
        if any(line.name for line in lines):
            axes.legend(loc="best", fontsize=8)
        return to_svg(figure, key)


def interval_chart(key: str, rows: Sequence[tuple[str, float, float, float]], *, x_label: str) -> Markup:
    """Returns values with their intervals, one row each, the first on top: name, value, low, high."""
    with mpl.rc_context(style(PLACEHOLDERS)):
        figure, axes = _figure(6.4, 0.7 + 0.28 * len(rows))
        places = np.arange(len(rows))[::-1]
        for place, (_, value, low, high) in zip(places, rows, strict=True):
            axes.plot([low, high], [place, place], color=PLACEHOLDERS["series1"], linewidth=1.6)
            axes.plot([value], [place], color=PLACEHOLDERS["series1"], marker="o", markersize=5)
        axes.set_yticks(places, [row[0] for row in rows])
        axes.set(xlabel=x_label, ylim=(-0.6, len(rows) - 0.4))
        axes.grid(axis="y", visible=False)
        return to_svg(figure, key)


def track_chart(
    key: str,
    codes: np.ndarray,
    contract: Contract,
    *,
    edges_s: np.ndarray,
    scores: np.ndarray,
    height: float = 2.3,
) -> Markup:
    """Returns the spectrogram of a track with scores over time under it.

    Args:
        key: a name that is unique in the page.
        codes: stored codes, [n_frames, n_bins].
        contract: of the codes.
        edges_s: ends of the intervals of time, seconds, [n_intervals + 1].
        scores: [n_intervals, n_lines], in the colours series1, series2, ...
        height: inches.
    """
    with mpl.rc_context(style(PLACEHOLDERS)):
        figure, (above, below) = _figure(6.4, height, rows=(3, 2))
        draw_spectrogram(above, codes, contract)
        for i, line in enumerate(scores.T):
            below.stairs(line, edges_s, baseline=None, color=PLACEHOLDERS[f"series{i + 1}"], linewidth=1.6)
        below.set(xlim=(edges_s[0], edges_s[-1]), ylim=(-0.04, 1.04), xlabel="time (m:ss)", ylabel="score")
        name_times(below)
        return to_svg(figure, key)


def draw_spectrogram(axes: Any, codes: np.ndarray, contract: Contract, *, columns: int = 480, rows: int = 64) -> None:
    """Draws stored codes [n_frames, n_bins], low bins at the bottom; neighbouring frames are averaged to fit."""
    small = _shrink(_shrink(codes.astype(np.float32), columns).T, rows)
    low, high = np.percentile(small, [2, 99.5])
    seconds = len(codes) / contract.frames_per_s
    axes.imshow(
        small, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=max(high, low + 1e-6),
        extent=(0, seconds, 0, contract.n_bins), interpolation="none",
    )  # fmt: skip
    axes.grid(visible=False)
    name_bins(axes, contract.feature)
    name_times(axes)


def name_bins(axes: Any, feature: Feature) -> None:
    """Writes frequencies beside the bins of a spectrogram, Hz, or numbers of bins that are no frequencies."""
    n_bins, hz = feature.n_bins, bin_hz(feature)
    places: dict[float, str] = {place: str(place) for place in (n_bins, n_bins // 2, 0)}
    if hz is not None:
        places = {}
        for frequency in reversed([f for f in _FREQUENCIES_HZ if hz[0] <= f <= hz[-1]]):
            place = float(np.interp(frequency, hz, np.arange(n_bins) + 0.5))
            if not places or min(places) - place > _LEAST_GAP * n_bins:
                places[place] = f"{frequency // 1000}k" if frequency >= 1000 else str(frequency)
    axes.set_yticks(list(places), list(places.values()))
    axes.set_ylabel("bin" if hz is None else "Hz")


def name_times(axes: Any) -> None:
    """Writes minutes and seconds under an axis of seconds."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 1.5, 2, 3, 6, 10], integer=True))
    axes.xaxis.set_major_formatter(lambda seconds, _: clock(max(seconds, 0.0)))


def _shrink(rows: np.ndarray, max_rows: int) -> np.ndarray:
    """Returns means of neighbouring rows, at most `max_rows`."""
    if len(rows) <= max_rows:
        return rows
    edges = np.linspace(0, len(rows), max_rows + 1).astype(int)
    return np.asarray(np.add.reduceat(rows, edges[:-1], axis=0) / np.diff(edges)[:, None])


def _figure(width: float, height: float, rows: Sequence[float] = (1,)) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(len(rows), sharex=len(rows) > 1, height_ratios=rows)
    return figure, axes


def to_svg(figure: Figure, key: str) -> Markup:
    """Returns a figure that was drawn in `PLACEHOLDERS` as SVG in the colours of the page; `key` as in `line_chart`."""
    with mpl.rc_context({"svg.hashsalt": key}), io.StringIO() as file, warnings.catch_warnings():
        # Where matplotlib lacks a font, for Korean say, it guesses the width of the text; the browser has the font.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # unused, and not unique in a page of several figures
    text = re.sub(r'(data:image/png;base64,)([^"]+)', lambda match: match[1] + _with_palette(match[2]), text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]+" height="[^"]+"', r"\1", text, count=1)
    text = text.replace("<svg ", '<svg aria-hidden="true" ', 1)
    for name, colour in PLACEHOLDERS.items():
        text = text.replace(colour, f"var(--{name})")
    return Markup(text)  # matplotlib escapes its text


def _with_palette(encoded: str) -> str:
    """Returns a base64 PNG with a palette, which has a quarter of the bytes of one in RGBA."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB").quantize(_PALETTE_SIZE)
    with io.BytesIO() as file:
        picture.save(file, format="PNG", optimize=True)
        return base64.b64encode(file.getvalue()).decode()
