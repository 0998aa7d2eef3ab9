"""Validation tracks through the model: the metric of an epoch, and the calibration of the finished model."""

from typing import Any

import numpy as np

from tfmusic.core.contract import Contract
from tfmusic.evaluation.held_out import TrackLogits, fit_scorer
from tfmusic.models import for_prediction
from tfmusic.models.surgery import load_saved
from tfmusic.scoring.metrics import confusion, headline, headline_name
from tfmusic.scoring.track_scorer import save_scorers
from tfmusic.training.job import Job

Confusions = dict[str, tuple[np.ndarray, tuple[str, ...]]]


def validate(job: Job) -> tuple[dict[str, Any], Confusions]:
    """Returns the track-level metric on the validation fold, calibrated as the finished model will be.

    Of several tasks: the metric of each, and their mean, which chooses the best epoch. Beside it the confusion matrix
    of every task with one label a track, and the names of its classes.
    """
    scored = job.score_validation()
    found: dict[str, tuple[str, float]] = {}
    confusions: Confusions = {}
    for task, part in job.contract.parts().items():
        contract, tracks = part.contract, scored.part(part.columns)
        predicted = _predicted(job, contract, tracks)
        found[task] = (headline_name(contract.kind), headline(predicted, tracks.targets, contract.kind))
        if contract.kind == "single":
            n = len(contract.labels)
            confusions[task] = (confusion(predicted.argmax(1), tracks.targets.argmax(1), n), contract.labels)
    return _numbers(job, found), confusions


def _predicted(job: Job, contract: Contract, tracks: TrackLogits) -> np.ndarray:
    """Returns the predicted labels of the validation tracks, bool [n_tracks, n_labels]."""
    options = job.config.evaluation
    scorer = options.scorer(contract.kind)
    if options.calibrate:
        scorer = scorer.fit(tracks.logits, tracks.targets, (options.aggregator,))
    return scorer.decide(np.stack([scorer.track_scores(logits) for logits in tracks.logits]))


def _numbers(job: Job, found: dict[str, tuple[str, float]]) -> dict[str, Any]:
    if not job.contract.heads:
        name, value = found[job.contract.task]
        return {"metric": name, "validation": value}
    numbers: dict[str, Any] = {f"validation_{task}": value for task, (_, value) in found.items()}
    return {"metric": "mean", "validation": float(np.mean(list(numbers.values())))} | numbers


def calibrate(job: Job) -> None:
    """Fits the scorer of the best checkpoint on the validation tracks and stores it, uncalibrated without them."""
    options, parts = job.config.evaluation, job.contract.parts()
    folds: list[TrackLogits] = []
    has_tags = any(part.contract.kind == "multi" for part in parts.values())
    if job.folds.validation and has_tags and options.calibrate:
        best = load_saved(job.run.checkpoint("best"))
        folds = [job.score_with(for_prediction(best).predict_on_batch)]
    scorers = {
        task: fit_scorer(options, part.contract.kind, [fold.part(part.columns) for fold in folds])
        for task, part in parts.items()
    }
    save_scorers(scorers, job.run.calibration)
