"""The trunk that a training begins with, where others have trained it."""

from dataclasses import dataclass

import keras

from tfmusic.config import Config
from tfmusic.errors import RunError
from tfmusic.pretrained.sources import find_weights, source_run, trained_on
from tfmusic.pretrained.transplant import NEW_HEAD, Transplant, transplant
from tfmusic.rundir import RunDir


@dataclass(frozen=True)
class Pretrained:
    """Where a trunk comes from.

    Attributes:
        layers: which layers hold its weights.
        track_ids: the tracks that trained it, where they are known.
    """

    layers: Transplant
    track_ids: frozenset[str]


def load_pretrained(config: Config, model: keras.Model, run: RunDir, *, resume: bool) -> Pretrained:
    """Returns the trunk that the config asks for, now in the model; a resumed run only reads again what it was.

    Raises:
        ConfigError, RunError: the weights are missing or not for this model.
    """
    if resume:
        return _read(run)
    source = source_run(config.model)
    ids = trained_on(source) if source else frozenset()
    layers = transplant(model, find_weights(config.model))
    if not layers.loaded:
        reasons = sorted(set(layers.skipped.values()) - {NEW_HEAD})
        raise RunError(
            f"{config.model.origin}: must hold the trunk of model.name={config.model.name},"
            f" model.width={config.model.width}. Received: {', '.join(reasons)};"
            " set name and width to those of the source"
        )
    return Pretrained(layers, ids)


def _read(run: RunDir) -> Pretrained:
    known = run.read_json(run.pretrained)
    try:
        return Pretrained(Transplant(tuple(known["loaded"]), dict(known["skipped"])), frozenset(known["track_ids"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.pretrained}: must say where the trunk came from. Received: {error!r}") from error
