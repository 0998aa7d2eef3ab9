"""One predictor for runs and exports: linear power of a track in, its prediction out.

The model of a run, an ONNX and a LiteRT export see windows, which `WindowPredictor` cuts and a `TrackScorer` joins. A
SavedModel does both in its graph. Only what a model needs is imported: an ONNX export needs neither TensorFlow nor
Keras.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.core.contract import Contract
from tfmusic.core.rundir import RunDir, is_run, to_finish
from tfmusic.core.runtime import start_tensorflow
from tfmusic.core.scale import Encoder
from tfmusic.core.windows import TrackCodes, batch_windows, outputs_by_track, window_starts
from tfmusic.errors import RunError
from tfmusic.inference.model_folder import (
    ExportedWindowModel,
    check_fits,
    choose_task,
    load_contract,
    load_predict_fn,
    window_format,
)
from tfmusic.scoring.track_scorer import TrackScorer

BATCH_SIZES = (16, 64)  # windows; every other size would be compiled anew


@dataclass(frozen=True)
class TrackPrediction:
    """The prediction for a track.

    Attributes:
        scores: [n_labels], calibrated.
        chosen: bool [n_labels], the predicted labels.
        window_scores: [n_windows, n_labels], calibrated.
        starts: first frame of every window, [n_windows].
        n_frames: length of the track, frames.
    """

    scores: np.ndarray
    chosen: np.ndarray
    window_scores: np.ndarray
    starts: np.ndarray
    n_frames: int


@dataclass(frozen=True)
class Predictor(ABC):
    """A loaded model for any number of tracks.

    Attributes:
        contract: of the task that it predicts.
        scorer: from the windows to the prediction.
    """

    contract: Contract
    scorer: TrackScorer

    @abstractmethod
    def predict_tracks(self, tracks: Iterable[tuple[np.ndarray, Sequence[str]]]) -> Iterator[TrackPrediction]:
        """Yields the predictions for tracks, in their order.

        Args:
            tracks: linear power, float32 [n_bins, n_frames], as `read_feature` returns it, and metadata tokens such as
                "genres=jazz", which models without metadata ignore.
        """

    def predict(self, power: np.ndarray, tokens: Sequence[str] = ()) -> TrackPrediction:
        """Returns the prediction for one track."""
        return next(iter(self.predict_tracks([(power, tokens)])))


@dataclass(frozen=True)
class WindowPredictor(Predictor):
    """A model of windows: its `predict_on_batch` takes codes, or [codes, metadata], and returns logits."""

    model: Any

    def predict_tracks(self, tracks: Iterable[tuple[np.ndarray, Sequence[str]]]) -> Iterator[TrackPrediction]:
        """Yields the predictions for tracks; windows of several tracks share a batch."""
        contract, lengths = self.contract, list[int]()
        encoder = Encoder(contract.scale, contract.dtype)

        def encoded() -> Iterator[TrackCodes]:
            for row, (power, tokens) in enumerate(tracks):
                lengths.append(power.shape[1])
                metadata = np.array(contract.encode_metadata(tokens), np.float32) if contract.metadata else None
                yield row, encoder.encode(power), metadata

        batches = batch_windows(encoded(), **contract.windows, batch_sizes=BATCH_SIZES)
        for row, logits in outputs_by_track(batches, self.model.predict_on_batch):
            scores = self.scorer.track_scores(logits)
            chosen = self.scorer.decide(scores[None])[0]
            starts = window_starts(lengths[row], **contract.windows)
            yield TrackPrediction(scores, chosen, self.scorer.window_scores(logits), starts, lengths[row])


@dataclass(frozen=True)
class TrackModelPredictor(Predictor):
    """A model of whole tracks, which scores them itself.

    Attributes:
        scores_fn: power and tokens to `track_scores`, `window_scores` and `window_starts`.
    """

    scores_fn: Callable[[np.ndarray, Sequence[str]], dict[str, np.ndarray]]

    def predict_tracks(self, tracks: Iterable[tuple[np.ndarray, Sequence[str]]]) -> Iterator[TrackPrediction]:
        """Yields the predictions for tracks, one at a time."""
        for power, tokens in tracks:
            outputs = self.scores_fn(power, tokens)
            scores = outputs["track_scores"].astype(np.float64)
            chosen = self.scorer.decide(scores[None])[0]
            window_scores = outputs["window_scores"].astype(np.float64)
            yield TrackPrediction(scores, chosen, window_scores, outputs["window_starts"], power.shape[1])


def load_predictor(folder: Path, task: str | None = None) -> Predictor:
    """Returns the predictor of a run or an export.

    Raises:
        RunError: the folder is neither, or it is damaged.
        UsageError: `task` is not one of the model's, or is missing where it has several; or the package that runs the
            export is not installed.
    """
    contract = load_contract(folder)
    if is_run(folder):
        return load_run(RunDir(folder), task)
    contract = contract.parts()[choose_task(contract, task)].contract
    scorer = TrackScorer.load(folder / "calibration.json", contract)
    if window_format(folder):
        return WindowPredictor(contract, scorer, ExportedWindowModel(folder, contract))
    return TrackModelPredictor(contract, scorer, load_predict_fn(folder))


def load_run(run: RunDir, task: str | None = None) -> WindowPredictor:
    """Returns the predictor with the best model of a run; of several tasks, with the head of one.

    Raises:
        UsageError: `task` is not one of the model's, or is missing where it has several.
        RunError: a file is missing or damaged, the contract does not fit the model, or the model would run code of its
            own.
    """
    start_tensorflow()
    import keras

    from tfmusic.models import for_prediction
    from tfmusic.models.surgery import load_saved

    run.check()
    contract, path = Contract.load(run.contract), run.checkpoint("best")
    part = contract.parts()[choose_task(contract, task)].contract
    if not path.is_file():
        raise RunError(f"{path}: no such file: the run has not finished an epoch")
    if not run.calibration.is_file():
        raise RunError(f"{run.path}: training has not ended. Finish it with {to_finish(run)}")
    model = load_saved(path)
    if contract.heads:
        model = keras.Model(model.input, _head(model, part.task, path))
    shapes = ([_described(tensor) for tensor in tensors] for tensors in (model.inputs, model.outputs))
    check_fits(path, part, *shapes)
    return WindowPredictor(part, TrackScorer.load(run.calibration, part), for_prediction(model))


def _head(model: Any, task: str, path: Path) -> Any:
    try:
        return model.get_layer(f"logits_{task}").output
    except ValueError as error:
        raise RunError(
            f"{path}: must have a head for {task}, as the contract beside it says; restore both files from the same"
            " training"
        ) from error


def _described(tensor: Any) -> tuple[tuple[int, ...], str]:
    return tuple(tensor.shape[1:]), getattr(tensor.dtype, "name", tensor.dtype)  # Keras 2 has TensorFlow's types
