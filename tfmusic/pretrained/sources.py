"""From `model.weights` and `model.init_from` of a config to weights by layer name."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from tfmusic.config.loading import load_config
from tfmusic.config.sections import Config, ModelSection
from tfmusic.core.contract import Contract
from tfmusic.core.rundir import RunDir, is_run, open_run
from tfmusic.errors import ConfigError, RunError
from tfmusic.models import musicnn
from tfmusic.pretrained.applications import IMAGENET_WIDTH, check_architecture, imagenet_weights
from tfmusic.pretrained.store import archive_weights, stored_musicnn
from tfmusic.pretrained.transplant import NEW_HEAD, LayerWeights, Transplant, layer_weights, transplant

_MUSICNN = ("musicnn", "musicnn_mlp")


def find_weights(section: ModelSection) -> LayerWeights:
    """Returns the pretrained weights that a config asks for.

    Raises:
        ConfigError: there are none of that kind for the model.
        RunError: the file or run is missing, damaged, or of another model.
    """
    if section.init_from != "none":
        return keras_file_weights(RunDir(Path(section.init_from)).checkpoint("best"))
    if section.weights == "imagenet":
        return imagenet_weights(section.name)
    path, kind = _path_of(section), _kind_of(section)
    if kind == ".keras":
        return keras_file_weights(path)
    if kind == "musicnn":
        from tfmusic.pretrained.musicnn import musicnn_weights

        return musicnn_weights(path)
    return imagenet_weights(section.name, path)


def check_source(config: Config, contract: Contract | None) -> None:
    """Raises ConfigError or RunError where the weights that a config asks for cannot be there, or not be for its input.

    No weights are read or fetched, so that wrong settings are reported at once. Where no contract of records is given,
    the config says what the input is.
    """
    section = config.model
    kind, run = _kind_of(section), source_run(section)
    if kind in ("imagenet", ".h5", ".hdf5"):
        check_architecture(section.name)
        if section.width not in (None, IMAGENET_WIDTH):
            raise ConfigError(
                f"model.width must be {IMAGENET_WIDTH} or null with ImageNet weights. Received: {section.width}"
            )
        if config.input.normalize == "none":
            raise ConfigError(
                "input.normalize must be per_bin or global with ImageNet weights, which want a spread they know."
                " Received: none"
            )
    if kind not in ("none", "imagenet", "run") and not _path_of(section).exists():
        raise RunError(f"{section.weights}: no such file; model.weights must be a file of weights")
    if kind == "musicnn":
        _check_musicnn_input(config)
    if run is not None:
        _check_run(run, config, contract)


def source_run(section: ModelSection) -> RunDir | None:
    """Returns the run that a backbone comes from, also if its checkpoint is named as a file; else None."""
    if section.init_from != "none":
        return open_run(Path(section.init_from))
    checkpoints = Path(section.weights).parent
    inside = section.weights.endswith(".keras") and checkpoints.name == "checkpoints"
    return open_run(checkpoints.parent) if inside and is_run(checkpoints.parent) else None


def trained_on(run: RunDir) -> frozenset[str]:
    """Returns the names of the tracks that have trained a run, those of the backbone that it began with included."""
    records = run.read_json(run.records)
    return frozenset([*records.get("training_tracks", ()), *records.get("backbone_tracks", ())])


def _check_run(run: RunDir, config: Config, contract: Contract | None) -> None:
    """Refuses a run whose backbone would misread the records: it has learned another spectrogram or other values."""
    if run.ensemble.is_file():
        members = [member["run"] for member in run.read_json(run.ensemble)["members"]]
        raise ConfigError(f"{run.path}: is an ensemble; start from one of its members: {', '.join(members)}")
    theirs, source = Contract.load(run.contract), load_config(run.config).input
    pairs: dict[str, tuple[Any, Any]] = {}
    if contract is not None:
        pairs["feature"] = (contract.feature, theirs.feature)
        pairs["scale"] = (contract.scale.name, theirs.scale.name)
        pairs["dtype"] = (contract.dtype, theirs.dtype)
    elif config.model.name != "mlp":  # the feature of embeddings stands in their records alone
        pairs["feature"] = (config.feature, theirs.feature)
        pairs["record.scale"] = (config.record.scale, theirs.scale.name)
        pairs["record.dtype"] = (config.record.dtype, theirs.dtype)
    pairs |= {
        "input.normalize": (config.input.normalize, source.normalize),
        "input.frontend": (config.input.frontend, source.frontend),
    }
    for name, (ours, found) in pairs.items():
        if ours != found:
            raise RunError(
                f"{run.path}: a backbone must have learned on the {name} it is to see, {ours}. Received: {found}"
            )


def _check_musicnn_input(config: Config) -> None:
    """Refuses a spectrogram that the published weights would misread; the frontend takes any that it can map."""
    if config.input.frontend == "musicnn":
        return
    settings = {
        **{
            f"feature.{key}": (getattr(config.feature, key), value)
            for key, value in musicnn.FEATURE.model_dump().items()
        },
        "record.scale": (config.record.scale, "log10_1p10000"),
        "record.dtype": (config.record.dtype, "float32"),
        "input.normalize": (config.input.normalize, "none"),
    }
    wrong = [f"{key}={value} (not {found})" for key, (found, value) in settings.items() if found != value]
    if wrong:
        raise ConfigError(
            f"model.weights={config.model.weights}: the weights of musicnn want {', '.join(wrong)};"
            " or set input.frontend=musicnn, which turns other spectrograms into these"
        )


def _path_of(section: ModelSection) -> Path:
    """Returns the file or folder of weights; raises RunError where musicnn's are asked for and not stored."""
    return stored_musicnn() if section.weights == "musicnn" else Path(section.weights)


