"""Everything one config asks for: one training, or one for every fold and those of its partners, joined to one run.

A cross-validation trains its classical baseline too: a linear layer on descriptors of the spectrogram, in the folder
`baseline`, a run like any other. It comes first, so that a fault of the data shows early.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras

from tfmusic.config.loading import to_yaml
from tfmusic.config.sections import Config
from tfmusic.console import console
from tfmusic.core.contract import Contract
from tfmusic.core.files import write_text
from tfmusic.core.rundir import RunDir
from tfmusic.errors import ConfigError
from tfmusic.records.manifest import Manifest
from tfmusic.training.checks import OWN, Folds, check, check_partners
from tfmusic.training.frozen import EmbeddingCache
from tfmusic.training.job import Job
from tfmusic.training.join import join_folds, join_runs, show_shares
from tfmusic.training.processes import joined
from tfmusic.training.trainer import TrainingProgress, resumable, train

_MOST_WINDOWS = 500_000  # of the classical baseline: 900 numbers each, 1.8 GB


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
        baseline = self._baseline_config()
        if baseline and (n_windows := self._baseline_windows(baseline)) > _MOST_WINDOWS:
            console.say(
                f"no classical baseline: the descriptors of some {n_windows:,} windows take too much memory; the limit"
                f" is {_MOST_WINDOWS:,}"
            )
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
        config = self._baseline_config()
        if config and self._baseline_windows(config) <= _MOST_WINDOWS:
            yield config, self.run_dir.baseline

    def _baseline_config(self) -> Config | None:
        """Returns the config of the classical baseline; None also for embeddings and several processes."""
        has_none = self.manifest.contract.is_embedding or joined().are_several
        return None if has_none else self.config.baseline()

    def _baseline_windows(self, config: Config) -> int:
        """Returns about how many windows the classical baseline has descriptors of, all in memory."""
        segments = sum(split.segments for name, split in self.manifest.splits.items() if name != "test")
        return segments * config.record.hop_frames // config.input.hop_frames

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
            show_shares(list(members), join_runs(runs, self.run_dir, self.manifest, weights))
