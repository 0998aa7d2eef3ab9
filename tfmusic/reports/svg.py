"""Matplotlib figures as SVG inside a page, in the colours of the page, light or dark.

Colours of a figure are names of the page's style sheet (`--ink`, `--series1`, ...): matplotlib draws with a stand-in
colour each, which the SVG then replaces by `var(--name)`. Text stays text, so that the browser's fonts show it.
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
from PIL import Image

from tfmusic.core.contract import Contract

N_SERIES = 5

_NAMES = ("ink", "faint", "line", *(f"series{i + 1}" for i in range(N_SERIES)))
STAND_IN = {name: f"#0{i + 1}0{i + 1}0{i + 1}" for i, name in enumerate(_NAMES)}
_COLOURS_OF_A_PICTURE = 64


def style(colours: Mapping[str, str]) -> Any:
    """Returns how figures of tfmusic look, for `matplotlib.rc_context`."""
    return {
        "svg.fonttype": "none",
        "text.parse_math": False,  # labels are names, whatever signs they hold
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
    """One line of a chart: its points, its name in the legend (none where empty), its colour and strength."""

    x: Sequence[float]
    y: Sequence[float]
    name: str = ""
    colour: str = "series1"
    strength: float = 1.0
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
    """Returns a chart of lines; names and labels in Latin letters, others belong beside it as text of the page.

    Args:
        key: a name that no other figure of the page has.
        lines: what is drawn.
        x_label, y_label: what the axes are.
        x_range, y_range: their ends, or as the lines need.
        mark_x: where a dotted vertical stands.
        has_diagonal: whether a dotted diagonal stands for x = y.
    """
    with mpl.rc_context(style(STAND_IN)):
        figure, axes = _figure(4.4, 2.7)
        if mark_x is not None:
            axes.axvline(mark_x, color=STAND_IN["faint"], linestyle=":", linewidth=1)
        if has_diagonal:
            axes.plot([0, 1], [0, 1], color=STAND_IN["faint"], linestyle=":", linewidth=1)
        for line in lines:
            axes.plot(
                line.x, line.y, color=STAND_IN[line.colour], alpha=line.strength, linewidth=1.6,
                label=line.name or None, marker="o" if line.has_points or len(line.x) == 1 else None, markersize=3.5,
            )  # fmt: skip
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set(**{name: ends for name, ends in (("xlim", x_range), ("ylim", y_range)) if ends is not None})
        if any(line.name for line in lines):
            axes.legend(loc="best", fontsize=8)
        return to_svg(figure, key)


def interval_chart(key: str, rows: Sequence[tuple[str, float, float, float]], *, x_label: str) -> Markup:
    """Returns values with their intervals, one line each from above: name, value, low, high."""
    with mpl.rc_context(style(STAND_IN)):
        figure, axes = _figure(6.4, 0.7 + 0.28 * len(rows))
        places = np.arange(len(rows))[::-1]
        for place, (_, value, low, high) in zip(places, rows, strict=True):
            axes.plot([low, high], [place, place], color=STAND_IN["series1"], linewidth=1.6)
            axes.plot([value], [place], color=STAND_IN["series1"], marker="o", markersize=5)
        axes.set_yticks(places, [row[0] for row in rows])
        axes.set(xlabel=x_label, ylim=(-0.6, len(rows) - 0.4))
        axes.grid(axis="y", visible=False)
        return to_svg(figure, key)


def track_chart(
    key: str,
    cells: np.ndarray,
    contract: Contract,
    *,
    edges_s: np.ndarray,
    scores: np.ndarray,
    height: float = 2.3,
) -> Markup:
    """Returns the spectrogram of a track with scores over time under it.

    Args:
        key: a name that no other figure of the page has.
        cells: stored cells [n_frames, n_bins].
        contract: of the cells.
        edges_s: ends of the stretches of time, seconds, [n_stretches + 1].
        scores: [n_stretches, n_lines], in the colours series1, series2, ...
        height: inches.
    """
    with mpl.rc_context(style(STAND_IN)):
        figure, (above, below) = _figure(6.4, height, rows=(3, 2))
        draw_spectrogram(above, cells, contract)
        for i, line in enumerate(scores.T):
            below.stairs(line, edges_s, baseline=None, color=STAND_IN[f"series{i + 1}"], linewidth=1.6)
        below.set(xlim=(edges_s[0], edges_s[-1]), ylim=(-0.04, 1.04), xlabel="seconds", ylabel="score")
        return to_svg(figure, key)


def draw_spectrogram(axes: Any, cells: np.ndarray, contract: Contract, *, columns: int = 480, rows: int = 64) -> None:
    """Draws stored cells [n_frames, n_bins] over time, low bins below; long tracks as means of neighbouring frames."""
    small = _shrink(_shrink(cells.astype(np.float32), columns).T, rows)
    low, high = np.percentile(small, [2, 99.5])
    seconds = len(cells) / contract.frames_per_s
    axes.imshow(
        small, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=max(high, low + 1e-6),
        extent=(0, seconds, 0, contract.n_bins), interpolation="none",
    )  # fmt: skip
    axes.grid(visible=False)
    axes.set_ylabel("bin")
    axes.set_yticks([0, contract.n_bins // 2, contract.n_bins])


def _shrink(rows: np.ndarray, most: int) -> np.ndarray:
    """Returns means of neighbouring rows, so that at most `most` are left."""
    if len(rows) <= most:
        return rows
    edges = np.linspace(0, len(rows), most + 1).astype(int)
    return np.asarray(np.add.reduceat(rows, edges[:-1], axis=0) / np.diff(edges)[:, None])


def _figure(width: float, height: float, rows: Sequence[float] = (1,)) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(len(rows), sharex=len(rows) > 1, height_ratios=rows)
    return figure, axes


def to_svg(figure: Figure, key: str) -> Markup:
    """Returns a figure drawn in the colours `STAND_IN` as SVG in those of the page; `key` as in `line_chart`."""
    with mpl.rc_context({"svg.hashsalt": key}), io.StringIO() as file, warnings.catch_warnings():
        # Names may be Korean: the browser has the fonts, matplotlib only guesses the width.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # no one refers to them, and the next figure has them too
    text = re.sub(r'(data:image/png;base64,)([^"]+)', lambda found: found[1] + _fewer_colours(found[2]), text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]+" height="[^"]+"', r"\1", text, count=1)
    text = text.replace("<svg ", '<svg aria-hidden="true" ', 1)
    for name, colour in STAND_IN.items():
        text = text.replace(colour, f"var(--{name})")
    return Markup(text)  # matplotlib escapes what it is given


def _fewer_colours(encoded: str) -> str:
    """Returns a PNG with a palette, a quarter of the bytes of one with four bytes a cell."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB").quantize(_COLOURS_OF_A_PICTURE)
    with io.BytesIO() as file:
        picture.save(file, format="PNG", optimize=True)
        return base64.b64encode(file.getvalue()).decode()
