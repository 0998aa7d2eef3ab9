"""Pictures as PNG: those of an inspection, and confusion matrices for TensorBoard; fonts for labels of any script."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from tfmusic.core.feature import Feature
from tfmusic.reports.inspection import Example, Inspection
from tfmusic.reports.svg import name_bins, name_times

_MAX_NAMED = 30  # classes of a confusion matrix
_DPI = 110
_COLOURS = ("#4477AA", "#EE6677", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
_MAX_LABELS = 60
_MAX_TOGETHER = 25
_RANGE_DB = 80.0  # of the colours, below the maximum of an example


class Pictures:
    """Draws the pictures of an inspection into a folder; `names` has the text for each label."""

    def __init__(self, inspection: Inspection, names: Mapping[str, str], fonts: Sequence[str], folder: Path) -> None:
        self.inspection, self.names, self.fonts, self.folder = inspection, names, list(fonts), folder

    def draw(self) -> list[Path]:
        """Draws labels and lengths and, where tracks have several labels, two pictures more; returns the files."""
        drawn = [self.labels()]
        if len(self.inspection.seconds):
            drawn.append(self.lengths())
        if max(self.inspection.labels_per_track) > 1:
            drawn += [self.labels_per_track(), self.together()]
        return drawn

    def labels(self) -> Path:
        """Draws one bar for each label, the most frequent at the top, in the colours of the splits."""
        counts = dict(list(self.inspection.counts.items())[:_MAX_LABELS])
        with self._figure("labels", 8.0, 1.2 + 0.24 * len(counts) + 0.4 * bool(self.inspection.splits)) as (
            figure,
            path,
        ):
            axes, left = figure.subplots(), np.zeros(len(counts))
            places = np.arange(len(counts))
            splits = self.inspection.splits
            for split, colour in zip(splits or ("",), _colours(len(splits) or 1), strict=True):
                in_split = self.inspection.counts_of(split) if split else counts
                widths = np.array([in_split.get(label, 0) for label in counts])
                axes.barh(places, widths, left=left, color=colour, height=0.75, label=split or None)
                left += widths
            for place, total in zip(places, left, strict=True):
                axes.annotate(
                    f"{total:,.0f}", (total, place), (3, 0), textcoords="offset points", va="center", fontsize=8
                )
            axes.set_yticks(places, [_short(self.names[label], 40) for label in counts])
            axes.set_ylim(len(counts) - 0.4, -0.6)
            axes.set_xlim(0, left.max() * 1.09)
            axes.set_xlabel("tracks")
            more = len(self.inspection.counts) - len(counts)
            axes.set_title(
                f"{self.inspection.name}: tracks by label" + (f" ({more} rarer labels left out)" if more else "")
            )
            if splits:
                figure.legend(loc="outside lower center", ncols=min(len(splits), 6), frameon=False)
            _plain(axes, "x")
        return path

    def lengths(self) -> Path:
        """Draws a histogram of the lengths of tracks."""
        seconds = self.inspection.seconds
        low, high = seconds.min(), seconds.max()
        if high - low < 1.0:  # equal lengths: one bar instead of forty of a few milliseconds
            low, high = low - 0.5, high + 0.5
        with self._figure("lengths", 8.0, 3.6) as (figure, path):
            axes = figure.subplots()
            axes.hist(seconds, bins=np.linspace(low, high, 41), color=_COLOURS[0])
            self._describe(axes, f"{len(seconds):,} tracks, {seconds.sum() / 3600:,.2f} hours", "length (s)")
        return path

    def labels_per_track(self) -> Path:
        """Draws how many tracks have how many labels."""
        counts = self.inspection.labels_per_track
        with self._figure("labels_per_track", 8.0, 3.6) as (figure, path):
            axes = figure.subplots()
            axes.bar(list(counts), list(counts.values()), color=_COLOURS[0])
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            self._describe(axes, "labels per track", "labels per track")
        return path

    def _describe(self, axes: Any, title: str, x_label: str) -> None:
        axes.set(xlabel=x_label, ylabel="tracks", title=f"{self.inspection.name}: {title}")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axes, "y")

    def together(self) -> Path:
        """Draws the share of the tracks of one label (row) that also have another label (column)."""
        labels = list(self.inspection.counts)[:_MAX_TOGETHER]
        shares = self.inspection.together(labels)
        np.fill_diagonal(shares, np.nan)
        size = 3.0 + 0.3 * len(labels)
        with self._figure("together", size + 1.0, size) as (figure, path):
            axes = figure.subplots()
            top = float(np.nanmax(shares)) if len(labels) > 1 else 1.0
            image = axes.imshow(shares, cmap="viridis", vmin=0.0, vmax=max(top, 1e-9))
            axes.set_facecolor("#DDDDDD")
            texts = [_short(self.names[label], 24) for label in labels]
            axes.set_xticks(range(len(labels)), texts, rotation=90)
            axes.set_yticks(range(len(labels)), texts)
            axes.set_title(
                f"{self.inspection.name}: share of the tracks of a row\nthat also have the label of the column"
            )
            figure.colorbar(image, ax=axes, shrink=0.7)
        return path

    def examples(
        self, number: int, label: str, examples: Sequence[Example], *, feature: Feature, is_power: bool
    ) -> Path:
        """Draws a page of spectrograms of one label, all over the same number of seconds."""
        frames_per_s = feature.frames_per_s
        n_rows, longest_s = -(-len(examples) // 2), max(example.values.shape[1] for example in examples) / frames_per_s
        with self._figure(f"examples-{number:02d}", 10.0, 0.8 + 2.2 * n_rows) as (figure, path):
            grid = figure.subplots(n_rows, 2, squeeze=False)
            for axes in grid.ravel()[len(examples) :]:
                axes.set_visible(False)
            for place, (axes, example) in enumerate(zip(grid.ravel(), examples, strict=False)):
                end_s = example.start_s + example.values.shape[1] / frames_per_s
                extent = (example.start_s, end_s, 0, len(example.values))
                limits = _limits(shown := _shown(example.values, is_power), is_power)
                axes.imshow(
                    shown,
                    origin="lower",
                    aspect="auto",
                    cmap="magma",
                    extent=extent,
                    interpolation="nearest",
                    vmin=limits[0],
                    vmax=limits[1],
                )
                axes.set_xlim(example.start_s, example.start_s + longest_s)
                axes.set_title(example.track_id, fontsize=9)
                name_bins(axes, feature)
                name_times(axes)
                axes.set_xlabel("time (m:ss)" if place >= len(examples) - 2 else "")
            figure.suptitle(
                f"{self.inspection.name}: {_short(self.names[label], 60)}, {self.inspection.counts[label]:,} tracks"
            )
        return path

    @contextmanager
    def _figure(self, name: str, width: float, height: float) -> Iterator[tuple[Any, Path]]:
        """Yields an empty figure of a size in inches, and writes it as PNG."""
        path = self.folder / f"{name}.png"
        with mpl.rc_context({"font.family": self.fonts, "axes.unicode_minus": False, "text.parse_math": False}):
            layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
            figure = Figure(figsize=(width, min(height, 40.0)), layout=layout)
            yield figure, path
            figure.savefig(path, dpi=_DPI, metadata={"Software": None})


def _shown(values: np.ndarray, is_power: bool) -> np.ndarray:
    """Returns power as dB, other values as they are."""
    if not is_power:
        return values
    return np.asarray(10.0 * np.log10(np.maximum(values, max(float(values.max()), 1e-30) * 1e-12)))


def _limits(shown: np.ndarray, is_power: bool) -> tuple[float, float]:
    low, high = float(shown.min()), float(shown.max())
    return (max(low, high - _RANGE_DB) if is_power else low, max(high, low + 1e-9))


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _colours(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def _plain(axes: Any, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def confusion_picture(counts: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Returns the confusion matrix as a picture, uint8 [height, width, 3]: numbers are counts, colours shares of a row.

    Args:
        counts: tracks by true class (row) and predicted class (column), [n_classes, n_classes].
        labels: names of the classes; more than 30 are numbered.
    """
    n, is_named = len(labels), len(labels) <= _MAX_NAMED
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    fonts, _ = choose_fonts(labels if is_named else ())
    with mpl.rc_context({"font.family": fonts, "font.size": 8, "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = Figure(figsize=(2 + 0.4 * min(n, 20), 1.6 + 0.34 * min(n, 20)), dpi=80, layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="predicted", ylabel="true")
        if is_named:
            axes.set_xticks(range(n), labels, rotation=45, ha="right")
            axes.set_yticks(range(n), labels)
            for i, j in np.ndindex(n, n):
                axes.text(j, i, str(counts[i, j]), ha="center", va="center", color="w" if shares[i, j] > 0.6 else "k")
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


_FIRST = "DejaVu Sans"  # comes with matplotlib
_PREFERRED = (  # have the characters of Korean and Japanese
    "Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo",
    "AppleGothic", "Source Han Sans KR", "Baekmuk Gulim", "UnDotum", "Yu Gothic", "MS Gothic", "IPAexGothic",
    "WenQuanYi Zen Hei",
)  # fmt: skip
_MAX_FONTS = 4


def choose_fonts(texts: Iterable[str]) -> tuple[list[str], set[str]]:
    """Returns names of fonts that together show some texts, and the characters that none of them has."""
    missing = {character for text in texts for character in text if character.isprintable()} - _characters(_FIRST)
    fonts = [_FIRST]
    for name in _candidates() if missing else ():
        if missing & _characters(name):
            fonts.append(name)
            missing -= _characters(name)
        if not missing or len(fonts) == _MAX_FONTS:
            break
    return fonts, missing


def picture_names(labels: Sequence[str], missing: set[str]) -> Mapping[str, str]:
    """Returns what stands for each label on a picture: the label, or its number where a character has no font."""
    return {label: f"no. {i}" if missing.intersection(label) else label for i, label in enumerate(labels, 1)}


@cache
def _candidates() -> list[str]:
    """Returns the fonts of this machine beside the first, those with the characters of Korean and Japanese in front.

    Matplotlib caches its list of fonts on disk; fonts that were installed later are added here.
    """
    listed = {font.fname for font in fontManager.ttflist}
    for path in sorted(set(findSystemFonts()) - listed):
        with suppress(OSError, RuntimeError, ValueError, KeyError):  # a font that matplotlib cannot read
            fontManager.addfont(path)
    # The font Last Resort, which comes with matplotlib, has a box for every character.
    names = sorted({font.name for font in fontManager.ttflist if "Last Resort" not in font.name} - {_FIRST})
    return sorted(names, key=lambda name: _PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED))


@cache
def _characters(name: str) -> frozenset[str]:
    """Returns the characters of a font in its regular, upright form; none where there is no such form."""
    paths = [font.fname for font in fontManager.ttflist if font.name == name and _is_regular(font)]
    return frozenset(map(chr, FT2Font(min(paths)).get_charmap())) if paths else frozenset()


def _is_regular(font: Any) -> bool:
    return font.style == "normal" and str(font.weight) in ("400", "normal", "regular", "book")
