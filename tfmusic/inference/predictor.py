"""What answers, from its folder: the model of a run, or an exported model of segments, and all that belongs to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfmusic.core.contract import Contract
from tfmusic.core.files import check_files
from tfmusic.core.rundir import RunDir, is_run, to_finish
from tfmusic.core.scale import Encoder
from tfmusic.core.windows import cut
from tfmusic.errors import RunError, UsageError
from tfmusic.export.card import CARD_JSON, model_card
from tfmusic.export.layout import is_export, is_of_segments
from tfmusic.inference.runtimes import SegmentModel, check_fits
from tfmusic.inputs.pipeline import EvaluationBatch
from tfmusic.models import for_prediction
from tfmusic.models.surgery import load_saved
from tfmusic.scoring.track_scorer import TrackScorer


@dataclass(frozen=True)
class LoadedRun:
    """The best model of a run, or an exported model of segments, with all that turns its logits into answers."""

    model: Any  # with predict_on_batch: codes, or [codes, metadata], to logits
    contract: Contract
    scorer: TrackScorer


def load_run(run: RunDir, task: str | None = None) -> LoadedRun:
    """Returns the best model of a run folder; of a model for several tasks, what answers one of them.

    Raises:
        UsageError: the model answers several tasks and `task` is none of them, or another than the only one.
        RunError: a file is missing or damaged, the contract is not that of the model, or the model would run code of
            its own.
    """
    run.check()
    contract, path = Contract.load(run.contract), run.checkpoint("best")
    task = choose_task(contract, task)
    if not path.is_file():
        raise RunError(f"{path}: no such file: the run has not finished an epoch")
    if not run.calibration.is_file():
        raise RunError(f"{run.path}: training has not ended. Finish it with {to_finish(run)}")
    model = load_saved(path)
    if contract.heads:
        model = keras.Model(model.input, _head(model, task, path))
    for_prediction(model)
    part = contract.parts()[task].contract
    scorer = TrackScorer.load(run.calibration, part)
    check_fits(path, part, *([_spec(one) for one in some] for some in (model.inputs, model.outputs)))
    return LoadedRun(model, part, scorer)


def _head(model: keras.Model, task: str, path: Path) -> Any:
    try:
        return model.get_layer(f"logits_{task}").output
    except ValueError as error:
        raise RunError(
            f"{path}: must have a head for {task}, as the contract beside it says; bring back files that belong"
            " together"
        ) from error


def _spec(tensor: Any) -> tuple[tuple[int, ...], str]:
    return tuple(tensor.shape[1:]), getattr(tensor.dtype, "name", tensor.dtype)  # Keras 2 has TensorFlow's types


def card_of(run: RunDir, loaded: LoadedRun) -> dict[str, Any]:
    """Returns the model card of a run that has been loaded."""
    return model_card(
        run,
        loaded.contract,
        loaded.scorer,
        n_parameters=loaded.model.count_params(),
    )


def choose_task(contract: Contract, task: str | None) -> str:
    """Returns the task that a model is asked for; raises UsageError where that is not clear."""
    tasks = list(contract.parts())
    if task is None and len(tasks) == 1:
        return tasks[0]
    if task not in tasks:
        raise UsageError(
            f"--task must be one of {', '.join(tasks)}, which the model answers. Received: {task or 'none'}"
        )
    return task


def load_answering(path: Path, contract: Contract, task: str | None = None) -> LoadedRun | None:
    """Returns what a run folder or an export of segments answers with; None for a SavedModel, which answers itself.

    `contract` is that of the folder, as `load_contract` returns it.

    Raises:
        UsageError: as `load_run`; or the package that runs the export is not installed.
        RunError: the folder is damaged, or does not say how windows become an answer.
    """
    if is_run(path):
        return load_run(RunDir(path), task)
    choose_task(contract, task)
    if not is_of_segments(path):
        return None
    scorer = TrackScorer.load(path / "calibration.json", contract)
    return LoadedRun(SegmentModel(path, contract), contract, scorer)


def load_contract(model_path: Path) -> Contract:
    """Returns the contract of a run or an export; raises RunError where the folder is neither, or damaged."""
    if is_export(model_path) or is_run(model_path):
        check_files(model_path, only=["contract.json"] if is_run(model_path) else None)
        return Contract.load(model_path / "contract.json")
    raise RunError(f"{model_path}: must be a run folder with a trained model, or what tfmusic export wrote")


PREDICT_BATCH = 64


@dataclass(frozen=True)
class TrackPrediction:
    """What a model says of a track.

    Attributes:
        scores: [n_labels], calibrated, as `predict` gives them.
        chosen: bool [n_labels], the answer.
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
class Predictor:
    """A model that has been loaded, ready for any number of tracks; from a run or an export, without a difference.

    Attributes:
        contract: of the task that it answers.
        card: its model card; of an export of an older tfmusic only what the contract says.
        scorer: how windows become a track.
        scores_fn: linear power [n_bins, n_frames] and metadata tokens to track_scores, window_scores, window_starts.
    """

    contract: Contract
    card: dict[str, Any]
    scorer: TrackScorer
    scores_fn: Callable[[np.ndarray, Sequence[str]], dict[str, np.ndarray]]

    def answer(self, mel: np.ndarray, tokens: Sequence[str] = ()) -> TrackPrediction:
        """Returns the answer for a track.

        Args:
            mel: linear power, float32 [n_bins, n_frames], as `read_feature` returns it.
            tokens: what is known of the track beside, such as "genres=jazz".
        """
        found = self.scores_fn(mel, tokens)
        scores = found["track_scores"].astype(np.float64)
        chosen = self.scorer.decide(scores[None])[0]
        segments = found["window_scores"].astype(np.float64)
        return TrackPrediction(scores, chosen, segments, found["window_starts"].astype(np.int64), mel.shape[1])


