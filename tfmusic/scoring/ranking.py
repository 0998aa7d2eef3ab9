"""Metrics of the order of scores, which need no threshold: ROC-AUC and PR-AUC, as scikit-learn to 1e-12.

ROC-AUC is the share of pairs of a track with a label and one without it whose scores stand in this order, ties for half
(Hanley & McNeil 1982). PR-AUC is the average precision: the mean of the precision at the rank of every track that has
the label. Macro is the mean over labels, micro takes all scores of all labels as one list.
"""

from dataclasses import dataclass

import numpy as np

from tfmusic.scoring.metrics import headline, per_label

_VALUES_AT_ONCE = 1 << 22  # of draws times scores: 32 MiB
_COST = 200_000_000  # scores that all draws of an interval may sort through together
NAMES = ("ROC-AUC", "PR-AUC", "micro ROC-AUC", "micro PR-AUC")


def label_areas(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ROC-AUC and PR-AUC of every label, [n_labels] each.

    NaN where no track has the label; ROC-AUC also where all have it.

    Args:
        scores: [n_tracks, n_labels], any numbers.
        targets: bool [n_tracks, n_labels].
    """
    roc, pr = _by_label(scores, targets, np.ones((len(scores), 1)))
    return roc[:, 0], pr[:, 0]


def area_intervals(
    scores: np.ndarray, targets: np.ndarray, *, samples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Returns value, low and high end of the 95 % interval of `NAMES` (bootstrap over tracks, Efron 1979, percentiles).

    Metrics that no label has a value of are left out. Of much data fewer draws are made, 100 at least.

    Args:
        scores: [n_tracks, n_labels].
        targets: bool [n_tracks, n_labels].
        samples: number of draws of as many tracks.
        seed: of the draws.
    """
    samples = int(np.clip(_COST // max(scores.size, 1), min(100, samples), samples))
    rng, n = np.random.default_rng(seed), len(scores)
    times = np.ones((n, samples + 1))  # how often a track is drawn; in the first column every track once
    for draw in range(samples):
        times[:, draw + 1] = np.bincount(rng.integers(0, n, n), minlength=n)
    values = _macro_and_micro(scores, targets, times)
    return {
        name: (float(drawn[0]), *np.nanpercentile(drawn[1:], [2.5, 97.5]).tolist())
        for name, drawn in zip(NAMES, values, strict=True)
        if np.isfinite(drawn[0])
    }


@dataclass(frozen=True)
class Curves:
    """The ROC and the precision-recall curve of one label, a point for every threshold, from the highest score down.

    Attributes:
        false_share: share of the tracks without the label that are taken for it, [n_points]; begins with 0.
        recall: share of those with the label that are found, [n_points]; begins with 0.
        precision: share of the found ones that have it, [n_points]; begins with 1.
    """

    false_share: np.ndarray
    recall: np.ndarray
    precision: np.ndarray


def curves(scores: np.ndarray, truth: np.ndarray) -> Curves:
    """Returns the curves of scores [n] of tracks with and without a label, bool [n]; both kinds must occur."""
    order = np.argsort(-scores, kind="stable")
    last = np.r_[np.diff(scores[order]) != 0, True]  # of equal scores
    hits, misses = np.cumsum(truth[order])[last], np.cumsum(~truth[order])[last]
    return Curves(np.r_[0.0, misses / misses[-1]], np.r_[0.0, hits / hits[-1]], np.r_[1.0, hits / (hits + misses)])


def validation_metric(name: str, predicted: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> float:
    """Returns a metric by its name in `training.monitor`; an area is the mean over the labels that have one, or 0.

    Args:
        name: accuracy, micro_f1, macro_f1, roc_auc or pr_auc.
        predicted: bool [n_tracks, n_labels].
        scores: [n_tracks, n_labels].
        targets: bool [n_tracks, n_labels].
    """
    if name in ("roc_auc", "pr_auc"):
        areas = label_areas(scores, targets)[name == "pr_auc"]
        known = areas[np.isfinite(areas)]
        return float(known.mean()) if known.size else 0.0
    if name == "macro_f1":
        found = per_label(predicted, targets)
        occurs = found["support"] > 0
        return float(found["f1"][occurs].mean()) if occurs.any() else 0.0
    return headline(predicted, targets, "single" if name == "accuracy" else "multi")


def _macro_and_micro(scores: np.ndarray, targets: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Returns `NAMES` for every draw, [4, n_draws]; `times` says how often a track is drawn, [n_tracks, n_draws]."""
    by_label = _by_label(scores, targets, times)
    has_value = np.isfinite(by_label)
    sums, counts = np.where(has_value, by_label, 0.0).sum(1), has_value.sum(1)
    macro = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    micro = _areas(scores.ravel(), targets.ravel(), np.repeat(np.arange(len(scores)), scores.shape[1]), times)
    return np.concatenate([macro, micro])


def _by_label(scores: np.ndarray, targets: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Returns ROC-AUC and PR-AUC, [2, n_labels, n_draws]."""
    tracks = np.arange(len(scores))
    return np.stack([_areas(one, truth, tracks, times) for one, truth in zip(scores.T, targets.T, strict=True)], axis=1)


def _areas(scores: np.ndarray, truth: np.ndarray, tracks: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Returns ROC-AUC and PR-AUC, [2, n_draws], of one list of scores [n], of which each belongs to one of the tracks.

    The scores are sorted once for all draws; after that only groups of equal scores with a true one among them count.
    """
    areas, step = np.full((2, times.shape[1]), np.nan), max(_VALUES_AT_ONCE // len(scores), 1)
    order = np.argsort(-scores, kind="stable")
    of_track, true_at = tracks[order], np.flatnonzero(truth[order])
    if not len(true_at):
        return areas
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    ends = np.r_[starts[1:], len(scores)]
    groups, firsts = np.unique(np.searchsorted(starts, true_at, side="right") - 1, return_index=True)
    for first in range(0, times.shape[1], step):
        chunk = slice(first, first + step)
        drawn = times[of_track, chunk]
        hits = np.add.reduceat(drawn[true_at], firsts)
        above = np.cumsum(hits, axis=0)  # true ones down to the end of a group
        until = np.concatenate([np.zeros_like(drawn[:1]), np.cumsum(drawn, axis=0)])
        at_start, at_end, n_true = until[starts[groups]], until[ends[groups]], above[-1]
        n_false = until[-1] - n_true
        misses = (at_start - (above - hits) + at_end - above) / 2  # false ones above a group, and half of those in it
        with np.errstate(invalid="ignore", divide="ignore"):
            areas[0, chunk] = (hits * (n_false - misses)).sum(0) / (n_true * n_false)
            areas[1, chunk] = (hits * np.nan_to_num(above / at_end)).sum(0) / n_true
    return areas
