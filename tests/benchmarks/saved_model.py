"""Whole tracks answered by the SavedModel that `tfmusic export` writes, and by `model.predict` a window at a time."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.benchmarks.clock import Bench
from tests.benchmarks.made_up import N_BINS, answering
from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.core.scale import Encoder, Scale
from tfmusic.core.windows import slice_windows
from tfmusic.export.savedmodel import TrackModel, signatures
from tfmusic.inference.model_folder import load_predict_fn
from tfmusic.models import build_model, for_prediction
from tfmusic.models.surgery import fuse_batch_norm
from tfmusic.scoring.track_scorer import TrackScorer

_LABELS = tuple(f"label {i}" for i in range(10))
_FEATURE = Feature(name="mel", n_bins=N_BINS)
_SCALE = Scale("db", -45.0, 45.0)


def tracks(folder: str, name: str, width: int, frames: int, hop_frames: int) -> Bench:
    """Returns parts `saved_model` and `segment`, both in windows; the same weights answer in both."""
    contract = Contract("q1", "single", _LABELS, _FEATURE, _SCALE, "uint8", frames, hop_frames)
    mean, variance = np.full(N_BINS, 127.5), np.full(N_BINS, 74.0**2)
    shape = {"frames": frames, "n_bins": N_BINS, "n_outputs": len(_LABELS), "width": width}
    model = for_prediction(build_model(name, mean=mean, variance=variance, **shape))
    answer = _saved(model, contract, Path(folder))
    encoder = Encoder(_SCALE, "uint8")

    model.predict(np.zeros((1, frames, N_BINS), np.uint8), verbose=0)  # compiles

    def by_segment(mel: np.ndarray) -> np.ndarray:
        windows, _ = slice_windows(encoder.encode(mel), frames=frames, hop_frames=hop_frames)
        logits = np.concatenate([model.predict(window[None], verbose=0) for window in windows])
        scores = np.asarray(keras.ops.softmax(logits))
        return np.asarray(scores.mean(0))

    parts = {
        "saved_model": answering(answer, frames, hop_frames),
        "segment": answering(by_segment, frames, hop_frames, warm_tracks=0),
    }
    trainable = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    return Bench(parts, {"parameters": trainable})


def _saved(model: keras.Model, contract: Contract, folder: Path) -> Any:
    """Returns the answers of the model after it was saved and loaded as an export is."""
    module = TrackModel(fuse_batch_norm(model), contract, TrackScorer(kind=contract.kind))
    tf.saved_model.save(module, str(folder), signatures=signatures(module, contract))
    return load_predict_fn(folder)
