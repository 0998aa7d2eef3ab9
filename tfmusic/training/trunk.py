"""The trunk that a training begins with, where others have trained it."""

from dataclasses import dataclass
from pathlib import Path

import keras

from tfmusic.config import Config
from tfmusic.contract import Contract
from tfmusic.errors import RunError
from tfmusic.pretrained.sources import check_source_run, find_weights
from tfmusic.pretrained.transplant import Transplant, transplant
from tfmusic.rundir import RunDir, open_run


@dataclass(frozen=True)
class Pretrained:
    """Where a trunk comes from.

    Attributes:
        layers: which layers hold its weights.
        track_keys: the tracks that trained it, as `Manifest.track_keys` names them, where they are known.
    """

    layers: Transplant
    track_keys: frozenset[str]


def load_pretrained(config: Config, contract: Contract, model: keras.Model, run: RunDir, *, resume: bool) -> Pretrained:
    """Returns the trunk that the config asks for, now in the model; a resumed run only reads again what it was.

    Raises:
        ConfigError, RunError: the weights are missing or not for this model.
    """
    if resume:
        known = run.read_json(run.pretrained)
        layers = Transplant(tuple(known["loaded"]), known["skipped"])
        return Pretrained(layers, frozenset(known["track_keys"]))
    keys: frozenset[str] = frozenset()
    if config.model.init_from != "none":
        records = check_source_run(open_run(Path(config.model.init_from)), contract)
        keys = frozenset([*records.get("training_keys", ()), *records.get("trunk_keys", ())])
    layers = transplant(model, find_weights(config.model))
    if not layers.loaded:
        raise RunError(
            f"model.weights={config.model.weights}, model.init_from={config.model.init_from}: must share layers with"
            f" model.name={config.model.name}, model.width={config.model.width}. Received:"
            f" {', '.join(sorted(set(layers.skipped.values())))}"
        )
    return Pretrained(layers, keys)
