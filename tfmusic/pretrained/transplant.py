"""Weights by layer name, and setting them in a model whose layers bear the same names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np

LayerWeights = Mapping[str, Sequence[np.ndarray]]

NEW_HEAD = "a new head"

_HEAD = ("logits", "tokens", "metadata_logits")  # and logits_TASK; of metadata every model knows other values


@dataclass(frozen=True)
class Transplant:
    """What became of the layers of a model.

    Attributes:
        loaded: names of the layers that now hold the source's weights: the backbone.
        skipped: why the others keep the weights they began with, by name.
    """

    loaded: tuple[str, ...]
    skipped: Mapping[str, str]

    def describe(self) -> str:
        """Returns one line that says what was loaded, and one for every reason why something was not."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            reasons.setdefault(reason, []).append(name)
        lines = [f"{len(self.loaded)} layers loaded, {len(self.skipped)} not"]
        lines += [f"  not loaded, {reason}: {', '.join(names)}" for reason, names in reasons.items()]
        return "\n".join(lines)


def layer_weights(model: keras.Model) -> LayerWeights:
    """Returns the weights of every layer that has some."""
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


def transplant(model: keras.Model, source: LayerWeights, *, with_head: bool = False) -> Transplant:
    """Sets the weights of every layer that the source has under the same name and in the same shapes.

    Args:
        model: the model to change.
        source: weights by layer name.
        with_head: whether the last layers, which belong to the source's labels, are taken over as well.
    """
    loaded, skipped = [], {}
    for layer in model.layers:
        if not layer.weights:
            continue
        reason = _why_not(layer, source, with_head=with_head)
        if reason is None:
            layer.set_weights(list(source[layer.name]))
            loaded.append(layer.name)
        else:
            skipped[layer.name] = reason
    return Transplant(tuple(loaded), skipped)


def _why_not(layer: keras.layers.Layer, source: LayerWeights, *, with_head: bool) -> str | None:
    if layer.name.startswith(_HEAD) and not with_head:
        return NEW_HEAD
    if layer.name not in source:
        return "no layer of that name there"
    if [value.shape for value in source[layer.name]] != [tuple(weight.shape) for weight in layer.weights]:
        return "another shape there"
    return None
