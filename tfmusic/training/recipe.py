"""All that one config asks for: one training, one for every fold, and those of its partners, joined to one run."""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import keras

from tfmusic.config import Config
from tfmusic.configfile import to_yaml
from tfmusic.errors import ConfigError
from tfmusic.folders import write_text
from tfmusic.records.manifest import Manifest
from tfmusic.rundir import RunDir
from tfmusic.training.checks import check
from tfmusic.training.ensemble import join_folds, join_runs
from tfmusic.training.fit import TrainingProgress, fit
from tfmusic.training.job import Job
from tfmusic.training.resting import TrunkCache

_RESERVED = re.compile(r"own|fold\d+|checkpoints|backup|evaluation.*|export|tb")
OWN = "own"  # the folder of the config's own model beside its partners'


@dataclass(frozen=True)
class Part:
    """One training of a recipe: its config and where its run stands."""

    config: Config
    run: RunDir


@dataclass(frozen=True)
class Recipe:
    """The trainings that a config and its partners ask for.

    Attributes:
        config: the config.
        partners: those of its partners by name.
        manifest: the records of all.
        run_dir: the folder of the whole.
    """

    config: Config
    partners: Mapping[str, Config]
    manifest: Manifest
    run_dir: RunDir

    def check(self, *, resume: bool) -> None:
        """Checks every training before anything is removed or written.

        Raises:
            ConfigError, RecordsError, RunError: as `training.checks.check`, or partners that cannot be joined.
        """
        fold = self.config.training.fold
        for name, partner in self.partners.items():
            if partner.training.fold != fold or partner.ensemble.partners:
                raise ConfigError(
                    f"ensemble.partners: {name} must have training.fold={fold} and no partners of its own. Received:"
                    f" fold={partner.training.fold}, partners={partner.ensemble.partners}"
                )
        stems = [Path(name).stem for name in self.partners]
        if len({OWN, *stems}) <= len(stems) or any(_RESERVED.fullmatch(stem) for stem in stems):
            raise ConfigError(
                f"ensemble.partners: their file names must differ, and not be {OWN}, foldN or another name in a run"
                f" folder. Received: {', '.join(stems)}"
            )
        for part in self.parts():
            source = part.config.model.init_from
            if not resume and source != "none" and Path(source).resolve().is_relative_to(self.run_dir.path.resolve()):
                raise ConfigError(f"model.init_from={source} lies in the run folder that is to be replaced")
            check(part.config, self.manifest, resume=resume and part.run.state.is_file())

    def describe(self) -> str:
        """Returns how many models there are, and which folds train and validate."""
        parts = list(self.parts())
        if len(parts) > 1:
            return f"{len(parts)} models: {', '.join(self._name(part.run) for part in parts)}"
        _, folds = check(parts[0].config, self.manifest, resume=False)
        return f"on {', '.join(folds.training)}, validate on {', '.join(folds.validation) or 'none'}"

    def members(self) -> dict[str, tuple[Config, RunDir]]:
        """Returns config and folder of the config's own model and of each partner's."""
        if not self.partners:
            return {"": (self.config, self.run_dir)}
        every = {OWN: self.config} | {Path(name).stem: config for name, config in self.partners.items()}
        return {name: (config, RunDir(self.run_dir.path / name)) for name, config in every.items()}

    def parts(self) -> Iterator[Part]:
        """Yields every single training in its order."""
        return chain.from_iterable(_parts(config, run) for config, run in self.members().values())

    def run(self, *, resume: bool, on_part: Callable[[str], None]) -> dict[str, TrainingProgress]:
        """Trains what is not trained yet, joins it, and returns how each training went by its folder's name.

        Raises:
            ConfigError, RecordsError, RunError: as `fit`.
        """
        parts = list(self.parts())
        if len(parts) == 1:
            return {"": fit(self.config, self.manifest, self.run_dir, resume=resume)}
        if not resume:
            for config, run in self.members().values():  # weights and shards are looked at before anything goes
                first = next(_parts(config, run))
                Job.prepare(first.config, self.manifest, first.run)
            shutil.rmtree(self.run_dir.path, ignore_errors=True)
        for config, run in ((self.config, self.run_dir), *self.members().values()):
            write_text(run.config, to_yaml(config))
            run.unseal()
            shutil.rmtree(run.evaluation, ignore_errors=True)
        went, cache = {}, TrunkCache()
        for number, part in enumerate(parts, 1):
            name = self._name(part.run)
            on_part(f"model {number} of {len(parts)}: {name}")
            went[name] = fit(
                part.config, self.manifest, part.run, resume=part.run.state.is_file(), cache=cache, whole=self.run_dir
            )
            keras.backend.clear_session()  # the next one builds its own graph
        self._join()
        return went

    def _name(self, run: RunDir) -> str:
        return str(run.path.relative_to(self.run_dir.path))

    def _join(self) -> None:
        members = self.members()
        if self.config.training.fold == "all":
            for _, run in members.values():
                join_folds(run, self.manifest)
        if self.partners:
            runs = [run for _, run in members.values()]
            weights = [1 / len(runs)] * len(runs) if self.config.ensemble.weights == "equal" else None
            join_runs(runs, self.run_dir, self.manifest, weights)


def _parts(config: Config, run: RunDir) -> Iterator[Part]:
    if config.training.fold != "all":
        yield Part(config, run)
        return
    for fold in range(config.data.folds):
        training = config.training.model_copy(update={"fold": fold})
        yield Part(config.model_copy(update={"training": training}), run.fold(fold))
