"""The contract: what a model's input must be, stored with records, run and export, compared before use."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from tfmusic.core.feature import EMBEDDING, Feature
from tfmusic.core.files import read_json_file, write_text
from tfmusic.core.scale import Scale
from tfmusic.core.windows import Segments
from tfmusic.errors import RunError

CONTRACT_VERSION = 1

Kind = Literal["single", "multi", "tasks"]
_MOST = 1 << 30  # of any size; beyond it lies no music, but the memory of a machine


@dataclass(frozen=True)
class Head:
    """One task of a model with several: its name, kind and labels."""

    task: str
    kind: Kind
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Contract:
    """Feature, scale, window and labels; a model takes only input that agrees with all of it.

    Attributes:
        task: name of the task, such as q2.
        kind: `single` (one label a track), `multi` (several tags a track), or `tasks` (several tasks, see `heads`).
        labels: names of the outputs, in the order of the logits; `TASK:LABEL` where there are several tasks.
        feature: the spectrogram, or embedding, with its parameters.
        scale: turns linear power into stored codes.
        dtype: storage type of a code: uint8, float16 or float32.
        frames: length of the model's input, frames.
        hop_frames: distance between windows when a track is scored, frames.
        heads: the tasks of a model with several, in the order of their logits; empty for one task.
        metadata: the tokens that a model with metadata knows, in the order of its input; empty for others.
        segments: which segments of a track the records hold and the model scores; None for whole tracks.
    """

    task: str
    kind: Kind
    labels: tuple[str, ...]
    feature: Feature
    scale: Scale
    dtype: str
    frames: int
    hop_frames: int
    version: int = CONTRACT_VERSION
    heads: tuple[Head, ...] = ()
    metadata: tuple[str, ...] = ()
    segments: Segments | None = None

    @property
    def windows(self) -> dict[str, Any]:
        """The windows that score a track, as the functions of `core.windows` take them."""
        return {"frames": self.frames, "hop_frames": self.hop_frames, "segments": self.segments}

    @property
    def is_embedding(self) -> bool:
        """Whether the input is embeddings rather than spectrograms."""
        return self.feature.name == EMBEDDING

    @property
    def n_bins(self) -> int:
        """Height of the spectrogram, bins."""
        return self.feature.n_bins

    @property
    def frames_per_s(self) -> float:
        """Frames in a second of music."""
        return self.feature.frames_per_s

    def target_ids(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the stored label ids that are targets: the first where a track has one label, else all."""
        return stored[:1] if self.kind == "single" else stored

    def parts(self) -> dict[str, "Part"]:
        """Returns every task by name with its contract and its columns among the logits; for one task itself."""
        if not self.heads:
            return {self.task: Part(self, slice(0, len(self.labels)))}
        parts, begin = {}, 0
        for head in self.heads:
            contract = replace(self, task=head.task, kind=head.kind, labels=head.labels, heads=())
            parts[head.task] = Part(contract, slice(begin, begin + len(head.labels)))
            begin += len(head.labels)
        return parts

    def to_dict(self) -> dict[str, Any]:
        """Returns the contract for JSON; fields younger than format 1 only where there is something in them."""
        objects = {"feature": self.feature.model_dump(), "scale": self.scale.to_dict()}
        fields = {field.name: getattr(self, field.name) for field in dataclass_fields(self)}
        fields |= objects | {"heads": [asdict(head) for head in self.heads]}
        fields["segments"] = asdict(self.segments) if self.segments else None
        return {name: value for name, value in fields.items() if value or name not in ("heads", "metadata", "segments")}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Returns the contract that `to_dict` gave; raises ValueError, TypeError, KeyError, AttributeError."""
        heads = tuple(Head(head["task"], head["kind"], tuple(head["labels"])) for head in fields.get("heads", ()))
        objects: dict[str, Any] = {
            "feature": Feature.from_dict(fields["feature"]),
            "scale": Scale.from_dict(fields["scale"]),
        }
        objects["segments"] = Segments(**fields["segments"]) if "segments" in fields else None
        tuples = {"labels": tuple(fields["labels"]), "heads": heads, "metadata": tuple(fields.get("metadata", ()))}
        contract = cls(**(dict(fields) | tuples | objects))
        _check(contract)
        return contract

    def save(self, path: Path) -> None:
        """Writes the contract as JSON."""
        write_text(path, json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Returns the contract of a JSON file.

        Raises:
            RunError: the file is missing, not a contract, or of another version.
        """
        try:
            fields = read_json_file(path)
            version = fields.get("version")
            contract = cls.from_dict(fields)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(f"{path}: must be the contract of a tfmusic model. Received: {error}") from error
        if version != CONTRACT_VERSION:
            raise RunError(f"{path}: contract version must be {CONTRACT_VERSION}. Received: {version}")
        return contract

    def encode_metadata(self, tokens: Iterable[str]) -> list[float]:
        """Returns 1 for every known token of a track, else 0, in the order of `metadata`.

        A token that is not known counts as `field=?`, where the model knows rare values of that field.
        """
        known = set(self.metadata)
        present = {token if token in known else rare_token(token) for token in tokens}
        return [float(token in present) for token in self.metadata]

    def difference(self, other: "Contract") -> str | None:
        """Returns the first field in which data for `other` would not fit this model, as text, or None."""
        for field in ("kind", "labels", "feature", "scale", "dtype", "segments"):
            expected, received = getattr(self, field), getattr(other, field)
            if expected != received:
                return f"{field}: {_short(expected)} against {_short(received)}"
        return None


def _check(contract: Contract) -> None:
    """Raises ValueError, TypeError or KeyError where a field has no sense, or asks for more memory than there is."""
    feature, n_labels = contract.feature, len(contract.labels)
    sizes = feature.parameters() | {"frames": contract.frames, "hop_frames": contract.hop_frames}
    wrong = [name for name, size in sizes.items() if type(size) is not int or not 1 <= size <= _MOST]
    names = [contract.task, feature.source or "", *contract.labels, *contract.metadata]
    names += [name for head in contract.heads for name in (head.task, *head.labels)]
    wrong += [repr(name)[:80] for name in names if not isinstance(name, str) or not name.isprintable()]
    wrong += ["labels"] if len(set(contract.labels)) < n_labels or not n_labels else []
    wrong += ["heads"] if contract.heads and sum(len(head.labels) for head in contract.heads) != n_labels else []
    kinds = [contract.kind, *(head.kind for head in contract.heads)]
    wrong += ["kind"] if not set(kinds) <= set(get_args(Kind)) else []
    wrong += ["dtype"] if contract.dtype not in ("uint8", "float16", "float32") else []
    if not wrong and feature.n_bins * max(feature.n_fft or 1, contract.frames) > _MOST:
        wrong = ["n_bins, n_fft or frames"]
    if wrong:
        raise ValueError(f"no valid {', '.join(wrong[:5])}")


def rare_token(token: str) -> str:
    """Returns the token that stands for rare values of a token's field."""
    return f"{token.partition('=')[0]}=?"


@dataclass(frozen=True)
class Part:
    """One task of a contract: what it is on its own, and its columns among the logits."""

    contract: Contract
    columns: slice


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
