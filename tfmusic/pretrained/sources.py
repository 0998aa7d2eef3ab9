"""From `model.weights` and `model.init_from` of a config to weights by layer name."""

from pathlib import Path
from typing import Any

import keras

from tfmusic.config import ModelSection
from tfmusic.contract import Contract
from tfmusic.errors import ConfigError, RunError
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
        from tfmusic.pretrained.applications import imagenet_weights

        return imagenet_weights(section.name)
    return _from_path(section.name, Path(section.weights))


def _from_path(name: str, path: Path) -> LayerWeights:
    if path.suffix == ".keras":
        return keras_file_weights(path)
    if path.suffix in (".h5", ".hdf5"):
        from tfmusic.pretrained.applications import imagenet_weights

        return imagenet_weights(name, path)
    if name == "musicnn" and (path.suffix == ".whl" or path.is_dir()):
        from tfmusic.pretrained.musicnn import musicnn_weights

        return musicnn_weights(path)
    raise ConfigError(
        "model.weights must be none, imagenet, a .keras file of this model, a .h5 file of Keras Applications, or for"
        f" model.name=musicnn the musicnn wheel. Received: {path}"
    )


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
