"""What a .keras file of tfmusic may hold, checked before Keras reads it: such a file is a program of its maker.

Keras makes objects of the classes that `config.json` names, and some read files or run code, Keras's safe mode or not;
HDF5 reads other files where a file says so. Here only what tfmusic writes is accepted, on Keras 2.15 and 3 alike.
"""

import io
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from tfmusic.core.files import parse_json

MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
MOST_JSON = 64 << 20  # bytes
MOST_INFLATED = 4  # bytes of weights for each byte of the file
MOST = 1 << 20  # of a number in a config: a size beyond it takes all memory

_TENSOR = "__keras_tensor__"

_LAYERS = {
    "Activation", "Add", "AveragePooling1D", "AveragePooling2D", "BatchNormalization", "Concatenate", "Conv1D",
    "Conv2D", "Cropping1D", "Dense", "Dot", "Dropout", "ELU", "GRU", "GlobalAveragePooling1D", "GlobalAveragePooling2D",
    "GlobalMaxPooling1D", "Identity", "InputLayer", "MaxPooling1D", "MaxPooling2D", "Multiply", "Normalization",
    "Permute", "ReLU", "Rescaling", "Reshape", "Softmax", "UpSampling1D", "ZeroPadding2D",
}  # fmt: skip
_INITIALIZERS = {"Constant", "GlorotUniform", "HeNormal", "Ones", "Orthogonal", "OrthogonalInitializer", "Zeros"}
_POLICIES = {"DTypePolicy", "Policy"}
_ACTIVATIONS = {"linear", "relu", "sigmoid", "tanh", "exponential", "softmax"}
_MODULES = {
    "Functional": {"keras", "keras.src.engine.functional", "keras.src.models.functional"},
    "Log": {"keras.src.ops.numpy"},  # of Keras 3
    "TFOpLambda": {"keras.src.layers.core.tf_op_layer"},  # of Keras 2.15, where it stands for the same
    **{name: {"keras.layers"} for name in _LAYERS},
    **{name: {"keras.initializers"} for name in _INITIALIZERS},
    **{name: {"keras", "keras.mixed_precision"} for name in _POLICIES},
}
_FUNCTIONS = {"math.log"}  # of TFOpLambda
_OBJECT = {
    "module", "class_name", "config", "registered_name", "name", "inbound_nodes", "build_config", "shared_object_id",
}  # fmt: skip
_ARGUMENTS = {"mask", "training", "name"}  # of the call of a layer


def check_keras_file(path: Path) -> None:
    """Checks a .keras file, of which nothing is built.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no archive, or holds what tfmusic does not write.
    """
    config, weights = read_keras_file(path)
    if not isinstance(config, dict):
        raise ValueError("config.json must be an object")
    # How it was compiled is not read.
    try:
        _check_object({**config, "compile_config": None}, {"Functional"}, "config")
    except (TypeError, AttributeError, RecursionError) as error:  # of values of another kind
        raise ValueError(f"config.json must be of a functional model. Received: {error}") from error
    largest = check_hdf5(weights)
    if too_large := [size for size in _sizes(config) if size > largest]:
        raise ValueError(f"a layer must be as large as its weights. Received: {too_large[0]:,} units")


