"""Everything one config asks for: one training, or one for every fold and those of its partners, joined to one run.

A cross-validation trains its classical baseline too: a linear layer on descriptors of the spectrogram, in the folder
`baseline`, a run like any other. It comes first, so that a fault of the data shows within seconds.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np

from tfmusic.config.loading import load_config, to_yaml
from tfmusic.config.sections import Config
from tfmusic.console import console
from tfmusic.core.contract import Contract
from tfmusic.core.files import file_sha256, replacing, write_json, write_text
from tfmusic.core.rundir import RunDir, is_run
from tfmusic.errors import ConfigError, RunError, UsageError
from tfmusic.evaluation.held_out import check_finished, fit_scorer, score_held_out, track_means
from tfmusic.models.ensemble import build_ensemble, join_metadata
from tfmusic.models.surgery import load_saved, save
from tfmusic.records.manifest import Manifest
from tfmusic.scoring.aggregate import blend_weights
from tfmusic.scoring.track_scorer import save_scorers
from tfmusic.training.checks import OWN, Folds, check, check_partners
from tfmusic.training.frozen import EmbeddingCache
from tfmusic.training.job import Job
from tfmusic.training.processes import joined
from tfmusic.training.trainer import TrainingProgress, environment, resumable, train


@dataclass(frozen=True)
class Part:
    """One training of an experiment: its config, its run folder, and once checked its contract and folds."""

    config: Config
    run: RunDir
    contract: Contract
    folds: Folds

    def prepare(self, manifest: Manifest, *, resume: bool, cache: EmbeddingCache | None = None) -> Job:
        """Returns the training with its model; raises as `Job.prepare`."""
        return Job.prepare(
            self.config, manifest, self.run, contract=self.contract, folds=self.folds, resume=resume, cache=cache
        )


@dataclass(frozen=True)
class Experiment:
    """The trainings that a config and its partners ask for.

    Attributes:
        config: the config.
        partners: the configs of its partners by name.
        manifest: the records of all.
        run_dir: the folder of the whole.
        callbacks: Keras callbacks of the caller, for every training.
    """

    config: Config
    partners: Mapping[str, Config]
    manifest: Manifest
    run_dir: RunDir
    callbacks: tuple[keras.callbacks.Callback, ...] = ()

    def check(self, *, resume: bool) -> list[Part]:
        """Returns every single training in its order, checked before anything is removed or written.

        Raises:
            ConfigError, RecordsError, RunError: as `training.checks.check`, or partners that cannot be joined.
        """
        check_partners(self.config, self.partners)
        return [self._check_part(config, run, resume=resume) for config, run in self._trainings()]

    def _check_part(self, config: Config, run: RunDir, *, resume: bool) -> Part:
        source = config.model.init_from
        if not resume and source != "none" and Path(source).resolve().is_relative_to(self.run_dir.path.resolve()):
            raise ConfigError(f"model.init_from={source} lies in the run folder that is to be replaced")
        if resume:  # a finished run is trained further: its last model and state must be whole too
            run.check(for_prediction=False)
        contract, folds = check(config, self.manifest, resume=resume and run.state.is_file())
        return Part(config, run, contract, folds)

    def describe(self, parts: Sequence[Part]) -> str:
        """Returns how many models there are, or which folds train and validate the only one."""
        if len(parts) > 1:
            return f"{len(parts)} models: {', '.join(self._name(part.run) for part in parts)}"
        folds = parts[0].folds
        return f"on {', '.join(folds.training)}, validate on {', '.join(folds.validation) or 'none'}"

    def members(self) -> dict[str, tuple[Config, RunDir]]:
        """Returns config and folder of the config's own model and of each partner's."""
        if not self.partners:
            return {"": (self.config, self.run_dir)}
        configs = {OWN: self.config} | {Path(name).stem: config for name, config in self.partners.items()}
        return {name: (config, RunDir(self.run_dir.path / name)) for name, config in configs.items()}

    def _baseline(self) -> Iterator[tuple[Config, RunDir]]:
        """Yields config and folder of the classical baseline, if there is one to train."""
        config = None if self.manifest.contract.is_embedding or joined().are_several else self.config.baseline()
        if config:
            yield config, self.run_dir.baseline

    def _trainings(self) -> Iterator[tuple[Config, RunDir]]:
        """Yields config and folder of every single training; a cross-validation has one for each fold."""
        for config, run in (*self._baseline(), *self.members().values()):
            if config.training.fold != "all":
                yield config, run
                continue
            for fold in range(config.data.folds):
                training = config.training.model_copy(update={"fold": fold})
                yield config.model_copy(update={"training": training}), run.fold(fold)

    def verify_records(self, parts: Sequence[Part]) -> None:
        """Compares the checksums of all shards that are needed, once and not for every fold.

        Raises:
            RecordsError: one is damaged.
        """
        self.manifest.verify(
            sorted({name for part in parts for name in (*part.folds.training, *part.folds.validation)})
        )

    def run(self, parts: Sequence[Part], *, resume: bool) -> dict[str, TrainingProgress]:
        """Trains what is not trained yet, joins it, and returns how each training went by its folder's name.

        Raises:
            ConfigError, RecordsError, RunError: as `train`, or a shard is damaged.
        """
        self.verify_records(parts)
        if len(parts) == 1:
            job = parts[0].prepare(self.manifest, resume=resume)
            with resumable(self.run_dir):
                return {"": train(job, resume=resume, callbacks=self.callbacks)}
        if not resume:
            self._replace_folder(parts)
        for config, run in ((self.config, self.run_dir), *self._baseline(), *self.members().values()):
            write_text(run.config, to_yaml(config))
            run.unseal()
            for folder in run.evaluations():
                shutil.rmtree(folder, ignore_errors=True)
        with resumable(self.run_dir):
            progress = self._train_parts(parts)
            self._join()
        return progress

    def _train_parts(self, parts: Sequence[Part]) -> dict[str, TrainingProgress]:
        progress, cache = {}, EmbeddingCache()
        for number, part in enumerate(parts, 1):
            name = self._name(part.run)
            console.say(f"model {number} of {len(parts)}: {name}")
            has_begun = part.run.state.is_file()
            job = part.prepare(self.manifest, resume=has_begun, cache=cache)
            progress[name] = train(job, resume=has_begun, callbacks=self.callbacks)
            if not progress[name].has_ended(part.config) and number < len(parts):
                raise KeyboardInterrupt  # ended by hand: the others are for another time
            keras.backend.clear_session()  # the next one builds its own graph
        return progress

    def _replace_folder(self, parts: Sequence[Part]) -> None:
        """Removes an old run, after a look at whether the first model of every member can be made."""
        for _, run in (*self._baseline(), *self.members().values()):
            first = next(part for part in parts if part.run.path.is_relative_to(run.path))
            first.prepare(self.manifest, resume=False)
        shutil.rmtree(self.run_dir.path, ignore_errors=True)

    def _name(self, run: RunDir) -> str:
        return str(run.path.relative_to(self.run_dir.path))

    def _join(self) -> None:
        members = self.members()
        if self.config.training.fold == "all":
            for _, run in (*self._baseline(), *members.values()):
                join_folds(run, self.manifest)
        if self.partners:
            runs = [run for _, run in members.values()]
            weights = [1 / len(runs)] * len(runs) if self.config.ensemble.weights == "equal" else None
            join_runs(runs, self.run_dir, self.manifest, weights)


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
    shares = [list(weights)] * max(count, 1) if weights else _fit_shares(runs, manifest)
    if not out.config.is_file():
        write_text(out.config, to_yaml(load_config(runs[0].config)))
    if not count:
        _write(out, runs, shares[0])
        _calibrate(out, manifest)
        return shares[0]
    for number, chosen in enumerate(shares):
        joined = out.fold(number)
        _write(joined, [run.fold(number) for run in runs], chosen)
        _calibrate(joined, manifest)
        keras.backend.clear_session()
    join_folds(out, manifest)
    return [float(share) for share in np.mean(shares, axis=0)]


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


def _fit_shares(runs: Sequence[RunDir], manifest: Manifest) -> list[list[float]]:
    """Returns the weights that suit the held-out tracks best; of several tasks, those of the first.

    Of cross-validations, weights for every fold, from the tracks of the others: its own score stays out of fold.
    """
    task, part = next(iter(Contract.load(runs[0].contract).parts().items()))
    held_out = [score_held_out(run, manifest).part(task) for run in runs]
    count = len(held_out[0])
    shares = []
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
        shares.append(blend_weights(logits, targets, part.contract.kind))
    return shares


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
