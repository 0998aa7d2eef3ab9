"""Logits of held-out tracks, and scorers fitted on them: some splits, the validation fold of a run, or every fold."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfmusic.config.loading import load_config
from tfmusic.config.sections import EvaluationSection
from tfmusic.core.contract import Contract, Kind
from tfmusic.core.files import check_files
from tfmusic.core.rundir import RunDir, to_finish
from tfmusic.core.windows import TrackCodes, batch_windows, outputs_by_track
from tfmusic.errors import RecordsError, RunError
from tfmusic.records.format import holds_copies
from tfmusic.records.manifest import Manifest
from tfmusic.records.reader import iterate_tracks
from tfmusic.scoring.metrics import headline
from tfmusic.scoring.track_scorer import TrackScorer


@dataclass(frozen=True)
class TrackLogits:
    """The logits of labelled tracks, in the order of their rows.

    Attributes:
        rows: rows of tracks.csv.
        track_ids: names of the tracks.
        logits: [n_windows, n_labels] of every track.
        targets: bool [n_tracks, n_labels].
    """

    rows: tuple[int, ...]
    track_ids: tuple[str, ...]
    logits: tuple[np.ndarray, ...]
    targets: np.ndarray

    def part(self, columns: slice, *, has_own_logits: bool = False) -> "TrackLogits":
        """Returns one task of several: its columns, and the tracks that have a label there.

        `has_own_logits` says that the logits are of that task alone already.
        """
        targets = self.targets[:, columns]
        kept = np.flatnonzero(targets.any(1)).tolist()
        return TrackLogits(
            tuple(self.rows[i] for i in kept),
            tuple(self.track_ids[i] for i in kept),
            tuple(self.logits[i] if has_own_logits else self.logits[i][:, columns] for i in kept),
            targets[kept],
        )


def score_splits(
    manifest: Manifest,
    splits: Sequence[str],
    predict_fn: Callable[[Any], Any],
    contract: Contract,
    *,
    batch_size: int,
    with_metadata: bool = True,
    on_track: Callable[[], None] = lambda: None,
    takes_copies: bool = False,
) -> TrackLogits:
    """Returns the logits of every track of some splits; each track comes once, with all of its frames.

    Args:
        manifest: the records.
        splits: which of them.
        predict_fn: the model, from the inputs of a batch to logits.
        contract: what its input must be.
        batch_size: windows at a time.
        with_metadata: whether a model with metadata gets that of the tracks, or none.
        on_track: called after every track that was read.
        takes_copies: whether splits of augmented copies are allowed, which are for training and never for a score.

    Raises:
        RecordsError: a split holds augmented copies.
    """
    from tfmusic.inputs.metadata import metadata_table

    copies = [split for split in splits if holds_copies(split)]
    if copies and not takes_copies:
        raise RecordsError(
            f"{manifest.folder}: {', '.join(copies)}: augmented copies are for training and are never scored"
        )
    metadata = metadata_table(manifest, contract)
    if metadata is not None and not with_metadata:
        metadata = np.zeros_like(metadata)
    seen: dict[int, tuple[str, tuple[int, ...]]] = {}  # id and labels, without the codes

    def tracks() -> Iterator[TrackCodes]:
        for split in splits:
            for track in iterate_tracks(manifest, split):
                if track.row not in seen:
                    on_track()
                seen[track.row] = track.track_id, track.label
                yield track.row, track.codes, None if metadata is None else metadata[track.row]

    batches = batch_windows(tracks(), frames=contract.frames, hop_frames=contract.hop_frames, batch_sizes=(batch_size,))
    parts: dict[int, list[np.ndarray]] = defaultdict(list)
    for row, outputs in outputs_by_track(batches, predict_fn):
        parts[row].append(outputs)  # a row comes again where its copies are wanted
    logits = {row: np.concatenate(outputs) for row, outputs in parts.items()}
    rows = tuple(sorted(logits))
    targets = np.zeros((len(rows), len(manifest.contract.labels)), bool)
    for place, row in enumerate(rows):
        _, label = seen[row]
        targets[place, list(manifest.contract.target_ids(label))] = True
    track_ids = tuple(seen[row][0] for row in rows)
    return TrackLogits(rows, track_ids, tuple(logits[row] for row in rows), targets)


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
    import keras  # the pages of reports import this module and need no Keras

    from tfmusic.models import for_prediction
    from tfmusic.models.surgery import load_saved

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


def held_out_value(options: EvaluationSection, kind: Kind, folds: Sequence[TrackLogits]) -> float:
    """Returns the metric of the task on the tracks of all folds, each scored by the scorer of its fold."""
    scored = [
        scorer.decide(np.stack([scorer.track_scores(track) for track in fold.logits]))
        for fold, scorer in zip(folds, fit_scorers_apart(options, kind, folds), strict=True)
    ]
    return headline(np.concatenate(scored), np.concatenate([fold.targets for fold in folds]), kind)


def track_means(folds: Sequence[TrackLogits]) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Returns the mean logits and the targets of every track by name."""
    return {
        track_id: (logits.mean(0), target)
        for fold in folds
        for track_id, logits, target in zip(fold.track_ids, fold.logits, fold.targets, strict=True)
    }