def _kind_of(section: ModelSection) -> str:
    if section.init_from != "none":
        return "run"
    if section.weights in ("none", "imagenet"):
        return section.weights
    path = Path(section.weights)
    if section.weights == "musicnn" and section.name in _MUSICNN:
        return "musicnn"
    if path.suffix in (".keras", ".h5", ".hdf5"):
        return path.suffix
    if section.name in _MUSICNN and (path.suffix == ".whl" or path.is_dir()):
        return "musicnn"
    raise ConfigError(
        "model.weights must be none, imagenet, a .keras file of this model, a .h5 file of Keras Applications, or for"
        f" {' or '.join(_MUSICNN)} musicnn or its wheel. Received: {path}"
    )


def keras_file_weights(path: Path) -> LayerWeights:
    """Returns the weights of a .keras file by layer name; raises RunError where it is none, or would run code."""
    if not path.is_file():
        raise RunError(f"{path}: no such file; it must be a Keras model")
    try:
        return layer_weights(keras.saving.load_model(path, compile=False, safe_mode=True))
    except Exception as error:  # Keras raises errors of any kind on a damaged archive
        if weights := _of_other_stack(path):
            return weights
        raise RunError(f"{path}: must be a Keras model: {(str(error) or repr(error)).splitlines()[0]}") from error


def _of_other_stack(path: Path) -> LayerWeights | None:
    """Returns the weights of a model that the other major version of Keras has saved, whose config is not read here."""
    try:
        with zipfile.ZipFile(path) as archive:
            theirs = json.loads(archive.read("metadata.json"))["keras_version"]
        same = theirs.split(".")[0] == keras.__version__.split(".")[0]
        return None if same else archive_weights(path)
    except Exception:  # damaged, or no archive at all: what Keras said of it counts
        return None


@dataclass(frozen=True)
class Pretrained:
    """Where a backbone comes from.

    Attributes:
        layers: which layers hold its weights.
        track_ids: the tracks that trained it, where they are known.
    """

    layers: Transplant
    track_ids: frozenset[str]


def load_pretrained(config: Config, model: keras.Model, run: RunDir, *, resume: bool) -> Pretrained:
    """Returns the backbone that the config asks for, now in the model; a resumed run only reads again what it was.

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
            f"{config.model.origin}: must hold the backbone of model.name={config.model.name},"
            f" model.width={config.model.width}. Received: {', '.join(reasons)};"
            " set name and width to those of the source"
        )
    return Pretrained(layers, ids)


def _read(run: RunDir) -> Pretrained:
    known = run.read_json(run.pretrained)
    try:
        return Pretrained(Transplant(tuple(known["loaded"]), dict(known["skipped"])), frozenset(known["track_ids"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run.pretrained}: must say where the backbone came from. Received: {error!r}") from error
