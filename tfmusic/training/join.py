"""Several runs as one: the folds of a cross-validation, or runs of different models, by the weighted mean of logits."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np

from tfmusic.config.loading import load_config, to_yaml
from tfmusic.console import console
from tfmusic.core.contract import Contract
from tfmusic.core.files import file_sha256, replacing, write_json, write_text
from tfmusic.core.rundir import RunDir, is_run
from tfmusic.errors import RunError, UsageError
from tfmusic.evaluation.held_out import (
    check_finished,
    fit_scorer,
    held_out_value,
    score_held_out,
    track_means,
)
from tfmusic.models.ensemble import build_ensemble, join_metadata
from tfmusic.models.surgery import load_saved, save
from tfmusic.records.manifest import Manifest
from tfmusic.scoring.aggregate import blend_weights
from tfmusic.scoring.track_scorer import save_scorers
from tfmusic.training.trainer import environment


@dataclass(frozen=True)
class Share:
    """What a run brings to the whole.

    Attributes:
        weight: that of its logits; of cross-validations the mean over the folds.
        alone: the metric of the first task on held-out tracks that it reaches alone; None where that was not measured.
        seconds: how long its epochs took; what a frozen backbone computes before them is not counted.
    """

    weight: float
    alone: float | None
    seconds: float


def join_folds(run: RunDir, manifest: Manifest) -> None:
    """Makes the run of a cross-validation from the runs of its folds.

    The calibration is that of the out-of-fold scores, so that every labelled track has a say and none is judged by a
    model that knows it.
    """
    folds = run.folds()
    _write(run, folds, [1 / len(folds)] * len(folds))
    _calibrate(run, manifest)


def join_runs(runs: Sequence[RunDir], out: RunDir, manifest: Manifest, weights: Sequence[float] | None) -> list[Share]:
    """Makes one run of several and returns their shares; of cross-validations, one whose folds are joined each.

    Args:
        runs: two or more.
        out: the run to write.
        manifest: the records that all were trained on.
        weights: a share for each, or None to fit them on the tracks that none of the runs has trained on; those of
            each fold on the tracks of the other folds.

    Raises:
        RunError: a run is of other records, or takes another input than the first.
        UsageError: weights are to be fitted and there is no track that all of the runs hold out.
    """
    _check_alike(runs, manifest)
    n_folds = {len(run.folds()) for run in runs}
    if len(n_folds) > 1:
        raise UsageError(
            f"runs to join must all be cross-validations of as many folds, or none. Received: folds {sorted(n_folds)}"
        )
    count = n_folds.pop()
    chosen_by_fold, alone = _fit_weights(runs, manifest) if weights is None else ([list(weights)] * max(count, 1), None)
    if not out.config.is_file():
        write_text(out.config, to_yaml(load_config(runs[0].config)))
    if not count:
        _write(out, runs, chosen_by_fold[0])
        _calibrate(out, manifest)
    else:
        for number, chosen in enumerate(chosen_by_fold):
            joined = out.fold(number)
            _write(joined, [run.fold(number) for run in runs], chosen)
            _calibrate(joined, manifest)
            keras.backend.clear_session()
        join_folds(out, manifest)
    return [
        Share(float(weight), alone[place] if alone else None, run.seconds)
        for place, (run, weight) in enumerate(zip(runs, np.mean(chosen_by_fold, axis=0), strict=True))
    ]


def show_shares(names: Sequence[str], shares: Sequence[Share]) -> None:
    """Prints what each run brings to the whole, so that one sees whether it is worth its time."""
    rows = [
        (name, share.weight, "-" if share.alone is None else share.alone, round(share.seconds))
        for name, share in zip(names, shares, strict=True)
    ]
    console.table(rows, ("member", "weight", "alone, held out", "epochs, s"))


def _check_alike(runs: Sequence[RunDir], manifest: Manifest) -> None:
    """Checks that the runs are finished, take the same input, and were trained on the same folds of the same tracks."""
    first = Contract.load(runs[0].contract)
    for run in runs:
        check_finished(run)
        contract = Contract.load(run.contract)
        different = first.difference(contract)
        if different or contract.task != first.task:
            raise RunError(f"{run.path}: must have the same input and labels as {runs[0].path}: {different}")
        if run.read_json(run.records)["tracks_sha256"] != manifest.tracks_sha256:
            raise RunError(
                f"{run.path}: must have been trained on the tracks and folds of {manifest.folder}, or tracks that one"
                " run holds out have trained another"
            )


def _fit_weights(runs: Sequence[RunDir], manifest: Manifest) -> tuple[list[list[float]], list[float]]:
    """Returns the weights that suit the held-out tracks best, and what each run reaches alone; both of the first task.

    Of cross-validations, weights for every fold, from the tracks of the others: its own score stays out of fold.
    """
    task, part = next(iter(Contract.load(runs[0].contract).parts().items()))
    kind, held_out = part.contract.kind, [score_held_out(run, manifest).part(task) for run in runs]
    alone = [
        held_out_value(load_config(run.config).evaluation, kind, folds)
        for run, folds in zip(runs, held_out, strict=True)
    ]
    count, shares = len(held_out[0]), []
    for number in range(count):
        known = [track_means([fold for i, fold in enumerate(folds) if i != number or count == 1]) for folds in held_out]
        names = [name for name in known[0] if all(name in one for one in known)]
        if not names:
            raise UsageError(
                f"{', '.join(str(run.path) for run in runs)}: hold out no track in common to fit weights on; train"
                " them with the same training.fold, or pass --equal"
            )
        logits = [np.stack([one[name][0] for name in names]) for one in known]
        targets = np.stack([known[0][name][1] for name in names])
        shares.append(blend_weights(logits, targets, kind))
    return shares, alone


def _write(out: RunDir, members: Sequence[RunDir], weights: Sequence[float]) -> None:
    """Writes the folder of an ensemble, all but its calibration, without which it is not finished."""
    contracts = [Contract.load(member.contract) for member in members]
    longest = max(contracts, key=lambda contract: contract.frames)
    known = [contract.metadata for contract in contracts]
    leaves = [leaf for pair in zip(members, weights, strict=True) for leaf in _leaves(*pair, frames=longest.frames)]
    joined = build_ensemble(
        [load_saved(leaf.checkpoint("best")) for leaf, _ in leaves],
        [weight for _, weight in leaves],
        tasks=[head.task for head in longest.heads],
        member_metadata=[Contract.load(leaf.contract).metadata for leaf, _ in leaves],
    )
    with replacing(out.checkpoint("best")) as tmp:
        save(joined, tmp)
    replace(longest, metadata=join_metadata(known)).save(out.contract)
    if not out.config.is_file():
        write_text(out.config, to_yaml(load_config(members[0].config)))
    used = [member.read_json(member.records) for member in members]
    validated = [set(one["validation"]) for one in used]
    splits = sorted(set().union(*(one["training"] for one in used)))
    write_json(
        out.records,
        {
            "folder": used[0]["folder"],
            "training": splits,
            "validation": sorted(set.intersection(*validated) - set(splits)),
            "tracks_sha256": used[0]["tracks_sha256"],
            "training_tracks": sorted(set().union(*(one["training_tracks"] for one in used))),
            "backbone_tracks": sorted(set().union(*(one.get("backbone_tracks", ()) for one in used))),
        },
    )
    write_json(out.environment, environment())
    shares = [
        {"run": _name(member.path, out.path), "weight": weight, "sha256": file_sha256(member.checkpoint("best"))}
        for member, weight in zip(members, weights, strict=True)
    ]
    write_json(out.ensemble, {"members": shares})


def _leaves(run: RunDir, weight: float, *, frames: int) -> list[tuple[RunDir, float]]:
    """Returns the trained models that a run is the weighted mean of, so that they can share their backbones.

    The run itself stands for them where one of them has moved or changed since, or covers other windows.
    """
    members = run.members()
    if not members or Contract.load(run.contract).frames != frames:
        return [(run, weight)]
    for one, member in members.items():
        if not is_run(one.path) or file_sha256(one.checkpoint("best")) != member.sha256:
            return [(run, weight)]
    return [leaf for one, member in members.items() for leaf in _leaves(one, weight * member.weight, frames=frames)]


def _name(member: Path, out: Path) -> str:
    """Returns the path of a member from the folder of the ensemble, so that both can be moved together."""
    return os.path.relpath(member.resolve(), out.resolve())


def _calibrate(run: RunDir, manifest: Manifest) -> None:
    """Fits the calibration on held-out tracks; a neutral one where every track has trained some member."""
    options, contract = load_config(run.config).evaluation, Contract.load(run.contract)
    parts = contract.parts()
    scorers = {task: options.scorer(part.contract.kind) for task, part in parts.items()}
    has_tags = options.calibrate and any(part.contract.kind == "multi" for part in parts.values())
    if has_tags and (run.folds() or run.read_json(run.records)["validation"]):
        held_out = score_held_out(run, manifest, is_finished=False)
        scorers = {task: fit_scorer(options, part.contract.kind, held_out.part(task)) for task, part in parts.items()}
    save_scorers(scorers, run.calibration)
    run.seal()
