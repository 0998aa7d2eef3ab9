"""Cross-validation: a model for every fold, which the others train, and one run that is their mean."""

import shutil
from collections.abc import Callable

import keras

from tfmusic.config import Config
from tfmusic.configfile import to_yaml
from tfmusic.folders import write_text
from tfmusic.records.manifest import Manifest
from tfmusic.rundir import RunDir
from tfmusic.training.checks import check
from tfmusic.training.ensemble import join_folds
from tfmusic.training.fit import TrainingProgress, fit
from tfmusic.training.resting import TrunkCache


def fold_configs(config: Config) -> list[Config]:
    """Returns the config of every fold's training."""
    return [
        config.model_copy(update={"training": config.training.model_copy(update={"fold": fold})})
        for fold in range(config.data.folds)
    ]


def cross_validate(
    config: Config, manifest: Manifest, run: RunDir, *, resume: bool, on_fold: Callable[[int], None]
) -> list[TrainingProgress]:
    """Trains a model for every fold into RUN/fold0, RUN/fold1, ... and joins them; returns how each went.

    A resumed cross-validation goes on in the fold where it stood. `on_fold` is called before each.

    Raises:
        ConfigError, RecordsError, RunError: as `fit`.
    """
    configs = fold_configs(config)
    for one in configs:
        check(one, manifest, resume=resume)
    if not resume:
        shutil.rmtree(run.path, ignore_errors=True)
    write_text(run.config, to_yaml(config))
    run.calibration.unlink(missing_ok=True)  # not finished from here on
    shutil.rmtree(run.evaluation, ignore_errors=True)
    went, cache = [], TrunkCache()
    for number, one in enumerate(configs):
        on_fold(number)
        fold = run.fold(number)
        went.append(fit(one, manifest, fold, resume=fold.state.is_file(), cache=cache))
        keras.utils.clear_session()  # the next fold builds its own graph
    join_folds(run, manifest)
    return went
