"""The prediction for a track as JSON, as `explain` and `serve` give it; the server derives its OpenAPI schemas from it.

Times are seconds from the beginning of the track, scores are rounded to six digits.
"""

from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, Field

from tfmusic.core.contract import Contract
from tfmusic.inference.predictor import TrackPrediction
from tfmusic.scoring.timeline import parts, timeline

N_LINES = 10  # labels whose scores over time are given
N_NAMED = 3  # labels that a part names

Score = Annotated[float, Field(json_schema_extra={"minimum": 0, "maximum": 1})]


class Timeline(BaseModel):
    """Scores over time of the strongest labels."""

    edges_s: list[float] = Field(description="ends of the intervals, from the first to the last moment that is scored")
    scores: dict[str, list[Score | None]] = Field(
        description="by label, a score for every interval; null where the model scores nothing"
    )


class Part(BaseModel):
    """A stretch of the track that one label leads."""

    begin_s: float
    end_s: float
    labels: dict[str, Score] = Field(description="the strongest labels of the part, the leading one first")


class TrackResult(BaseModel):
    """The prediction for a track, with its scores, their course over time, and parts."""

    task: str
    duration_s: float
    prediction: str | list[str] = Field(description="the label of the track, or its tags")
    aggregator: str = Field(description="how the scores of windows become the scores of the track")
    windows: int = Field(description="how many windows the model saw")
    scores: dict[str, Score]
    timeline: Timeline
    parts: list[Part]

    @classmethod
    def of(cls, prediction: TrackPrediction, contract: Contract, aggregator: str, **fields: Any) -> Self:
        """Returns the result for a prediction; `fields` are those that a subclass adds."""
        names, per_s = contract.labels, contract.frames_per_s
        chosen = [names[i] for i in np.flatnonzero(prediction.chosen).tolist()]
        strongest = np.argsort(-prediction.scores, kind="stable")[:N_LINES].tolist()
        line = timeline(
            prediction.window_scores, prediction.starts, frames=contract.frames, n_frames=prediction.n_frames
        )
        return cls(
            task=contract.task,
            duration_s=round(prediction.n_frames / per_s, 3),
            prediction=chosen[0] if contract.kind == "single" else chosen,
            aggregator=aggregator,
            windows=len(prediction.starts),
            scores={name: round(float(score), 6) for name, score in zip(names, prediction.scores, strict=True)},
            timeline=Timeline(
                edges_s=seconds(line.edges, per_s),
                scores={
                    names[i]: [None if np.isnan(score) else score for score in line.scores[:, i].round(6).tolist()]
                    for i in strongest
                },
            ),
            parts=[
                Part(
                    begin_s=round(part.begin / per_s, 3),
                    end_s=round(part.end / per_s, 3),
                    labels={names[i]: round(score, 6) for i, score in zip(part.labels, part.scores, strict=True)},
                )
                for part in parts(line, n_named=min(N_NAMED, len(names)))
            ],
            **fields,
        )


def seconds(frames: np.ndarray, frames_per_s: float) -> list[float]:
    """Returns frames as seconds, to the millisecond."""
    return [round(float(frame) / frames_per_s, 3) for frame in frames]
