"""The pretrained backbone that `model.weights` or `model.init_from` of a config names."""

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
from tfmusic.pretrained.musicnn import musicnn_weights, stored_musicnn
from tfmusic.pretrained.torchvision import check_torchvision, torchvision_weights
from tfmusic.pretrained.transplant import NEW_HEAD, LayerWeights, Transplant, keras_file_weights, transplant

_MUSICNN = ("musicnn", "musicnn_mlp")


def find_weights(section: ModelSection) -> LayerWeights:
    """Returns the pretrained weights that a config names.

    Raises:
        ConfigError: no such weights exist for the model.
        RunError: the file or run is missing, damaged, or of another model.
    """
    if section.init_from != "none":
        return keras_file_weights(RunDir(Path(section.init_from)).checkpoint("best"))
    if section.weights == "imagenet":
        return imagenet_weights(section.name)
    path, kind = _path_of(section), _kind_of(section)
    if kind == ".keras":
        return keras_file_weights(path)
    if kind == ".safetensors":
        return torchvision_weights(section.name, path)
    if kind == "musicnn":
        return musicnn_weights(path)
    return imagenet_weights(section.name, path)


def check_source(config: Config, contract: Contract | None) -> None:
    """Raises ConfigError or RunError if the weights that a config names do not exist or do not fit its input.

    Reads and fetches no weights, so that wrong settings are reported at once. Without a contract of records the config
    determines the input.
    """
    section = config.model
    kind, run = _kind_of(section), source_run(section)
    if kind in ("imagenet", ".h5", ".hdf5", ".safetensors"):
        (check_torchvision if kind == ".safetensors" else check_architecture)(section.name)
        if section.width not in (None, IMAGENET_WIDTH):
            raise ConfigError(
                f"model.width must be {IMAGENET_WIDTH} or null with ImageNet weights. Received: {section.width}"
            )
        if config.input.normalize == "none":
            raise ConfigError(
                "input.normalize must be per_bin or global with ImageNet weights, which were trained on a known spread."
                " Received: none"
            )
    if kind not in ("none", "imagenet", "run") and not _path_of(section).exists():
        raise RunError(f"{section.weights}: no such file; model.weights must be a file of weights")
    if kind == "musicnn":
        _check_musicnn_input(config)
    if run is not None:
        _check_run(run, config, contract)


def source_run(section: ModelSection) -> RunDir | None:
    """Returns the run that the backbone comes from, named by folder or by checkpoint file; None for other sources."""
    if section.init_from != "none":
        return open_run(Path(section.init_from))
    checkpoints = Path(section.weights).parent
    is_checkpoint = section.weights.endswith(".keras") and checkpoints.name == "checkpoints"
    return open_run(checkpoints.parent) if is_checkpoint and is_run(checkpoints.parent) else None


def trained_on(run: RunDir) -> frozenset[str]:
    """Returns the ids of the tracks that trained a run, its pretrained backbone included."""
    records = run.read_json(run.records)
    return frozenset([*records.get("training_tracks", ()), *records.get("backbone_tracks", ())])


def _check_run(run: RunDir, config: Config, contract: Contract | None) -> None:
    """Raises if a run was trained on another spectrogram or other codes than the records have."""
    if members := run.members():
        names = ", ".join(member.run for member in members.values())
        raise ConfigError(f"{run.path}: must not be an ensemble. Start from one of its members: {names}")
    trained, trained_input = Contract.load(run.contract), load_config(run.config).input
    pairs: dict[str, tuple[Any, Any]] = {}
    if contract is not None:
        pairs["feature"] = (contract.feature, trained.feature)
        pairs["scale"] = (contract.scale.name, trained.scale.name)
        pairs["dtype"] = (contract.dtype, trained.dtype)
    elif config.model.name != "mlp":  # only the records of embeddings have their feature
        pairs["feature"] = (config.feature, trained.feature)
        pairs["record.scale"] = (config.record.scale, trained.scale.name)
        pairs["record.dtype"] = (config.record.dtype, trained.dtype)
    pairs |= {
        "input.normalize": (config.input.normalize, trained_input.normalize),
        "input.frontend": (config.input.frontend, trained_input.frontend),
    }
    for name, (expected, received) in pairs.items():
        if expected != received:
            raise RunError(f"{run.path}: the backbone must be trained with {name} {expected}. Received: {received}")


def _check_musicnn_input(config: Config) -> None:
    """Raises if the published weights do not fit the spectrogram and no frontend maps it."""
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
    wrong = [f"{key}={value} (not {ours})" for key, (ours, value) in settings.items() if ours != value]
    if wrong:
        raise ConfigError(
            f"model.weights={config.model.weights}: the weights of musicnn need {', '.join(wrong)};"
            " or set input.frontend=musicnn, which computes musicnn's spectrogram from others"
        )


def _path_of(section: ModelSection) -> Path:
    """Returns the file or folder of weights; raises RunError if the weights of musicnn have not been stored."""
    return stored_musicnn() if section.weights == "musicnn" else Path(section.weights)


def _kind_of(section: ModelSection) -> str:
    if section.init_from != "none":
        return "run"
    if section.weights in ("none", "imagenet"):
        return section.weights
    path = Path(section.weights)
    if section.weights == "musicnn" and section.name in _MUSICNN:
        return "musicnn"
    if path.suffix in (".keras", ".h5", ".hdf5", ".safetensors"):
        return path.suffix
    if section.name in _MUSICNN and (path.suffix == ".whl" or path.is_dir()):
        return "musicnn"
    raise ConfigError(
        "model.weights must be none, imagenet, a .keras file of this model, a .h5 file of Keras Applications, a"
        f" .safetensors file of torchvision, or for {' or '.join(_MUSICNN)} musicnn or its wheel. Received: {path}"
    )


@dataclass(frozen=True)
class Pretrained:
    """The pretrained backbone of a run.

    Attributes:
        layers: which layers have its weights.
        track_ids: the tracks that trained it, as far as known.
    """

    layers: Transplant
    track_ids: frozenset[str]


def load_pretrained(config: Config, model: keras.Model, run: RunDir, *, resume: bool) -> Pretrained:
    """Loads the backbone that the config names into the model and returns it; a resumed run only reads its description.

    Raises:
        ConfigError, RunError: the weights are missing or do not fit the model.
    """
    if resume:
        return _read(run)
    source = source_run(config.model)
    ids = trained_on(source) if source else frozenset()
    layers = transplant(model, find_weights(config.model))
    if not layers.loaded:
        reasons = sorted(set(layers.skipped.values()) - {NEW_HEAD})
        raise RunError(
            f"{config.model.origin}: must contain the backbone of model.name={config.model.name},"
            f" model.width={config.model.width}. Received: {', '.join(reasons)};"
            " set name and width to those of the source"
        )
    return Pretrained(layers, ids)


def _read(run: RunDir) -> Pretrained:
    body = run.read_json(run.pretrained)
    try:
        return Pretrained(Transplant(tuple(body["loaded"]), dict(body["skipped"])), frozenset(body["track_ids"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{run.pretrained}: must have loaded, skipped and track_ids of the backbone. Received: {error!r}"
        ) from error
