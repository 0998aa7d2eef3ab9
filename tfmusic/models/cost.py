"""Multiply-adds and receptive field of a model, computed from its layers."""

import math
from typing import Any

import keras
from keras import layers

_GLOBAL_POOLS = (layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D)


def multiply_adds(model: keras.Model) -> int:
    """Returns the multiply-adds of one example's forward pass in convolutions, dense and recurrent layers."""
    return sum(_layer_cost(layer) for layer in model.layers)


def receptive_field(model: keras.Model) -> int | None:
    """Returns how many frames one position of the last feature map sees; None for all, as in a recurrent network.

    Counts up to the layer where the head pools over positions. A kernel adds its reach times the stride so far; of
    parallel paths the longest counts.
    """
    reach_and_step: dict[int, tuple[int, int]] = {}  # by tensor
    fields = []
    for layer in model.layers:
        if isinstance(layer, layers.RNN):
            return None
        sources = [reach_and_step[id(x)] for x in _tensors(layer.input) if id(x) in reach_and_step]
        if isinstance(layer, layers.InputLayer):
            sources = [(1, 1)]
        if not sources:  # after the pool
            continue
        if isinstance(layer, layers.Dot):  # over all frames
            return None
        reach, step = max(sources)
        if isinstance(layer, _GLOBAL_POOLS) or layer.name == "positions":
            fields.append(reach)
            continue
        kernel, stride = _kernel_and_stride(layer)
        reach_and_step[id(layer.output)] = (reach + (kernel - 1) * step, step * stride)
    return max(fields)


def _layer_cost(layer: Any) -> int:
    if isinstance(layer, layers.GRU):
        steps, n_inputs = (int(n) for n in layer.input.shape[1:])
        return steps * 3 * int(layer.units) * (n_inputs + int(layer.units))
    if not isinstance(layer, layers.Conv1D | layers.Conv2D | layers.Dense):
        return 0
    kernel = () if isinstance(layer, layers.Dense) else layer.kernel_size
    n_outputs = math.prod(int(n) for n in layer.output.shape[1:])
    return n_outputs * math.prod(map(int, kernel)) * int(layer.input.shape[-1])


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
