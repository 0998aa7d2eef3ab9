"""Tracks scored by a model that has not trained on them: the validation fold of a run, or every fold of several."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from tfmusic.config.loading import load_config
from tfmusic.config.sections import EvaluationSection
from tfmusic.core.contract import Contract, Kind
from tfmusic.core.files import check_files
from tfmusic.core.rundir import RunDir, to_finish
from tfmusic.errors import RecordsError, RunError
from tfmusic.inputs.tracks import TrackLogits, score_splits
from tfmusic.models import for_prediction
from tfmusic.models.surgery import load_saved
from tfmusic.records.manifest import Manifest
from tfmusic.scoring.track_scorer import TrackScorer


@dataclass(frozen=True)
class HeldOut:
    """Logits of the tracks that a run has not trained on, of all tasks side by side, fold after fold."""

    contract: Contract
    folds: tuple[TrackLogits, ...]

    def part(self, task: str) -> tuple[TrackLogits, ...]:
        """Returns the folds of one task."""
        return tuple(fold.part(self.contract.parts()[task].columns) for fold in self.folds)


def check_finished(run: RunDir) -> None:
    """Raises RunError where a training, or one of the trainings of a cross-validation, has not ended."""
    config = load_config(run.config)
    n_folds = len(run.folds())
    if config.training.fold == "all" and n_folds < config.data.folds:
        raise RunError(
            f"{run.path}: {n_folds} of {config.data.folds} folds have ended. Finish it with {to_finish(run)}"
        )
    if n_folds == 0 and not run.calibration.is_file():
        raise RunError(f"{run.path}: training has not ended. Finish it with {to_finish(run)}")


def score_held_out(
    run: RunDir,
    manifest: Manifest,
    *,
    with_metadata: bool = True,
    is_finished: bool = True,
    on_track: Callable[[], None] = lambda: None,
) -> HeldOut:
    """Returns the logits of a run on its validation fold, or of each model of a cross-validation on its own.

    Raises:
        RunError: the run has no validation fold, or was not trained on these records.
    """
    if is_finished:
        check_finished(run)
    folds = run.folds() or [run]
    scored = [_score(fold, manifest, with_metadata=with_metadata, on_track=on_track) for fold in folds]
    return HeldOut(Contract.load(folds[0].contract), tuple(scored))


def _score(run: RunDir, manifest: Manifest, *, with_metadata: bool, on_track: Callable[[], None]) -> TrackLogits:
    check_files(run.path, only=("contract.json", "config.yaml", "records.json"))  # a .keras file has sums of its own
    used = run.read_json(run.records)
    if used["tracks_sha256"] != manifest.tracks_sha256:
        raise RunError(f"{run.path}: was not trained on the records {manifest.folder}")
    if not used["validation"]:
        raise RunError(f"{run.path}: has no validation fold: it was trained on every track")
    contract = Contract.load(run.contract)
    different = contract.difference(manifest.contract)
    if different:
        raise RecordsError(f"{manifest.folder}: must keep the contract of the model in {run.path}: {different}")
    manifest.verify(used["validation"])
    model = for_prediction(load_saved(run.checkpoint("best")))
    scored = score_splits(
        manifest,
        used["validation"],
        model.predict_on_batch,
        contract,
        batch_size=load_config(run.config).evaluation.batch_size,
        with_metadata=with_metadata,
        on_track=on_track,
    )
    del model
    keras.backend.clear_session()  # gives back its graph and buffers before the next fold makes its own
    return scored


def fit_scorer(options: EvaluationSection, kind: Kind, folds: Sequence[TrackLogits]) -> TrackScorer:
    """Returns the scorer that suits the tracks of all folds; one without calibration where there is none to fit."""
    scorer = options.scorer(kind)
    if not options.calibrate or not folds:
        return scorer
    logits = [track for fold in folds for track in fold.logits]
    return scorer.fit(logits, np.concatenate([fold.targets for fold in folds]))


def fit_scorers_apart(options: EvaluationSection, kind: Kind, folds: Sequence[TrackLogits]) -> list[TrackScorer]:
    """Returns a scorer for every fold, each fitted on the tracks of the other folds."""
    if len(folds) == 1:
        return [fit_scorer(options, kind, folds)]
    return [fit_scorer(options, kind, [*folds[:i], *folds[i + 1 :]]) for i in range(len(folds))]


def track_means(folds: Sequence[TrackLogits]) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the mean logits and the targets of every track by name."""
    return {
        track_id: (logits.mean(0), target)
        for fold in folds
        for track_id, logits, target in zip(fold.track_ids, fold.logits, fold.targets, strict=True)
    }
