"""What the graph of an export may hold, checked before a runtime loads it: such a graph is a program of its maker.

TensorFlow has operations that read and write files or call Python, and ONNX may name other files with its weights.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfmusic.core.runtime import start_tensorflow

MOST_BYTES = 1 << 31  # of a graph: the limit of protocol buffers

# Operations of the SavedModels that tfmusic writes, of every architecture, feature and option, on both stacks and with
# GPUs, and a few more that only calculate.
_NAMES = (
    "Abs AddN AddV2 All Any ArgMax Assert AvgPool BatchMatMulV2 BiasAdd Bincount Bitcast BitwiseAnd BitwiseOr"
    " BitwiseXor BroadcastArgs BroadcastTo Cast Ceil ConcatOffset ConcatV2 Const Conv2D CudnnRNN CudnnRNNBackprop"
    " CudnnRNNV3 Cumprod Cumsum DenseBincount DepthwiseConv2dNative Elu EnsureShape Equal Exp ExpandDims Fill Floor"
    " FloorDiv FloorMod FusedBatchNormV3 GatherNd GatherV2 Greater GreaterEqual Identity IdentityN If Imag Invert"
    " InvertPermutation IsFinite LeftShift Less LessEqual Log Log1p LogicalAnd LogicalNot LogicalOr MatMul Max MaxPool"
    " Maximum Mean Min Minimum Mul Neg NoOp NotEqual OneHot Pack Pad PartitionedCall Placeholder Pow Prod RFFT Range"
    " Rank ReadVariableOp Real RealDiv Relu Reshape ReverseV2 RightShift Round Rsqrt Select SelectV2 Shape Sigmoid"
    " Sign Size Slice Softmax Softplus Split SplitV Sqrt Square SquaredDifference Squeeze StatefulPartitionedCall"
    " StatelessIf StatelessWhile StaticRegexReplace StridedSlice StridedSliceGrad Sub Sum Tanh TensorListConcatV2"
    " TensorListFromTensor TensorListGetItem TensorListLength TensorListReserve TensorListSetItem TensorListStack Tile"
    " TopKV2 Transpose TruncateDiv TruncateMod Unpack VarHandleOp Where While ZerosLike"
)
_OPERATIONS = frozenset(_NAMES.split())
_RESTORING = frozenset({"AssignVariableOp", "DisableCopyOnRead", "RestoreV2"})
_SAVING = frozenset({"MergeV2Checkpoints", "SaveV2", "Select", "ShardedFilename", "StaticRegexFullMatch", "StringJoin"})
_KINDS = {"bare_concrete_function", "constant", "function", "user_object", "variable"}
_IDENTIFIERS = {"_generic_user_object", "signature_map", "trackable_list_wrapper"}
_REGISTERED = {"", "tf.TrackableConstant"}

# Fields of ONNX's messages (onnx.proto) by number: those that hold messages, and those that must not be there.
_TENSOR = {13: "external data", 14: "external data"}
_SPARSE: Mapping[int, Any] = {1: _TENSOR, 2: _TENSOR}
_ATTRIBUTE: dict[int, Any] = {5: _TENSOR, 10: _TENSOR, 22: _SPARSE, 23: _SPARSE}
_NODE = {5: _ATTRIBUTE, 7: "operations of other domains than ONNX's own"}
_GRAPH = {1: _NODE, 5: _TENSOR, 15: _SPARSE}
_MODEL = {7: _GRAPH, 20: "training graphs", 25: "functions"}
_ATTRIBUTE |= {6: _GRAPH, 11: _GRAPH}


def check_saved_model(folder: Path) -> None:
    """Checks the graph of a SavedModel.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or holds what no export of tfmusic does.
    """
    start_tensorflow()
    from tensorflow.core.protobuf import saved_model_pb2

    others = [path for path in folder.glob("saved_model.*") if path.name != "saved_model.pb"]
    others += [path for name in ("assets", "assets.extra") for path in (folder / name).glob("*")]
    if others:
        raise ValueError(f"{others[0].relative_to(folder)}: no export of tfmusic holds it")
    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString(_read(folder / "saved_model.pb"))
    except Exception as error:  # that of protobuf, which is not ours to import
        raise ValueError(f"damaged: {error}") from error
    if len(saved.meta_graphs) != 1:
        raise ValueError(f"it must hold one graph. Received: {len(saved.meta_graphs)}")
    _check_objects(saved.meta_graphs[0])
    _check_operations(saved.meta_graphs[0])


def check_onnx(path: Path) -> None:
    """Checks an ONNX model.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or holds weights in other files, or operations that are not ONNX's own.
    """
    try:
        _check_message(memoryview(_read(path)), _MODEL)
    except (IndexError, RecursionError) as error:
        raise ValueError("damaged") from error


def check_litert(operations: list[str]) -> None:
    """Checks the names of the operations of a LiteRT model.

    Raises:
        ValueError: one is not built in: the kernels of others, which run TensorFlow's, may read and write files.
    """
    if others := sorted({name for name in operations if not name.replace("_", "").isalnum() or name != name.upper()}):
        raise ValueError(f"operations must be LiteRT's own. Received: {', '.join(others[:8])}")


def _read(path: Path) -> bytes:
    if not path.is_file() or path.stat().st_size >= MOST_BYTES:
        raise ValueError(f"it must be a file of less than {MOST_BYTES >> 30} GiB")
    return path.read_bytes()


def _check_objects(graph: Any) -> None:
    """Checks what is made when a SavedModel is loaded, before any of it is called."""
    objects = graph.object_graph_def.nodes
    if not objects:
        raise ValueError("it must be a SavedModel of TensorFlow 2")
    if graph.asset_file_def:
        raise ValueError(f"it must have no assets. Received: {graph.asset_file_def[0].filename}")
    for node in objects:
        kind = node.WhichOneof("kind")
        name = node.user_object.identifier if kind == "user_object" else kind
        is_known = name in (_IDENTIFIERS if kind == "user_object" else _KINDS) and node.registered_name in _REGISTERED
        if not is_known or node.saveable_objects or node.registered_saver:
            raise ValueError(f"no export of tfmusic holds such an object: {name} {node.registered_name}".rstrip())


def _check_operations(graph: Any) -> None:
    """Checks operations: those that read and write files only where a checkpoint is saved and restored."""
    functions = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
    savers = (graph.saver_def.save_tensor_name.partition(":")[0], graph.saver_def.restore_op_name)
    nodes = graph.graph_def.node
    called = {node.name: _functions(node) for node in nodes if node.name in savers}
    saving, restoring = (called.get(name, set()) for name in savers)
    for name, body in functions.items():
        allowed = _OPERATIONS | (_RESTORING if name in saving | restoring else set())
        allowed |= _SAVING if name in saving - restoring else set()
        _check_nodes(body, allowed, set(functions), saving | restoring)
    outputs = {info.name for signature in graph.signature_def.values() for info in signature.outputs.values()}
    inputs = {source for node in nodes for source in node.input}
    if {name.strip("^").partition(":")[0] for name in outputs | inputs} & set(savers):
        raise ValueError("the graph must not save or restore when it is called")
    _check_nodes([node for node in nodes if node.name not in savers], _OPERATIONS, set(functions), saving | restoring)
    if called_by_others := (saving | restoring) & set(graph.object_graph_def.concrete_functions):
        raise ValueError(f"the graph must not save or restore when it is called. Received: {min(called_by_others)}")


def _check_nodes(nodes: Any, allowed: frozenset[str] | set[str], functions: set[str], saver: set[str]) -> None:
    """Checks the operations of a graph or a function, and that it calls no function of the saver."""
    for node in nodes:
        if node.op not in allowed:
            raise ValueError(f"no export of tfmusic holds such an operation: {node.op}")
        if calls := _functions(node) & saver or _functions(node) - functions:
            raise ValueError(f"{node.name} must call functions of the graph. Received: {min(calls)}")


def _functions(node: Any) -> set[str]:
    """Returns the names of the functions that an operation calls."""
    values = [one for value in node.attr.values() for one in (value.func, *value.list.func)]
    return {one.name for one in values if one.name}


def _check_message(data: memoryview, schema: Mapping[int, Any]) -> None:
    """Raises ValueError where a message holds, at any depth, a field that must not be there."""
    for number, value in _fields(data):
        inner = schema.get(number)
        if isinstance(inner, str):
            if value not in (0, b"", b"ai.onnx"):
                raise ValueError(f"it must hold no {inner}")
        elif inner is not None:
            if not isinstance(value, memoryview):
                raise ValueError("damaged")
            _check_message(value, inner)


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yields number and value of the fields of a message: whole numbers, and the bytes of all else."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, position = _varint(data, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("damaged")
        if position + size > len(data):
            raise ValueError("damaged")
        yield tag >> 3, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("damaged")
