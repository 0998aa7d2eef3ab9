"""Scores over the time of one track, and the named parts that they fall into."""

from dataclasses import dataclass

import numpy as np

CHANGE_COST = 1.0  # nats a change of label must gain: a label e times as likely over one stretch


@dataclass(frozen=True)
class Timeline:
    """Scores of a track over time.

    Attributes:
        edges: ends of the stretches, frames, int64 [n_stretches + 1], from the first window to the end of the last.
        scores: [n_stretches, n_labels], each the mean of the windows that cover the stretch; NaN where none does.
    """

    edges: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Part:
    """A stretch of a track that one label leads.

    Attributes:
        begin: first frame.
        end: frame after the last.
        labels: ids of the strongest labels, the leading one first.
        scores: their mean scores over the part.
    """

    begin: int
    end: int
    labels: tuple[int, ...]
    scores: tuple[float, ...]


def timeline(window_scores: np.ndarray, starts: np.ndarray, *, frames: int, n_frames: int) -> Timeline:
    """Returns the scores over time of windows that may overlap.

    Args:
        window_scores: [n_windows, n_labels].
        starts: first frame of every window, ascending, [n_windows].
        frames: length of a window.
        n_frames: length of the track, frames.
    """
    ends = np.minimum(starts + frames, n_frames)
    edges = np.unique(np.concatenate([starts, ends]))
    covers = (starts[None, :] <= edges[:-1, None]) & (ends[None, :] >= edges[1:, None])  # [n_stretches, n_windows]
    n_windows = covers.sum(1, keepdims=True)
    return Timeline(edges, covers @ window_scores / np.where(n_windows, n_windows, np.nan))


def parts(line: Timeline, *, n_named: int, change_cost: float = CHANGE_COST) -> list[Part]:
    """Returns the parts of a track in order, the fewest that the scores justify; none where no window lies.

    The leading labels are the sequence with the highest sum of log scores, less a cost for every change (Viterbi
    1967), so that one odd window does not make a part of its own.

    Args:
        line: scores over time.
        n_named: how many labels a part names at most.
        change_cost: of a change of the leading label, nats.
    """
    scored = np.flatnonzero(~np.isnan(line.scores[:, 0]))
    leading = _best_path(np.log(np.maximum(line.scores[scored], 1e-7)), change_cost)
    is_first = np.append(True, (leading[1:] != leading[:-1]) | (np.diff(scored) > 1))
    is_last = np.append(is_first[1:], True)
    ranges = zip(scored[is_first], scored[is_last] + 1, leading[is_first], strict=True)
    return [_part(line, int(begin), int(end), int(label), n_named) for begin, end, label in ranges]


def _part(line: Timeline, begin: int, end: int, leading: int, n_named: int) -> Part:
    lengths = np.diff(line.edges)[begin:end]
    scores = np.average(line.scores[begin:end], axis=0, weights=lengths)
    others = [int(i) for i in np.argsort(-scores, kind="stable") if i != leading]
    labels = (leading, *others[: n_named - 1])
    return Part(int(line.edges[begin]), int(line.edges[end]), labels, tuple(float(scores[label]) for label in labels))


def _best_path(gains: np.ndarray, change_cost: float) -> np.ndarray:
    """Returns the labels [n] of the highest sum of gains [n, n_labels], a change of label costing something."""
    total, came_from = gains[0], np.zeros(gains.shape, int)
    stay = np.arange(gains.shape[1])
    for i in range(1, len(gains)):
        best = int(total.argmax())
        came_from[i] = np.where(total[best] - change_cost > total, best, stay)
        total = total[came_from[i]] - change_cost * (came_from[i] != stay) + gains[i]
    path = np.empty(len(gains), int)
    path[-1] = total.argmax()
    for i in range(len(gains) - 1, 0, -1):
        path[i - 1] = came_from[i][path[i]]
    return path
