"""Several trained models as one: the weighted mean of their logits.

A backbone that several members have, such as musicnn's at rest, is there once and listens once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers

from tfmusic.models.surgery import cut, is_same


def build_ensemble(
    members: Sequence[keras.Model],
    weights: Sequence[float],
    *,
    tasks: Sequence[str] = (),
    member_metadata: Sequence[Sequence[str]] | None = None,
) -> keras.Model:
    """Returns a model from codes [batch, frames, n_bins] to the weighted mean of the members' logits.

    The mean of logits is the logit of the normalised geometric mean of the scores, a product of experts (Hinton 1999).
    `frames` is that of the member with the longest window; a shorter one looks at evenly spaced windows that cover
    it, and the mean of their logits is its own.

    Args:
        members: two or more models on codes of the same dtype and number of bins.
        weights: of every member, 0 or more; the higher their sum, the surer the whole.
        tasks: names of the tasks where the models answer several, in the order of their logits.
        member_metadata: the metadata tokens that each member knows; the ensemble takes those of `join_metadata`.

    Raises:
        ValueError: fewer than two members, or not a weight for each.
    """
    if len(members) < 2 or len(members) != len(weights):
        raise ValueError(f"must have two members or more, and a weight each. Received: {len(members)}, {len(weights)}")
    metadata = join_metadata(member_metadata or [])
    first = members[0].inputs[0]
    frames = max(int(member.inputs[0].shape[1]) for member in members)
    codes = keras.Input((frames, int(first.shape[2])), dtype=getattr(first.dtype, "name", first.dtype), name="codes")
    tokens = keras.Input((len(metadata),), dtype="float32", name="metadata") if metadata else None
    halves = _halves(members, tasks)
    answers = [
        _answer(half, codes, _known(tokens, metadata, known, name=f"member{i}"), tasks, name=f"member{i}")
        for i, (half, known) in enumerate(zip(halves, member_metadata or [()] * len(members), strict=True))
    ]
    names = {task: f"logits_{task}" for task in tasks} or {"": "logits"}
    logits = [
        _mean([answer[task] for answer in answers], weights, part=task, name=name) for task, name in names.items()
    ]
    whole = layers.Concatenate(name="logits", dtype="float32")(logits) if len(logits) > 1 else logits[0]
    return keras.Model(codes if tokens is None else [codes, tokens], whole, name="ensemble")


def join_metadata(known: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Returns the metadata tokens that any of several models knows, sorted."""
    return tuple(sorted({token for some in known for token in some}))


def _known(tokens: Any, metadata: Sequence[str], known: Sequence[str], *, name: str) -> Any:
    """Returns the tokens as a member knows them, in its order; None for one without metadata.

    What others know and it does not is a rare value of its field to it.
    """
    if tokens is None or not known:
        return None
    place = {token: i for i, token in enumerate(known)}
    columns = [place.get(token, place.get(f"{token.partition('=')[0]}=?")) for token in metadata]
    choice = np.array([[float(column == i) for i in range(len(known))] for column in columns], np.float32)
    chosen = layers.Dense(
        len(known),
        use_bias=False,
        trainable=False,
        kernel_initializer=keras.initializers.Constant(choice.tolist()),
        name=f"{name}_tokens",
    )(tokens)
    return layers.ReLU(max_value=1.0, name=f"{name}_known")(chosen)  # several rare values count as one


@dataclass(frozen=True)
class _Backbone:
    """What members have in common, if they do: its model and what it has said of the windows so far."""

    model: keras.Model
    heard: dict[int, Any] = field(default_factory=dict)

    def hear(self, window: Any, start: int) -> Any:
        """Returns the embedding of the window from a start; of one that was heard before, the same tensor."""
        if start not in self.heard:
            self.heard[start] = self.model(window)
        return self.heard[start]


@dataclass(frozen=True)
class _Half:
    """The part of a member that is its own: all of it, or what comes after a backbone that others have as well."""

    model: keras.Model
    frames: int
    backbone: _Backbone | None = None


def _halves(members: Sequence[keras.Model], tasks: Sequence[str]) -> list[_Half]:
    """Returns every member, cut where another one has the very same backbone."""
    outputs = [[member.get_layer(f"logits_{task}").output for task in tasks] for member in members]
    cuts = [cut(member, wanted) for member, wanted in zip(members, outputs, strict=True)]
    twins = [[j for j, other in enumerate(cuts) if one and other and is_same(one[0], other[0])] for one in cuts]
    backbones: dict[int, _Backbone] = {}
    halves = []
    for i, (member, wanted, parts) in enumerate(zip(members, outputs, cuts, strict=True)):
        frames = int(member.inputs[0].shape[1])
        if parts is None or len(twins[i]) < 2:
            whole = keras.Model(member.inputs, wanted or [member.outputs[0]], name=f"member{i}")
            halves.append(_Half(whole, frames))
            continue
        first = twins[i][0]
        if first not in backbones:
            backbones[first] = _Backbone(keras.Model(parts[0].inputs, parts[0].outputs[0], name=f"backbone{first}"))
        head = keras.Model(parts[1].inputs, parts[1].outputs, name=f"member{i}")
        halves.append(_Half(head, frames, backbones[first]))
    return halves


def _answer(half: _Half, codes: Any, tokens: Any, tasks: Sequence[str], *, name: str) -> dict[str, Any]:
    """Returns the logits of a member by task, `""` where there is one."""
    own, frames = half.frames, int(codes.shape[1])
    seen = []
    for start in _starts(own, frames):
        heard = _window(codes, start, own, frames, name=f"{name}_from{start}")
        if half.backbone is not None:
            heard = half.backbone.hear(heard, start)
        seen.append(half.model(heard if tokens is None else [heard, tokens]))
    by_window = [some if isinstance(some, list | tuple) else [some] for some in seen]
    means = zip(*by_window, strict=True)
    return {
        task: _mean(list(parts), [1 / len(seen)] * len(seen), part=task, name=f"{name}_mean_{task}")
        for task, parts in zip(tasks or [""], means, strict=True)
    }


def _starts(own: int, frames: int) -> list[int]:
    n_windows = math.ceil(frames / own)
    return [round(i * (frames - own) / max(n_windows - 1, 1)) for i in range(n_windows)]


def _window(codes: Any, start: int, own: int, frames: int, *, name: str) -> Any:
    return codes if own == frames else layers.Cropping1D((start, frames - start - own), name=name)(codes)


def _mean(logits: list[Any], weights: Sequence[float], *, part: str, name: str) -> Any:
    if len(logits) == 1:
        return logits[0]
    shares = [
        layers.Rescaling(float(weight), dtype="float32", name=f"{name}_share{i}_{part}")(some)
        for i, (some, weight) in enumerate(zip(logits, weights, strict=True))
    ]
    return layers.Add(dtype="float32", name=name)(shares)
