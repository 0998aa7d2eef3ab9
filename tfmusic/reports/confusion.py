"""A confusion matrix as a picture, for TensorBoard."""

import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tfmusic.reports.explanation import fonts

_MOST_NAMED = 30


def confusion_picture(counts: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Returns uint8 [height, width, 3]; rows are true classes, colours shares of them, numbers counts.

    Args:
        counts: [n_classes, n_classes].
        labels: names of the classes; more than 30 are numbered.
    """
    n, is_named = len(labels), len(labels) <= _MOST_NAMED
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    with mpl.rc_context({"font.family": fonts(), "font.size": 8}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = Figure(figsize=(2 + 0.4 * min(n, 20), 1.6 + 0.34 * min(n, 20)), dpi=80, layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="answered", ylabel="true")
        if is_named:
            axes.set_xticks(range(n), labels, rotation=45, ha="right")
            axes.set_yticks(range(n), labels)
            for i, j in np.ndindex(n, n):
                axes.text(j, i, str(counts[i, j]), ha="center", va="center", color="w" if shares[i, j] > 0.6 else "k")
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
