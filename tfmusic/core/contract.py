"""The contract: what a model's input must be, stored with records, run and export, compared before use."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

from tfmusic.core.files import read_json_file, write_text
from tfmusic.errors import RunError

CONTRACT_VERSION = 1

Kind = Literal["single", "multi", "tasks"]
FeatureName = Literal["mel", "log-mel", "stft", "cqt", "chroma_stft", "chroma_cqt", "tempogram", "raw"]
ScaleName = Literal["db", "log10_1p10", "log10_1p10000", "identity"]
WITHOUT_FFT = ("cqt", "chroma_cqt", "raw")  # whose windows follow from the pitches, or which have none
EMBEDDING = "embedding"  # the name of a feature that a network has made

# Features whose values are power, so that dB and logarithms of them mean something; others are stored as they are.
POWER = ("mel", "stft", "cqt")

C1_HZ = 440.0 * 2.0 ** (-69 / 12 + 2)  # 32.70 Hz, the lowest bin of the features cqt and chroma_cqt
CHROMA_CQT_OCTAVES = 7

_MOST = 1 << 30  # of any size; beyond it lies no music, but the memory of a machine


@dataclass(frozen=True)
class Head:
    """One task of a model that answers several: its name, kind and labels."""

    task: str
    kind: Kind
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Contract:
    """Feature, scale, window and labels; a model answers only for input that keeps all of it.

    Attributes:
        task: name of the task, such as q2.
        kind: `single` (one label a track), `multi` (several tags a track), or `tasks` (several tasks, see `heads`).
        labels: names of the outputs, in the order of the logits; `TASK:LABEL` where there are several tasks.
        feature: name and parameters of the spectrogram (sample_rate_hz, n_fft, hop_length, n_bins).
        scale: name, low and high of the scale that turns linear power into stored codes.
        dtype: storage type of a cell: uint8, float16 or float32.
        frames: length of the model's input, frames.
        hop_frames: distance between windows when a track is scored, frames.
        heads: the tasks of a model that answers several, in the order of their logits; empty for one task.
        metadata: the tokens that a model with metadata knows, in the order of its input; empty for others.
    """

    task: str
    kind: Kind
    labels: tuple[str, ...]
    feature: Mapping[str, Any]
    scale: Mapping[str, Any]
    dtype: str
    frames: int
    hop_frames: int
    version: int = CONTRACT_VERSION
    heads: tuple[Head, ...] = ()
    metadata: tuple[str, ...] = ()

    @property
    def n_bins(self) -> int:
        """Height of the spectrogram, bins."""
        return int(self.feature["n_bins"])

    @property
    def frames_per_s(self) -> float:
        """Frames in a second of music."""
        return float(self.feature["sample_rate_hz"]) / float(self.feature["hop_length"])

    def answers(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Returns which of the stored labels of a track are right answers: the first where a track has one label."""
        return stored[:1] if self.kind == "single" else stored

    def parts(self) -> dict[str, "Part"]:
        """Returns every task by name with its contract and its columns among the logits; for one task itself."""
        if not self.heads:
            return {self.task: Part(self, slice(0, len(self.labels)))}
        found, begin = {}, 0
        for head in self.heads:
            contract = replace(self, task=head.task, kind=head.kind, labels=head.labels, heads=())
            found[head.task] = Part(contract, slice(begin, begin + len(head.labels)))
            begin += len(head.labels)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns the contract for JSON; `heads` and `metadata`, younger than format 1, only where there are some."""
        return {name: value for name, value in asdict(self).items() if value or name not in ("heads", "metadata")}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Returns the contract that `to_dict` gave; raises ValueError, TypeError, KeyError, AttributeError."""
        heads = tuple(Head(head["task"], head["kind"], tuple(head["labels"])) for head in fields.get("heads", ()))
        tuples = {"labels": tuple(fields["labels"]), "heads": heads, "metadata": tuple(fields.get("metadata", ()))}
        contract = cls(**(dict(fields) | tuples))
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
        found = {token if token in known else rare_token(token) for token in tokens}
        return [float(token in found) for token in self.metadata]

    def difference(self, other: "Contract") -> str | None:
        """Returns the first field in which data for `other` would not fit this model, as text, or None."""
        for field in ("kind", "labels", "feature", "scale", "dtype"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                return f"{field}: {_short(mine)} against {_short(theirs)}"
        return None


def _check(contract: Contract) -> None:
    """Raises ValueError, TypeError or KeyError where a field has no sense, or asks for more memory than there is."""
    feature, scale, n_labels = contract.feature, contract.scale, len(contract.labels)
    sizes = {name: feature[name] for name in ("n_bins", "sample_rate_hz", "hop_length")}
    sizes |= {"n_fft": feature.get("n_fft") or 1, "frames": contract.frames, "hop_frames": contract.hop_frames}
    wrong = [name for name, size in sizes.items() if type(size) is not int or not 1 <= size <= _MOST]
    names = [contract.task, feature["name"], scale["name"], *contract.labels, *contract.metadata]
    names += [name for head in contract.heads for name in (head.task, *head.labels)]
    wrong += [repr(name)[:80] for name in names if not isinstance(name, str) or not name.isprintable()]
    wrong += [] if feature["name"] in (*get_args(FeatureName), EMBEDDING) else ["feature"]
    keys = {"source"} if feature["name"] == EMBEDDING else set() if feature["name"] in WITHOUT_FFT else {"n_fft"}
    wrong += [str(key) for key in feature.keys() ^ {"name", "n_bins", "sample_rate_hz", "hop_length", *keys}]
    wrong += [] if scale["name"] in get_args(ScaleName) else ["scale"]
    wrong += ["labels"] if len(set(contract.labels)) < n_labels or not n_labels else []
    wrong += ["heads"] if contract.heads and sum(len(head.labels) for head in contract.heads) != n_labels else []
    kinds = [contract.kind, *(head.kind for head in contract.heads)]
    wrong += ["kind"] if not set(kinds) <= set(get_args(Kind)) else []
    wrong += ["dtype"] if contract.dtype not in ("uint8", "float16", "float32") else []
    is_range = all(type(end) in (int, float) and math.isfinite(end) for end in (scale["low"], scale["high"]))
    wrong += ["scale"] if not is_range or scale["low"] >= scale["high"] else []
    if not wrong and max(sizes["n_bins"] * sizes["n_fft"], sizes["n_bins"] * sizes["frames"]) > _MOST:
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
