"""What a network costs and how far it sees, read from its layers."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

_POOLS = (layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D)


def multiply_adds(model: keras.Model) -> int:
    """Returns the multiplications of one example's forward pass; those of convolutions, dense and recurrent layers."""
    return sum(rule(layer) for layer in model.layers for kind, rule in _COSTS.items() if isinstance(layer, kind))


def receptive_field(model: keras.Model) -> int | None:
    """Returns how many frames one position of the last feature map sees; None for all, where a layer is recurrent.

    Counted up to where the head pools over positions: kernels add their reach, strides multiply those that follow,
    and of parallel paths the longest counts.
    """
    seen: dict[int, tuple[int, int]] = {}
    fields = []
    for layer in model.layers:
        if isinstance(layer, layers.RNN):
            return None
        sources = [seen[id(tensor)] for tensor in _tensors(layer.input) if id(tensor) in seen]
        if isinstance(layer, layers.InputLayer):
            sources = [(1, 1)]
        if not sources:  # behind the pool
            continue
        reach, step = max(sources)
        if isinstance(layer, _POOLS) or layer.name == "positions":
            fields.append(reach)
            continue
        kernel, stride = _kernel_and_stride(layer)
        seen[id(layer.output)] = (reach + (kernel - 1) * step, step * stride)
    return max(fields)


def _kernel_and_stride(layer: Any) -> tuple[int, int]:
    """Returns both along time, the first axis."""
    if isinstance(layer, layers.Conv1D | layers.Conv2D):
        return layer.kernel_size[0], layer.strides[0]
    if isinstance(layer, layers.MaxPooling1D | layers.MaxPooling2D):
        size, strides = layer.pool_size, layer.strides
        return (size, strides) if isinstance(size, int) else (size[0], strides[0])
    return 1, 1


def _tensors(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _conv_cost(layer: Any) -> int:
    n_channels = int(layer.input.shape[-1])
    return math.prod(int(n) for n in layer.output.shape[1:]) * math.prod(map(int, layer.kernel_size)) * n_channels


def _dense_cost(layer: Any) -> int:
    return math.prod(int(n) for n in layer.output.shape[1:]) * int(layer.input.shape[-1])


def _gru_cost(layer: Any) -> int:
    steps, n_in = int(layer.input.shape[1]), int(layer.input.shape[2])
    units = int(layer.units)
    return steps * 3 * units * (n_in + units)


_COSTS: dict[Any, Callable[[Any], int]] = {
    layers.Conv1D: _conv_cost,
    layers.Conv2D: _conv_cost,
    layers.Dense: _dense_cost,
    layers.GRU: _gru_cost,
}
