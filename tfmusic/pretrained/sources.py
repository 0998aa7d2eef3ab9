"""From `model.weights` and `model.init_from` of a config to weights by layer name."""

from pathlib import Path
from typing import Any

import keras

from tfmusic.config import Config, ModelSection
from tfmusic.contract import Contract
from tfmusic.errors import ConfigError, RunError
from tfmusic.models import musicnn
from tfmusic.pretrained.applications import check_architecture, imagenet_weights
from tfmusic.pretrained.transplant import LayerWeights, layer_weights
from tfmusic.rundir import RunDir, open_run


def find_weights(section: ModelSection) -> LayerWeights:
    """Returns the pretrained weights that a config asks for.

    Raises:
        ConfigError: there are none of that kind for the model.
        RunError: the file or run is missing, damaged, or of another model.
    """
    if section.init_from != "none":
        return keras_file_weights(open_run(Path(section.init_from)).checkpoint("best"))
    if section.weights == "imagenet":
        return imagenet_weights(section.name)
    return _from_path(section.name, Path(section.weights))


def check_source(config: Config) -> None:
    """Raises ConfigError or RunError where the weights that a config asks for cannot be there, or not be for its input.

    Nothing is read or fetched, so that wrong settings are known at once.
    """
    section = config.model
    if section.init_from != "none":
        open_run(Path(section.init_from))
    elif section.weights == "imagenet":
        check_architecture(section.name)
    elif section.weights != "none":
        path = Path(section.weights)
        kind = _kind_of(section.name, path)
        if not path.exists():
            raise RunError(f"{path}: no such file; model.weights must be a file of weights")
        if kind == "musicnn":
            _check_musicnn_input(config)


def _check_musicnn_input(config: Config) -> None:
    """Refuses a spectrogram that the published weights would misread."""
    feature, wanted = config.feature, musicnn.FEATURE
    settings = {
        **{f"feature.{key}": (getattr(feature, key), value) for key, value in wanted.items()},
        "record.scale": (config.record.scale, "log10_1p10000"),
        "record.dtype": (config.record.dtype, "float32"),
        "input.normalize": (config.input.normalize, "none"),
    }
    wrong = [f"{key}={value} (not {found})" for key, (found, value) in settings.items() if found != value]
    if wrong:
        raise ConfigError(
            f"model.weights={config.model.weights}: the weights of musicnn want {', '.join(wrong)};"
            " for other spectrograms use tfmusic embed musicnn and model.name=mlp"
        )


def _kind_of(name: str, path: Path) -> str:
    if path.suffix in (".keras", ".h5", ".hdf5"):
        return path.suffix
    if name == "musicnn" and (path.suffix == ".whl" or path.is_dir()):
        return "musicnn"
    raise ConfigError(
        "model.weights must be none, imagenet, a .keras file of this model, a .h5 file of Keras Applications, or for"
        f" model.name=musicnn the musicnn wheel. Received: {path}"
    )


def _from_path(name: str, path: Path) -> LayerWeights:
    kind = _kind_of(name, path)
    if kind == ".keras":
        return keras_file_weights(path)
    if kind == "musicnn":
        from tfmusic.pretrained.musicnn import musicnn_weights

        return musicnn_weights(path)
    return imagenet_weights(name, path)


def keras_file_weights(path: Path) -> LayerWeights:
    """Returns the weights of a .keras file by layer name; raises RunError where it is none, or would run code."""
    if not path.is_file():
        raise RunError(f"{path}: no such file; it must be a Keras model")
    try:
        return layer_weights(keras.saving.load_model(path, compile=False, safe_mode=True))
    except Exception as error:  # Keras raises errors of any kind on a damaged archive
        raise RunError(f"{path}: must be a Keras model: {(str(error) or repr(error)).splitlines()[0]}") from error


def check_source_run(run: RunDir, contract: Contract) -> dict[str, Any]:
    """Returns records.json of the run that a trunk comes from.

    Raises:
        RunError: it was trained on another feature, which its trunk cannot read here.
    """
    theirs = Contract.load(run.contract)
    if theirs.feature != contract.feature:
        raise RunError(
            f"{run.path}: model.init_from must be a run on the feature of the records, {dict(contract.feature)}."
            f" Received: {dict(theirs.feature)}"
        )
    known: dict[str, Any] = run.read_json(run.records)
    return known
