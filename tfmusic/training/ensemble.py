"""Trained runs to one run that is their mean: evaluated, exported and asked like any other."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from tfmusic.configfile import load_config, to_yaml
from tfmusic.contract import Contract
from tfmusic.errors import RunError, UsageError
from tfmusic.folders import write_text
from tfmusic.models.ensemble import build_ensemble, join_metadata
from tfmusic.models.saved import load_saved
from tfmusic.records.manifest import Manifest
from tfmusic.rundir import RunDir, write_json
from tfmusic.scoring.blend import blend_weights
from tfmusic.scoring.calibrate import Calibration, save_by_task
from tfmusic.training.environment import environment
from tfmusic.training.out_of_fold import calibrate_together, check_finished, score_held_out, tag_limits, track_means


def join_folds(run: RunDir, manifest: Manifest) -> None:
    """Makes the run of a cross-validation from the runs of its folds.

    The calibration is that of the out-of-fold scores, so that every labelled track has a say and none is judged by a
    model that knows it.
    """
    folds = run.folds()
    _write(run, folds, [1 / len(folds)] * len(folds))
    _calibrate(run, manifest)


def join_runs(runs: Sequence[RunDir], out: RunDir, manifest: Manifest, weights: Sequence[float] | None) -> list[float]:
    """Makes one run of several and returns their weights; of cross-validations, one whose folds are joined each.

    Args:
        runs: two or more.
        out: the run to write.
        manifest: the records that all were trained on.
        weights: a share for each, or None to fit them on the tracks that none of the runs has trained on.

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
    chosen = list(weights) if weights else _fit_weights(runs, manifest)
    if not out.config.is_file():
        write_text(out.config, to_yaml(load_config(runs[0].config)))
    if not n_folds.pop():
        _write(out, runs, chosen)
        _calibrate(out, manifest)
        return chosen
    for number in range(len(runs[0].folds())):
        joined = out.fold(number)
        _write(joined, [run.fold(number) for run in runs], chosen)
        _calibrate(joined, manifest)
        keras.utils.clear_session()
    join_folds(out, manifest)
    return chosen


def _check_alike(runs: Sequence[RunDir], manifest: Manifest) -> None:
    """Checks that the runs are finished, take the same input, and were trained on the same folds of the same tracks."""
    first = Contract.load(runs[0].contract)
    for run in runs:
        check_finished(run)
        contract = Contract.load(run.contract)
        different = first.difference(contract)
        if different or contract.task != first.task:
            raise RunError(f"{run.path}: must take the same input and answer as {runs[0].path}: {different}")
        if run.read_json(run.records)["tracks_sha256"] != manifest.tracks_sha256:
            raise RunError(
                f"{run.path}: must have been trained on the tracks and folds of {manifest.folder}, or tracks that one"
                " run holds out have trained another"
            )


def _fit_weights(runs: Sequence[RunDir], manifest: Manifest) -> list[float]:
    """Returns the weights that suit the held-out tracks best; of several tasks, those of the first."""
    task, part = next(iter(Contract.load(runs[0].contract).parts().items()))
    known = [track_means(score_held_out(run, manifest).part(task)) for run in runs]
    shared = [name for name in known[0] if all(name in one for one in known)]
    if not shared:
        raise UsageError(
            f"{', '.join(str(run.path) for run in runs)}: hold out no track in common to fit weights on; train them"
            " with the same training.fold, or pass --equal"
        )
    logits = [[one[name][0] for name in shared] for one in known]
    targets = [known[0][name][1] for name in shared]
    return blend_weights([np.stack(some) for some in logits], np.stack(targets), part.contract.kind)


def _write(out: RunDir, members: Sequence[RunDir], weights: Sequence[float]) -> None:
    """Writes the folder of an ensemble, all but its calibration, without which it is not finished."""
    contracts = [Contract.load(member.contract) for member in members]
    longest = max(contracts, key=lambda contract: contract.frames)
    models = [load_saved(member.checkpoint("best")) for member in members]
    known = [contract.metadata for contract in contracts]
    joined = build_ensemble(models, weights, tasks=[head.task for head in longest.heads], member_metadata=known)
    path = out.checkpoint("best")
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name("best.tmp.keras")
    joined.save(tmp)
    tmp.replace(path)
    replace(longest, metadata=join_metadata(known)).save(out.contract)
    if not out.config.is_file():
        write_text(out.config, to_yaml(load_config(members[0].config)))
    used = [member.read_json(member.records) for member in members]
    validated = [set(one["validation"]) for one in used]
    splits = sorted(set().union(*(one["training"] for one in used)))
    write_json(
        {
            "folder": used[0]["folder"],
            "training": splits,
            "validation": sorted(set.intersection(*validated) - set(splits)),
            "tracks_sha256": used[0]["tracks_sha256"],
            "training_tracks": sorted(set().union(*(one["training_tracks"] for one in used))),
            "trunk_tracks": sorted(set().union(*(one.get("trunk_tracks", ()) for one in used))),
        },
        out.records,
    )
    write_json(environment(), out.environment)
    shares = [
        {"run": _name(member.path, out.path), "weight": weight} for member, weight in zip(members, weights, strict=True)
    ]
    write_json({"members": shares}, out.ensemble)


def _name(member: Path, out: Path) -> str:
    """Returns the path of a member from the folder of the ensemble, so that both can be moved together."""
    return os.path.relpath(member.resolve(), out.resolve())


def _calibrate(run: RunDir, manifest: Manifest) -> None:
    """Fits the calibration on held-out tracks; a neutral one where every track has trained some member."""
    options, contract = load_config(run.config).evaluation, Contract.load(run.contract)
    fitted = {task: Calibration(limits=tag_limits(options)) for task in contract.parts()}
    has_tags = options.calibrate and any(part.contract.kind == "multi" for part in contract.parts().values())
    if has_tags and (run.folds() or run.read_json(run.records)["validation"]):
        held_out = score_held_out(run, manifest, is_finished=False)
        for task, part in contract.parts().items():
            fitted[task] = calibrate_together(held_out.part(task), part.contract.kind, options)
    if contract.heads:
        save_by_task(run.calibration, fitted)
    else:
        fitted[contract.task].save(run.calibration)