def load_predictor(path: Path, task: str | None = None) -> Predictor:
    """Returns the model of a run folder or of an exported folder.

    Raises:
        RunError: the folder is neither, or damaged.
        UsageError: the model answers several tasks and `task` is none of them.
    """
    contract = load_contract(path)
    loaded = load_answering(path, contract, task)
    if loaded is not None:
        card = card_of(RunDir(path), loaded) if is_run(path) else _card(path, loaded.contract)
        return Predictor(loaded.contract, card, loaded.scorer, _of_windows(loaded))
    from tfmusic.export.savedmodel import load_predict_fn  # TensorFlow alone; the others may answer without it

    scorer = TrackScorer.load(path / "calibration.json", contract)
    return Predictor(contract, _card(path, contract), scorer, load_predict_fn(path))


def _card(export: Path, contract: Contract) -> dict[str, Any]:
    file = export / CARD_JSON
    return (
        RunDir(export).read_json(file) if file.is_file() else {"task": contract.task, "labels": list(contract.labels)}
    )


def _of_windows(loaded: LoadedRun) -> Callable[[np.ndarray, Sequence[str]], dict[str, np.ndarray]]:
    contract, scorer = loaded.contract, loaded.scorer
    encoder = Encoder(contract.scale, contract.dtype)

    def scores(mel: np.ndarray, tokens: Sequence[str] = ()) -> dict[str, np.ndarray]:
        windows, starts = cut(encoder.encode(mel), frames=contract.frames, hop_frames=contract.hop_frames)
        known = np.array(contract.encode_metadata(tuple(tokens)), np.float32) if contract.metadata else None
        firsts = range(0, len(windows), PREDICT_BATCH)
        logits = np.concatenate([_logits(loaded, windows[at : at + PREDICT_BATCH], known) for at in firsts])
        return {
            "track_scores": scorer.track_scores(logits),
            "window_scores": scorer.window_scores(logits),
            "window_starts": starts,
        }

    return scores


def _logits(loaded: LoadedRun, windows: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    """Returns logits [n_windows, n_labels]; batches have one of a few sizes, as every new size is compiled anew."""
    size = next(size for size in (16, PREDICT_BATCH) if size >= len(windows))
    filled = np.concatenate([windows, np.repeat(windows[-1:], size - len(windows), axis=0)])
    metadata = None if known is None else np.repeat(known[None], size, axis=0)
    batch = EvaluationBatch(filled, np.zeros(size, int), metadata)
    return np.asarray(loaded.model.predict_on_batch(batch.inputs), np.float32)[: len(windows)]
