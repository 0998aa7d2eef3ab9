"""One track at a time, whole: the answer with the scores of its windows, from a run or from an export."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmusic.contract import Contract
from tfmusic.features.scale import Encoder, Scale
from tfmusic.features.segments import cut
from tfmusic.inputs.pipeline import EvaluationBatch
from tfmusic.reports.card import CARD_JSON
from tfmusic.rundir import RunDir, is_run
from tfmusic.scoring import metrics
from tfmusic.scoring.calibrate import Calibration
from tfmusic.scoring.timeline import Timeline, parts, timeline
from tfmusic.serving.loading import LoadedRun, card_of, load_answering, load_contract
from tfmusic.serving.predict import PREDICT_BATCH

N_LINES = 10  # labels whose scores over time are told
N_NAMED = 3  # labels that a part names


@dataclass(frozen=True)
class TrackAnswer:
    """What a model says of a track.

    Attributes:
        scores: [n_labels], calibrated, as `predict` gives them.
        chosen: bool [n_labels], the answer.
        segment_scores: [n_windows, n_labels], calibrated.
        starts: first frame of every window, [n_windows].
        n_frames: length of the track, frames.
    """

    scores: np.ndarray
    chosen: np.ndarray
    segment_scores: np.ndarray
    starts: np.ndarray
    n_frames: int


@dataclass(frozen=True)
class Answerer:
    """A model that has been loaded, ready for any number of tracks; from a run or an export, without a difference.

    Attributes:
        contract: of the task that it answers.
        card: its model card; of an export of an older tfmusic only what the contract says.
        limits: how many tags an answer may have.
        scores_fn: linear power [n_bins, n_frames] and metadata tokens to track_scores, segment_scores, segment_starts.
    """

    contract: Contract
    card: dict[str, Any]
    limits: metrics.Limits
    scores_fn: Callable[[np.ndarray, Sequence[str]], dict[str, np.ndarray]]

    @property
    def aggregator(self) -> str:
        """How windows become a track; `unknown` of an export of an older tfmusic."""
        answer = self.card.get("answer")
        return str(answer.get("aggregator", "unknown")) if isinstance(answer, dict) else "unknown"

    def answer(self, mel: np.ndarray, tokens: Sequence[str] = ()) -> TrackAnswer:
        """Returns the answer for a track.

        Args:
            mel: linear power, float32 [n_bins, n_frames], as `read_feature` returns it.
            tokens: what is known of the track beside, such as "genres=jazz".
        """
        found = self.scores_fn(mel, tokens)
        scores = found["track_scores"].astype(np.float64)
        chosen = metrics.decide(scores[None], self.contract.kind, self.limits)[0]
        segments = found["segment_scores"].astype(np.float64)
        return TrackAnswer(scores, chosen, segments, found["segment_starts"].astype(np.int64), mel.shape[1])

    def timeline(self, answer: TrackAnswer) -> Timeline:
        """Returns the scores of an answer over time."""
        frames = self.contract.frames
        return timeline(answer.segment_scores, answer.starts, frames=frames, n_frames=answer.n_frames)

    def to_dict(self, answer: TrackAnswer) -> dict[str, Any]:
        """Returns an answer for JSON: scores, the strongest labels over time, parts; times in seconds."""
        names, per_s = self.contract.labels, self.contract.frames_per_s
        chosen = [names[i] for i in np.flatnonzero(answer.chosen).tolist()]
        order = np.argsort(-answer.scores, kind="stable")
        line = self.timeline(answer)
        return {
            "task": self.contract.task,
            "duration_s": round(answer.n_frames / per_s, 3),
            "answer": chosen[0] if self.contract.kind == "single" else chosen,
            "aggregator": self.aggregator,
            "windows": len(answer.starts),
            "scores": {name: round(float(score), 6) for name, score in zip(names, answer.scores, strict=True)},
            "timeline": {
                "edges_s": seconds(line.edges, per_s),
                "scores": {names[i]: line.scores[:, i].round(6).tolist() for i in order[:N_LINES].tolist()},
            },
            "parts": [
                {
                    "begin_s": round(part.begin / per_s, 3),
                    "end_s": round(part.end / per_s, 3),
                    "labels": {names[i]: round(score, 6) for i, score in zip(part.labels, part.scores, strict=True)},
                }
                for part in parts(line, n_named=min(N_NAMED, len(names)))
            ],
        }


def seconds(frames: np.ndarray, frames_per_s: float) -> list[float]:
    """Returns frames as seconds, to the millisecond."""
    return [round(float(frame) / frames_per_s, 3) for frame in frames]


def load_answerer(path: Path, task: str | None = None) -> Answerer:
    """Returns the model of a run folder or of an exported folder.

    Raises:
        RunError: the folder is neither, or damaged.
        UsageError: the model answers several tasks and `task` is none of them.
    """
    contract = load_contract(path)
    loaded = load_answering(path, contract, task)
    if loaded is not None:
        card = card_of(RunDir(path), loaded) if is_run(path) else _card(path, loaded.contract)
        return Answerer(loaded.contract, card, loaded.calibration.limits, _of_windows(loaded))
    from tfmusic.serving.track_model import load_answer_fn  # TensorFlow alone; the others may answer without it

    limits = Calibration.load(path / "calibration.json").limits
    return Answerer(contract, _card(path, contract), limits, load_answer_fn(path))


def _card(export: Path, contract: Contract) -> dict[str, Any]:
    file = export / CARD_JSON
    return (
        RunDir(export).read_json(file) if file.is_file() else {"task": contract.task, "labels": list(contract.labels)}
    )


def _of_windows(loaded: LoadedRun) -> Callable[[np.ndarray, Sequence[str]], dict[str, np.ndarray]]:
    contract, calibration = loaded.contract, loaded.calibration
    encoder = Encoder(Scale.from_dict(contract.scale), contract.dtype)

    def scores(mel: np.ndarray, tokens: Sequence[str] = ()) -> dict[str, np.ndarray]:
        windows, starts = cut(encoder.encode(mel), frames=contract.frames, hop_frames=contract.hop_frames)
        known = np.array(contract.encode_metadata(tuple(tokens)), np.float32) if contract.metadata else None
        firsts = range(0, len(windows), PREDICT_BATCH)
        logits = np.concatenate([_logits(loaded, windows[at : at + PREDICT_BATCH], known) for at in firsts])
        return {
            "track_scores": calibration.track_scores(
                logits, kind=contract.kind, aggregator=loaded.aggregator, top_k=loaded.top_k
            ),
            "segment_scores": calibration.segment_scores(logits, kind=contract.kind),
            "segment_starts": starts,
        }

    return scores


def _logits(loaded: LoadedRun, windows: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    """Returns logits [n_windows, n_labels]; batches have one of a few sizes, as every new size is compiled anew."""
    size = next(size for size in (16, PREDICT_BATCH) if size >= len(windows))
    filled = np.concatenate([windows, np.repeat(windows[-1:], size - len(windows), axis=0)])
    metadata = None if known is None else np.repeat(known[None], size, axis=0)
    batch = EvaluationBatch(filled, np.zeros(size, int), metadata)
    return np.asarray(loaded.model.predict_on_batch(batch.inputs), np.float32)[: len(windows)]
