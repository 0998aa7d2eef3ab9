"""Embedding files: one `.npz` with the embeddings of all tracks, written and read one track at a time.

feature        JSON text: the feature `embedding`; its n_bins is n_dims, its hop_length the hop of the segments
track_ids      text [n_tracks]
tracks         float32 [n_tracks, n_dims], the mean over the segments of each track
trained_on     text, ids of the tracks that trained the network, as far as known
segments/ID    float32 [n_segments, n_dims] of the track ID
n_segments     int64 [n_tracks], of each track
start_s        float32 [the sum of these], start of each segment, seconds, track after track
"""

import json
import os
import sys
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from types import TracebackType
from typing import Any, Self

import numpy as np

from tfmusic.core.feature import EMBEDDING, Feature
from tfmusic.core.files import held, new_temporary
from tfmusic.errors import DataError
from tfmusic.features.npy import open_arrays

# What numpy, zipfile and zlib raise for archives and arrays that are damaged, pickled or larger than memory.
_DAMAGED = (
    ValueError, EOFError, MemoryError, OverflowError, SyntaxError, TokenError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip

_DATE = (1980, 1, 1, 0, 0, 0)  # the same for all members: the same embeddings give the same bytes


class EmbeddingsWriter:
    """Writes an embedding file; `finish` gives it its name."""

    def __init__(self, path: Path, feature: Feature, trained_on: Iterable[str] = ()) -> None:
        """Opens a hidden file beside the target; `trained_on` are the ids of the tracks that trained the network."""
        self.path, self._partial, self._lock = path, new_temporary(path), ExitStack()
        self._lock.enter_context(held(self._partial))
        self._archive = zipfile.ZipFile(self._partial, "w", zipfile.ZIP_STORED)
        self._ids: list[str] = []
        self._means: list[np.ndarray] = []
        self._starts: list[np.ndarray] = []
        try:
            self._write("feature", np.array(json.dumps(feature.model_dump(), sort_keys=True)))
            self._write("trained_on", np.array(sorted(trained_on), dtype=np.str_))
        except OSError:
            self._drop()
            raise

    def add(self, track_id: str, segments: np.ndarray, start_s: np.ndarray) -> None:
        """Adds a track: its segments [n_segments, n_dims] and their starts [n_segments], seconds."""
        self._ids.append(track_id)
        self._means.append(segments.mean(axis=0, dtype=np.float64).astype(np.float32))
        self._write(f"segments/{track_id}", segments.astype(np.float32))
        self._starts.append(start_s.astype(np.float32))

    def finish(self) -> None:
        """Writes the arrays of all tracks and renames the file."""
        self._write("track_ids", np.array(self._ids))
        self._write("tracks", np.stack(self._means))
        self._write("n_segments", np.array([len(starts) for starts in self._starts]))
        self._write("start_s", np.concatenate(self._starts))
        self._archive.close()
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()

    def _drop(self) -> None:
        with suppress(OSError, ValueError):  # close() writes: the disk may be full, or a member unfinished
            self._archive.close()
        self._lock.close()  # removes the file, unless it has its name

    def _write(self, name: str, value: np.ndarray) -> None:
        with self._archive.open(zipfile.ZipInfo(f"{name}.npy", _DATE), "w", force_zip64=True) as member:
            np.lib.format.write_array(member, value, allow_pickle=False)


@dataclass(frozen=True)
class EmbeddingIndex:
    """The feature and the tracks of an embedding file, and the tracks that trained the network."""

    feature: Feature
    track_ids: tuple[str, ...]
    trained_on: tuple[str, ...]


def read_index(path: Path) -> EmbeddingIndex:
    """Returns the index of an embedding file; raises DataError if it is missing or damaged."""
    file = _open(path)
    try:
        feature = Feature.from_dict(json.loads(_texts(file["feature"])[0]))
        ids, trained_on = (_texts(file[key]) for key in ("track_ids", "trained_on"))
    except (KeyError, TypeError, RecursionError, OSError, *_DAMAGED) as error:
        raise DataError(f"{path}: must be a file of tfmusic embed. Received: {_line(error)}") from error
    if feature.name != EMBEDDING:
        raise DataError(f"{path}: must be a file of tfmusic embed. Received: feature {feature}")
    return EmbeddingIndex(feature, ids, trained_on)


def read_embedding(path: Path, track_id: str, n_dims: int) -> np.ndarray:
    """Returns the embeddings of a track as a feature, float32 [n_dims, n_segments], every value finite.

    Raises:
        DataError: the file is missing or damaged, lacks the track, or the track has another shape or NaN.
    """
    file, name = _open(path), f"segments/{track_id}.npy"  # numpy would also accept the name without .npy
    if name not in file:
        raise DataError(f"{path}: must contain track {track_id}. Received: no embedding of it; run tfmusic embed on it")
    try:
        segments = file[name]
    except (OSError, *_DAMAGED) as error:
        raise DataError(f"{path}: track {track_id}: damaged: {_line(error)}") from error
    if not isinstance(segments, np.ndarray):  # numpy returns the bytes of other members
        raise DataError(f"{path}: track {track_id}: damaged: not an array")
    if segments.ndim != 2 or segments.shape[1] != n_dims or len(segments) == 0 or segments.dtype.kind != "f":
        shape = list(segments.shape)
        raise DataError(f"{path}: track {track_id}: must be floats [n_segments, {n_dims}]. Received: {shape}")
    if not np.isfinite(segments).all():
        raise DataError(f"{path}: track {track_id}: embeddings must be finite. Received: NaN or infinity")
    return np.ascontiguousarray(segments.T, dtype=np.float32)


def _open(path: Path) -> Any:
    try:
        return _open_version(path, path.stat().st_mtime_ns)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, *_DAMAGED) as error:
        raise DataError(f"{path}: must be a file of tfmusic embed. Received: {_line(error)}") from error


def _texts(values: Any) -> tuple[str, ...]:
    """Returns the strings of an array.

    Raises:
        ValueError: it is no array of text, or has invalid code points, of which numpy makes strings that crash Python.
    """
    texts = np.atleast_1d(np.asarray(values))
    if texts.size == 0:
        return ()
    if texts.dtype.kind != "U" or texts.dtype.itemsize == 0:  # of no width, a few bytes can be any number of texts
        raise ValueError("an array that is not text")
    code_points = np.ascontiguousarray(texts.astype(texts.dtype.newbyteorder("="))).view(np.uint32)
    if code_points.max() > sys.maxunicode:
        raise ValueError("an array that is not text")
    return tuple(str(text) for text in texts)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@lru_cache(maxsize=4)
def _open_version(path: Path, mtime_ns: int) -> Any:
    """Returns the open archive, cached: its list of members is read once a process, a member when it is accessed."""
    return open_arrays(path)
