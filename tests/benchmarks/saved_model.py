"""Whole tracks answered by the SavedModel that `tfmusic export` writes: as spectrograms, as sound, window by window."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.benchmarks.clock import Bench, Clock, Part
from tests.benchmarks.made_up import N_BINS, answering
from tfmusic.core.contract import Contract
from tfmusic.core.feature import Feature
from tfmusic.core.scale import Encoder, Scale
from tfmusic.core.windows import slice_windows
from tfmusic.export.savedmodel import TrackModel, signatures
from tfmusic.features.read import compute
from tfmusic.inference.model_folder import load_predict_fn
from tfmusic.models import build_model, for_prediction
from tfmusic.models.surgery import fuse_batch_norm
from tfmusic.scoring.track_scorer import TrackScorer

_LABELS = tuple(f"label {i}" for i in range(10))
_FEATURE = Feature(name="mel", n_bins=N_BINS)
_SCALE = Scale("db", -45.0, 45.0)


def tracks(folder: str, name: str, width: int, frames: int, hop_frames: int) -> Bench:
    """Returns parts `saved_model` and `segment`, both in windows; the same weights answer in both."""
    model, answer = _saved(name, width, frames, hop_frames, Path(folder))
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


def waveforms(folder: str, name: str, width: int, frames: int, hop_frames: int) -> Bench:
    """Returns parts `graph`, `numpy` and `librosa`, in tracks of 30 s: where the spectrogram of a waveform is computed.

    `numpy` is what `predict FILE` does after decoding, `librosa` the usual Python; both ask the same SavedModel.
    """
    _, answer = _saved(name, width, frames, hop_frames, Path(folder))
    by_graph = tf.saved_model.load(folder).signatures["waveform"]
    rng = np.random.default_rng(0)
    sounds = [rng.normal(0.0, 0.1, 30 * _FEATURE.sample_rate_hz).astype(np.float32) for _ in range(4)]

    def by_librosa(audio: np.ndarray) -> Any:
        import librosa

        mel = librosa.feature.melspectrogram(
            y=audio, sr=_FEATURE.sample_rate_hz, n_fft=_FEATURE.n_fft, hop_length=_FEATURE.hop_length, n_mels=N_BINS,
            pad_mode="constant",
        )  # fmt: skip
        return answer(mel)

    ways = {
        "graph": lambda audio: by_graph(audio=tf.constant(audio)),
        "numpy": lambda audio: answer(compute(iter([audio]), _FEATURE)),
    }
    with contextlib.suppress(ModuleNotFoundError):
        by_librosa(sounds[0])
        ways["librosa"] = by_librosa
    scores = [_scores(way(sounds[0])) for way in ways.values()]
    assert all(np.allclose(one, scores[0], atol=1e-3) for one in scores), "the ways must answer alike"
    return Bench({way: _in_turn(call, sounds) for way, call in ways.items()}, {"ways": list(ways)})


def _scores(answer: Any) -> np.ndarray:
    return np.asarray(answer["track_scores"])


def _in_turn(call: Callable[[np.ndarray], Any], sounds: Sequence[np.ndarray]) -> Part:
    def run(clock: Clock, seconds: float) -> float:
        count = 0
        with clock:
            while clock.elapsed_s < seconds:
                call(sounds[count % len(sounds)])
                count += 1
        return float(count)

    return run


def _saved(name: str, width: int, frames: int, hop_frames: int, folder: Path) -> tuple[keras.Model, Any]:
    """Returns a model, and the answers of it after it was saved and loaded as an export is."""
    contract = Contract("q1", "single", _LABELS, _FEATURE, _SCALE, "uint8", frames, hop_frames)
    mean, variance = np.full(N_BINS, 127.5), np.full(N_BINS, 74.0**2)
    shape = {"frames": frames, "n_bins": N_BINS, "n_outputs": len(_LABELS), "width": width}
    model = for_prediction(build_model(name, mean=mean, variance=variance, **shape))
    module = TrackModel(fuse_batch_norm(model), contract, TrackScorer(kind=contract.kind))
    tf.saved_model.save(module, str(folder), signatures=signatures(module, contract))
    return model, load_predict_fn(folder)