def read_keras_file(path: Path) -> tuple[Any, bytes]:
    """Returns the config and the bytes of the weights of a .keras file; raises as `check_keras_file`."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if len(set(names)) < len(names) or not {"config.json", "model.weights.h5"} <= set(names) <= MEMBERS:
                raise ValueError(f"it must hold {', '.join(sorted(MEMBERS))}, each once. Received: {names[:8]}")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("its members must be stored as they are, without compression")
            if any(member.file_size > MOST_JSON for member in members if member.filename.endswith(".json")):
                raise ValueError(f"its JSON must be at most {MOST_JSON >> 20} MiB")
            return parse_json(archive.read("config.json").decode()), archive.read("model.weights.h5")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"it must be an archive of Keras: {error}") from error


def check_hdf5(content: bytes | Path) -> int:
    """Checks that the arrays of an HDF5 file are in the file itself; returns the largest dimension of any.

    Raises:
        ValueError: it has links, external or virtual arrays, or is damaged.
    """
    import h5py

    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    seen, n_bytes, largest = set[Any](), 0, 0

    def visit(group: Any, way: str) -> None:
        nonlocal n_bytes, largest
        for name in group:
            where = f"{way}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"weights: {where} is a link")
            item = group[name]
            place = h5py.h5o.get_info(item.id).addr
            if place in seen:  # a second name of what was looked at
                continue
            seen.add(place)
            if isinstance(item, h5py.Group):
                visit(item, where)
                continue
            if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
                raise ValueError(f"weights: {where} must be an array in the file itself")
            n_bytes += item.nbytes
            largest = max(largest, *item.shape, 0)
            if item.dtype.kind not in "fiubSV" or n_bytes > MOST_INFLATED * size:
                raise ValueError(f"weights: {where} must be numbers that the file holds")

    try:
        with h5py.File(io.BytesIO(content) if isinstance(content, bytes) else content, "r") as file:
            visit(file, "")
    except (OSError, KeyError, RuntimeError, TypeError, RecursionError) as error:
        raise ValueError(f"its weights must be an HDF5 file: {error or type(error).__name__}") from error
    return largest


def _sizes(layer: Mapping[str, Any]) -> Iterator[int]:
    """Yields the numbers of units and filters of all layers of a checked config."""
    config = layer["config"]
    yield from (size for name in ("units", "filters") if isinstance(size := config.get(name), int))
    for inner in config.get("layers", ()):
        yield from _sizes(inner)


def _check_object(value: Any, kinds: Collection[str], way: str) -> None:
    """Raises ValueError where a value is no object of some classes of Keras itself, made of plain values."""
    kind = value.get("class_name") if isinstance(value, dict) else value
    if not isinstance(value, dict) or not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{way}: tfmusic makes no such object here: {str(kind)[:80]}")
    if value.get("module") not in _MODULES[kind] or value.get("registered_name") not in (None, kind):
        raise ValueError(f"{way}: {kind} must be Keras's own. Received: {str(value.get('module'))[:80]}")
    config = value.get("config")
    unknown = {name for name in value.keys() - _OBJECT if name != "compile_config" or value[name]}
    if unknown or not isinstance(config, dict):
        raise ValueError(f"{way}: {kind} must have a config, and no {', '.join(sorted(unknown)) or 'other value'}")
    way = f"{way}: {str(config.get('name', kind))[:80]}"
    for name, item in config.items():
        _check_entry(kind, name, item, f"{way}: {name}")
    build = value.get("build_config") or {}
    is_plain = isinstance(value.get("shared_object_id", 0), int | None)  # an address, of any size
    if not is_plain or build.keys() - {"input_shape"} or config.keys() & {"class_name", "module", "registered_name"}:
        raise ValueError(f"{way}: must have no object in place of its config")
    _check_plain([value.get("name"), *build.values()], way)
    nodes = value.get("inbound_nodes") or []
    if not isinstance(nodes, list):
        raise ValueError(f"{way}: inbound_nodes must be a list")
    for node in nodes:
        _check_node(node, f"{way}: inbound_nodes")


def _check_entry(kind: str, name: str, value: Any, way: str) -> None:
    """Checks an entry of the config of a class by its key."""
    if kind == "Functional" and name == "layers":
        for layer in value if isinstance(value, list) else [value]:
            _check_object(layer, _LAYERS | {"Functional", "Log", "TFOpLambda"}, way)
    elif name.endswith("initializer"):
        _check_object(value, _INITIALIZERS, way)
    elif name == "dtype" and isinstance(value, dict):
        _check_object(value, _POLICIES, way)
    elif name.endswith(("regularizer", "constraint", "quantization_config")) and value is not None:
        raise ValueError(f"{way} must be null. Received: {str(value)[:80]}")
    elif name.endswith("activation") and value not in _ACTIVATIONS:
        raise ValueError(f"{way} must be one of {', '.join(sorted(_ACTIVATIONS))}. Received: {str(value)[:80]}")
    elif name == "function" and (kind != "TFOpLambda" or value not in _FUNCTIONS):
        raise ValueError(f"{way} must be one of {', '.join(sorted(_FUNCTIONS))}. Received: {str(value)[:80]}")
    elif name != "seed" or not isinstance(value, int):
        _check_plain(value, way)


def _check_plain(value: Any, way: str) -> None:
    """Raises ValueError where a value is no text, no number of a usual size, and no list of such."""
    if isinstance(value, list):
        for item in value:
            _check_plain(item, way)
    elif isinstance(value, int) and abs(value) > MOST:
        raise ValueError(f"{way} must be at most {MOST:,}. Received: {str(value)[:80]}")
    elif not (value is None or isinstance(value, str | int | float)):
        raise ValueError(f"{way} must be plain. Received: {str(value)[:80]}")


def _check_node(node: Any, way: str) -> None:
    """Checks where a layer takes its inputs from: tensors of other layers, no constants."""
    if isinstance(node, dict):  # Keras 3
        tensors, options = node.get("args"), node.get("kwargs")
        is_node = node.keys() == {"args", "kwargs"} and all(map(_is_tensor, _flat(tensors)))
    elif isinstance(node, list) and node and all(isinstance(source, list) for source in node):  # Keras 2.15: several
        for source in node:
            _check_node(source, way)
        return
    else:
        is_node = isinstance(node, list) and [type(item) for item in node] == [str, int, int, dict]
        is_node = is_node and node[0] != "_CONSTANT_VALUE"
        options = node[3] if is_node else None
    if not is_node or not isinstance(options, dict) or options.keys() - _ARGUMENTS:
        raise ValueError(f"{way} must be tensors of other layers. Received: {str(node)[:80]}")
    _check_plain([value for value in options.values() if not isinstance(value, str)], way)


def _flat(value: Any) -> list[Any]:
    return [item for one in value for item in _flat(one)] if isinstance(value, list) else [value]


def _is_tensor(value: Any) -> bool:
    """Returns whether a value of Keras 3 stands for the output of a layer."""
    if not isinstance(value, dict) or value.keys() != {"class_name", "config"} or value["class_name"] != _TENSOR:
        return False
    config = value["config"]
    if not isinstance(config, dict) or config.keys() != {"shape", "dtype", "keras_history"}:
        return False
    parts = _flat(list(config.values()))
    return all(part is None or isinstance(part, str | int) for part in parts)
