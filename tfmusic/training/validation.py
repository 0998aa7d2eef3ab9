"""Validation tracks through the model: the metric of an epoch, and the calibration of the finished model."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from tfmusic.core.contract import Contract
from tfmusic.evaluation.out_of_fold import tag_limits
from tfmusic.inputs.tracks import TrackLogits
from tfmusic.models import for_prediction
from tfmusic.models.surgery import load_saved
from tfmusic.scoring.aggregate import AGGREGATORS
from tfmusic.scoring.calibrate import Calibration, save_by_task
from tfmusic.scoring.metrics import Limits, confusion, headline, headline_name
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
        contract, mine = part.contract, scored.part(part.columns)
        scores, limits = _scores(job, contract, mine)
        value = headline(scores, mine.targets, contract.kind, limits=limits)
        found[task] = (headline_name(contract.kind), value)
        if contract.kind == "single":
            n = len(contract.labels)
            confusions[task] = (confusion(scores.argmax(1), mine.targets.argmax(1), n), contract.labels)
    return _numbers(job, found), confusions


def _numbers(job: Job, found: dict[str, tuple[str, float]]) -> dict[str, Any]:
    if not job.contract.heads:
        name, value = found[job.contract.task]
        return {"metric": name, "validation": value}
    numbers: dict[str, Any] = {f"validation_{task}": value for task, (_, value) in found.items()}
    return {"metric": "mean", "validation": float(np.mean(list(numbers.values())))} | numbers


def calibrate(job: Job) -> None:
    """Fits the calibration of the best checkpoint on the validation tracks and stores it; a neutral one without."""
    limits = tag_limits(job.config.evaluation)
    calibrations = {task: Calibration(limits=limits) for task in job.contract.parts()}
    has_tags = any(part.contract.kind == "multi" for part in job.contract.parts().values())
    if job.folds.validation and has_tags and job.config.evaluation.calibrate:
        best = load_saved(job.run.checkpoint("best"))
        scored = job.score_with(for_prediction(best).predict_on_batch)
        calibrations = {
            task: _fit(job, part.contract, scored.part(part.columns), AGGREGATORS)
            for task, part in job.contract.parts().items()
        }
    if job.contract.heads:
        save_by_task(job.run.calibration, calibrations)
    else:
        calibrations[job.contract.task].save(job.run.calibration)


def _scores(job: Job, contract: Contract, scored: TrackLogits) -> tuple[np.ndarray, Limits]:
    """Returns the scores of the validation tracks under the aggregator that decides, and the limits of the tags."""
    options = job.config.evaluation
    calibration = _fit(job, contract, scored, (options.aggregator,))
    scores = [
        calibration.track_scores(logits, kind=contract.kind, aggregator=options.aggregator, top_k=options.top_k)
        for logits in scored.logits
    ]
    return np.stack(scores), calibration.limits


def _fit(job: Job, contract: Contract, scored: TrackLogits, aggregators: Iterable[str]) -> Calibration:
    options = job.config.evaluation
    limits = tag_limits(options)
    if contract.kind == "single" or not options.calibrate:
        return Calibration(limits=limits)
    return Calibration.fit(scored.logits, scored.targets, top_k=options.top_k, aggregators=aggregators, limits=limits)
