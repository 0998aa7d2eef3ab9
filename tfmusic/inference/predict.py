"""Predictions for tracks on disk, from a run or an export."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tfmusic.console import console
from tfmusic.core.contract import Contract
from tfmusic.core.feature import EMBEDDING, Feature
from tfmusic.core.files import text_cell
from tfmusic.core.track import Track
from tfmusic.datasets.metadata import tokens_of
from tfmusic.errors import DataError, UsageError
from tfmusic.features import embeddings
from tfmusic.features.audio import is_audio
from tfmusic.features.npy import find_feature
from tfmusic.features.read import read_feature
from tfmusic.inference.model_folder import load_contract
from tfmusic.inference.predictor import load_predictor
from tfmusic.scoring.track_scorer import TrackScorer


@dataclass
class TrackReader:
    """Reads tracks, and keeps by row in `skipped` why some cannot be read; `on_track` is called after each."""

    tracks: tuple[Track, ...]
    on_track: Callable[[], None]
    skipped: dict[int, str] = field(default_factory=dict)

    def read(self, read_fn: Callable[[Track], np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Yields row and what `read_fn` returns of the tracks that can be read."""
        for row, track in enumerate(self.tracks):
            try:
                values = read_fn(track)
            except DataError as error:
                self.skipped[row] = str(error)
            except OSError as error:
                self.skipped[row] = f"{track.feature_path}: {error.strerror or error}"
            else:
                yield row, values
            self.on_track()

    def check_any(self, n_read: int) -> None:
        """Raises DataError where no track could be read, with the reason of the first."""
        if not n_read:
            others = f" (and {len(self.skipped) - 1} more)" if len(self.skipped) > 1 else ""
            raise DataError(f"{self.skipped[0]}{others}")


@dataclass(frozen=True)
class Predictions:
    """Scores of tracks, float64 [n_tracks, n_labels], in the order of the tracks.

    `skipped` says by row why a track could not be read; its scores are NaN.
    """

    contract: Contract
    track_ids: tuple[str, ...]
    scores: np.ndarray
    scorer: TrackScorer
    skipped: Mapping[int, str] = field(default_factory=dict)

    def names(self) -> list[Any]:
        """Returns a label name, or a list of tag names that may be empty, for every track; None for one skipped."""
        names = self.scorer.names(self.scores, self.contract.labels)
        return [None if row in self.skipped else name for row, name in enumerate(names)]


def predict_tracks(
    model_path: Path, tracks: Iterable[Track], on_track: Callable[[], None], *, task: str | None = None
) -> Predictions:
    """Returns the scores of tracks from a run or an export; `on_track` is called after every track that was read.

    A track that cannot be read is skipped. `task` names the task to predict where a run has several.

    Raises:
        RunError: the folder is neither a run nor an export.
        UsageError: `task` is missing or none of the model's.
        DataError: no track can be read.
    """
    reader = TrackReader(tuple(tracks), on_track)
    check_inputs(load_contract(model_path), [track.feature_path for track in reader.tracks])
    predictor = load_predictor(model_path, task)
    contract = predictor.contract
    if contract.metadata and not any(track.metadata for track in reader.tracks):
        console.warn("the model uses metadata, but these tracks have none: it predicts from the spectrograms alone")
    rows: list[int] = []

    def readable() -> Iterator[tuple[np.ndarray, Sequence[str]]]:
        for row, power in reader.read(feature_fn(contract)):
            rows.append(row)
            yield power, tokens_of(reader.tracks[row].metadata)

    scores = np.full((len(reader.tracks), len(contract.labels)), np.nan)
    for place, prediction in enumerate(predictor.predict_tracks(readable())):
        scores[rows[place]] = prediction.scores
    reader.check_any(len(rows))
    track_ids = tuple(track.track_id for track in reader.tracks)
    return Predictions(contract, track_ids, scores, predictor.scorer, reader.skipped)


def feature_fn(contract: Contract) -> Callable[[Track], np.ndarray]:
    """Returns what reads the feature [n_bins, n_frames] of a track, as a contract says."""
    return lambda track: read_feature(track.feature_path, track.track_id, contract.feature)


def check_inputs(contract: Contract, paths: Iterable[Path]) -> None:
    """Raises UsageError where files do not suit a model.

    A model of spectrograms takes sound and `.npy` files, the latter of its own feature where their folder says what
    they are; a model of embeddings those of the network that it was trained on, and neither of the others.
    """
    wanted = contract.feature
    for path in dict.fromkeys(paths):
        given = _feature_of(path, wanted)
        if given != wanted:
            raise UsageError(f"{path}: the model takes {_describe(wanted)}. Received: {_describe(given)}")


def _feature_of(path: Path, wanted: Feature) -> Feature | str:
    """Returns what a file holds or can be turned into, as far as that is known."""
    if path.suffix == ".npz":
        return embeddings.read_index(path).feature
    if wanted.name == EMBEDDING:
        return "sound" if is_audio(path) else "a spectrogram"
    found = None if is_audio(path) else find_feature(path.parent)
    return wanted if found is None else found[1]


def _describe(feature: Feature | str) -> str:
    if isinstance(feature, Feature) and feature.name == EMBEDDING:
        return f"embeddings of {feature.source}, a file of tfmusic embed"
    return str(feature)


def predictions_table(
    track_ids: Sequence[str],
    predictions: Sequence[Any],
    scores: np.ndarray,
    labels: Sequence[str],
    targets: Sequence[Any] | None = None,
) -> pd.DataFrame:
    """Returns the columns track_id, prediction, target where known, and `score:LABEL` for every label.

    Several tags are a JSON list in their cell. A track without a prediction, None, has empty cells. A text that a
    spreadsheet would run as a formula gets a quote in front of it, file names included.
    """
    columns: dict[str, Any] = {
        "track_id": [text_cell(name) for name in track_ids],
        "prediction": [_cell(prediction) for prediction in predictions],
    }
    if targets is not None:
        columns["target"] = [_cell(target) for target in targets]
    columns |= {f"score:{label}": scores[:, i].round(6) for i, label in enumerate(labels)}
    return pd.DataFrame(columns)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return text_cell(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
