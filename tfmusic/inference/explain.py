"""What a prediction is based on: the scores over time, and the importance of frequency bands and moments.

Importance is measured by occlusion (Zeiler & Fergus 2014, arXiv 1311.2901): a band, or a moment, is replaced by the
median of each bin over the track; how far the log odds of a label fall in the windows that contain it is its
importance. Only predictions are needed, so it works alike on every backend and for exports.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tfmusic.core.contract import Contract
from tfmusic.core.feature import EMBEDDING
from tfmusic.errors import UsageError
from tfmusic.inference.predictor import Predictor, TrackPrediction
from tfmusic.inference.result import N_NAMED, TrackResult, seconds
from tfmusic.scoring.aggregate import to_logits

N_BANDS = 8
SLICES_PER_WINDOW = 8

METHOD = (
    "occlusion: a band or a moment is replaced by the median of each of its bins over the track; shown is how much the"
    " log odds of the label fall in the windows that hold it"
)


@dataclass(frozen=True)
class Importance:
    """Falls of the log odds of some labels; above 0 for the label, below 0 against it.

    Attributes:
        labels: ids of the labels, the strongest first.
        band_edges: ends of the bands, bins, int64 [n_bands + 1].
        bands: [n_labels, n_bands], means over the windows of the track.
        slice_edges: ends of the moments, frames, int64 [n_slices + 1].
        slices: [n_labels, n_slices], means over the windows that hold the moment.
    """

    labels: tuple[int, ...]
    band_edges: np.ndarray
    bands: np.ndarray
    slice_edges: np.ndarray
    slices: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """A track's prediction and the importance of its bands and moments."""

    predictor: Predictor
    track_id: str
    prediction: TrackPrediction
    importance: Importance

    def to_dict(self) -> dict[str, Any]:
        """Returns the explanation for JSON; times in seconds, bands in bins."""
        names, importance = self.predictor.contract.labels, self.importance
        weights = {
            names[label]: {"bands": bands.round(4).tolist(), "slices": slices.round(4).tolist()}
            for label, bands, slices in zip(importance.labels, importance.bands, importance.slices, strict=True)
        }
        importance_json = {
            "method": METHOD,
            "band_edges_bins": importance.band_edges.tolist(),
            "slice_edges_s": seconds(importance.slice_edges, self.predictor.contract.frames_per_s),
            "labels": weights,
        }
        result = TrackResult.of(self.prediction, self.predictor.contract, self.predictor.scorer.aggregator)
        return {"track_id": self.track_id} | result.model_dump() | {"importance": importance_json}


def explain(
    predictor: Predictor, mel: np.ndarray, track_id: str, tokens: Sequence[str], on_pass: Callable[[], None]
) -> Explanation:
    """Returns the explanation of a track; `on_pass` is called after each of `n_passes` runs over the track.

    Args:
        predictor: the model.
        mel: linear power, float32 [n_bins, n_frames].
        track_id: name of the track.
        tokens: its metadata.
        on_pass: for the progress bar.
    """
    prediction = predictor.predict(mel, tokens)
    on_pass()
    order = np.argsort(-prediction.scores, kind="stable")
    labels = tuple(int(i) for i in order[: 1 if predictor.contract.kind == "single" else N_NAMED])
    importance = _importance(predictor, mel, prediction, labels, tokens, on_pass)
    return Explanation(predictor, track_id, prediction, importance)


def check_explainable(contract: Contract, command: str = "explain") -> None:
    """Raises UsageError where the input is no spectrogram, which alone has bands and moments."""
    if contract.feature.name == EMBEDDING:
        raise UsageError(f"{command} must be given a model of spectrograms. Received: one of embeddings")


def n_passes(n_frames: int, contract: Contract) -> int:
    """Returns how often `explain` runs the model over a track."""
    edges = _slice_edges(n_frames, contract)
    return 1 + N_BANDS + min(2 * SLICES_PER_WINDOW, len(edges) - 1)


def _importance(
    predictor: Predictor,
    mel: np.ndarray,
    prediction: TrackPrediction,
    labels: tuple[int, ...],
    tokens: Sequence[str],
    on_pass: Callable[[], None],
) -> Importance:
    usual = np.median(mel, axis=1, keepdims=True)
    before = to_logits(prediction.window_scores[:, labels])

    def fall(hidden: np.ndarray) -> np.ndarray:
        """Returns the falls [n_windows, n_labels] with the bins and frames of a mask [n_bins, n_frames] hidden."""
        occluded = predictor.predict(np.where(hidden, usual, mel), tokens)
        on_pass()
        return np.asarray(before - to_logits(occluded.window_scores[:, labels]))

    n_bins, n_frames = mel.shape
    band_edges = np.linspace(0, n_bins, N_BANDS + 1).astype(int)
    bins = np.arange(n_bins)[:, None]
    bands = [fall((bins >= low) & (bins < high)).mean(0) for low, high in pairwise(band_edges)]
    slice_edges = _slice_edges(n_frames, predictor.contract)
    slices = _slices(fall, prediction, slice_edges, predictor.contract.frames)
    return Importance(labels, band_edges, np.stack(bands, axis=1), slice_edges, slices)


def _slices(
    fall: Callable[[np.ndarray], np.ndarray], prediction: TrackPrediction, edges: np.ndarray, frames: int
) -> np.ndarray:
    """Returns the mean fall of each moment, [n_labels, n_slices]; 0 where no window sees it.

    Moments that no window sees together are hidden in one run, so that long tracks cost no more runs than short ones.
    """
    n_slices, step = len(edges) - 1, 2 * SLICES_PER_WINDOW
    place = np.searchsorted(edges, np.arange(prediction.n_frames), side="right") - 1  # the moment of every frame
    sees = (prediction.starts[:, None] < edges[None, 1:]) & (prediction.starts[:, None] + frames > edges[None, :-1])
    falls_by_moment = []
    for first in range(min(step, n_slices)):
        falls = fall((place % step == first)[None, :])
        for moment in range(first, n_slices, step):
            seen = sees[:, moment]  # no window of a part of the track that is not scored
            falls_by_moment.append((moment, seen @ falls / max(seen.sum(), 1)))
    return np.stack([value for _, value in sorted(falls_by_moment, key=lambda item: item[0])], axis=1)


def _slice_edges(n_frames: int, contract: Contract) -> np.ndarray:
    length = max(contract.frames // SLICES_PER_WINDOW, 1)
    return np.append(np.arange(0, n_frames, length), n_frames)
