"""Several trained models as one model: the weighted mean of their logits.

A backbone that several members share, such as musicnn's when it is frozen, is in the model once and runs once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers

from tfmusic.models.surgery import equal_models, split_at_embedding


def build_ensemble(
    members: Sequence[keras.Model],
    weights: Sequence[float],
    *,
    tasks: Sequence[str] = (),
    member_metadata: Sequence[Sequence[str]] | None = None,
) -> keras.Model:
    """Returns a model from codes [batch, frames, n_bins] to the weighted mean of the members' logits.

    The mean of logits is the logit of the normalised geometric mean of the scores, a product of experts (Hinton 1999).
    `frames` is the longest window of the members. A member with a shorter window predicts evenly spaced windows that
    cover it, and the mean of their logits counts as the member's.

    Args:
        members: two or more models on codes of the same dtype and number of bins.
        weights: one weight a member, 0 or more; the higher their sum, the more confident the ensemble.
        tasks: names of the tasks, in the order of their logits, where the members predict several.
        member_metadata: the metadata tokens that each member has learned; the ensemble takes `join_metadata` of them.

    Raises:
        ValueError: fewer than two members, or not one weight a member.
    """
    if len(members) < 2 or len(members) != len(weights):
        raise ValueError(f"must have 2 or more members and a weight each. Received: {len(members)} and {len(weights)}")
    vocabularies = member_metadata or [()] * len(members)
    metadata = join_metadata(vocabularies)
    first = members[0].inputs[0]
    frames = max(int(member.inputs[0].shape[1]) for member in members)
    codes = keras.Input((frames, int(first.shape[2])), dtype=getattr(first.dtype, "name", first.dtype), name="codes")
    tokens = keras.Input((len(metadata),), dtype="float32", name="metadata") if metadata else None
    logits_of_members = []
    for i, (member, vocabulary) in enumerate(zip(_split(members, tasks), vocabularies, strict=True)):
        member_tokens = _select_tokens(tokens, metadata, vocabulary, name=f"member{i}")
        logits_of_members.append(_predict(member, codes, member_tokens, name=f"member{i}"))
    means = [
        _weighted_mean(logits, weights, name=f"logits_{task}" if task else "logits")
        for task, logits in zip(tasks or [""], zip(*logits_of_members, strict=True), strict=True)
    ]
    joined = layers.Concatenate(name="logits", dtype="float32")(means) if len(means) > 1 else means[0]
    return keras.Model(codes if tokens is None else [codes, tokens], joined, name="ensemble")


def join_metadata(vocabularies: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Returns the metadata tokens that at least one model has learned, sorted."""
    return tuple(sorted({token for vocabulary in vocabularies for token in vocabulary}))


def _select_tokens(tokens: Any, metadata: Sequence[str], vocabulary: Sequence[str], *, name: str) -> Any:
    """Returns the tokens [batch, len(vocabulary)] of a member in its order; None for one without metadata.

    A token that only other members have learned becomes `FIELD=?`, the rare value of its field.
    """
    if tokens is None or not vocabulary:
        return None
    index = {token: i for i, token in enumerate(vocabulary)}
    columns = [index.get(token, index.get(f"{token.partition('=')[0]}=?")) for token in metadata]
    matrix = np.array([[float(column == i) for i in range(len(vocabulary))] for column in columns], np.float32)
    selected = layers.Dense(
        len(vocabulary),
        use_bias=False,
        trainable=False,
        kernel_initializer=keras.initializers.Constant(matrix.tolist()),
        name=f"{name}_tokens",
    )(tokens)
    return layers.ReLU(max_value=1.0, name=f"{name}_metadata")(selected)  # several rare values count as one


@dataclass(frozen=True)
class _Backbone:
    """A backbone that several members share; each window runs through it once."""

    model: keras.Model
    embeddings: dict[int, Any] = field(default_factory=dict)  # by the start of the window

    def embed(self, window: Any, start: int) -> Any:
        """Returns the embedding of the window that begins at frame `start`."""
        if start not in self.embeddings:
            self.embeddings[start] = self.model(window)
        return self.embeddings[start]


@dataclass(frozen=True)
class _Member:
    """A member, without the backbone that it shares with others."""

    model: keras.Model
    frames: int
    backbone: _Backbone | None = None


def _split(members: Sequence[keras.Model], tasks: Sequence[str]) -> list[_Member]:
    """Returns the members, split where another member has the same backbone."""
    outputs = [[member.get_layer(f"logits_{task}").output for task in tasks] for member in members]
    parts = [split_at_embedding(member, output) for member, output in zip(members, outputs, strict=True)]
    backbones: dict[int, _Backbone] = {}
    split = []
    for i, (member, part) in enumerate(zip(members, parts, strict=True)):
        frames = int(member.inputs[0].shape[1])
        twins = [j for j, other in enumerate(parts) if part and other and equal_models(part[0], other[0])]
        if part is None or len(twins) < 2:
            whole = keras.Model(member.inputs, outputs[i] or [member.outputs[0]], name=f"member{i}")
            split.append(_Member(whole, frames))
            continue
        backbone, head = part
        if twins[0] not in backbones:
            backbones[twins[0]] = _Backbone(keras.Model(backbone.inputs, backbone.outputs[0], name=f"backbone{i}"))
        named = keras.Model(head.inputs, head.outputs, name=f"member{i}")
        split.append(_Member(named, frames, backbones[twins[0]]))
    return split


def _predict(member: _Member, codes: Any, tokens: Any, *, name: str) -> list[Any]:
    """Returns the logits of a member, one tensor a task: the mean over its windows."""
    logits_of_windows = []
    for start in _starts(member.frames, int(codes.shape[1])):
        x = _window(codes, start, member.frames, name=f"{name}_from{start}")
        if member.backbone is not None:
            x = member.backbone.embed(x, start)
        logits = member.model(x if tokens is None else [x, tokens])
        logits_of_windows.append(logits if isinstance(logits, list | tuple) else [logits])
    n_windows = len(logits_of_windows)
    by_task = zip(*logits_of_windows, strict=True)
    return [
        _weighted_mean(logits, [1 / n_windows] * n_windows, name=f"{name}_mean{i}") for i, logits in enumerate(by_task)
    ]


def _starts(window_frames: int, frames: int) -> list[int]:
    """Returns the first frames of the fewest evenly spaced windows that cover `frames` frames."""
    n_windows = math.ceil(frames / window_frames)
    return [round(i * (frames - window_frames) / max(n_windows - 1, 1)) for i in range(n_windows)]


def _window(codes: Any, start: int, window_frames: int, *, name: str) -> Any:
    n_after = int(codes.shape[1]) - start - window_frames
    return layers.Cropping1D((start, n_after), name=name)(codes) if start or n_after else codes


def _weighted_mean(logits: Sequence[Any], weights: Sequence[float], *, name: str) -> Any:
    if len(logits) == 1:
        return logits[0]
    terms = [
        layers.Rescaling(float(weight), dtype="float32", name=f"{name}_term{i}")(x)
        for i, (x, weight) in enumerate(zip(logits, weights, strict=True))
    ]
    return layers.Add(dtype="float32", name=name)(terms)
