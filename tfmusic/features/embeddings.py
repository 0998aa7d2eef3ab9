"""Embedding files: one `.npz` with the embeddings of every track, written track by track, read one track at a time.

feature        JSON text: the feature `embedding`, whose n_bins is n_dims, and whose hop_length is that of the segments
track_ids      names of the tracks, text [n_tracks], in their order
tracks         float32 [n_tracks, n_dims], the mean over the segments of a track
trained_on     names of the tracks that trained the network, where they are known, text
segments/ID    float32 [n_segments, n_dims] of the track ID
start_s/ID     float32 [n_segments], where the segments begin, seconds
"""

import json
import sys
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from types import TracebackType
from typing import Any, Self

import numpy as np

from tfmusic.core.feature import EMBEDDING, Feature
from tfmusic.errors import DataError

# What numpy, zipfile and zlib raise on archives and arrays that are damaged, pickled, or claim more than memory holds.
_DAMAGED = (
    ValueError, EOFError, MemoryError, OverflowError, SyntaxError, TokenError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip

_DATE = (1980, 1, 1, 0, 0, 0)  # one date for all members: the same embeddings, the same bytes


class EmbeddingsWriter:
    """Writes an embedding file; it appears under its name when `finish` was called."""

    def __init__(self, path: Path, feature: Feature, trained_on: Iterable[str] = ()) -> None:
        """Opens a hidden file beside the target; `trained_on` are the tracks that trained the network."""
        self.path, self._partial = path, path.with_name(f".{path.name}.partial")
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._archive = zipfile.ZipFile(self._partial, "w", zipfile.ZIP_STORED)
        self._ids: list[str] = []
        self._means: list[np.ndarray] = []
        try:
            self._write("feature", np.array(json.dumps(feature.model_dump(), sort_keys=True)))
            self._write("trained_on", np.array(sorted(trained_on), dtype=np.str_))
        except OSError:
            self._drop()
            raise

    def add(self, track_id: str, segments: np.ndarray, start_s: np.ndarray) -> None:
        """Adds a track: segments [n_segments, n_dims] and their beginnings [n_segments]."""
        self._ids.append(track_id)
        self._means.append(segments.mean(axis=0, dtype=np.float64).astype(np.float32))
        self._write(f"segments/{track_id}", segments.astype(np.float32))
        self._write(f"start_s/{track_id}", start_s.astype(np.float32))

    def finish(self) -> None:
        """Writes what all tracks share and puts the file in its place."""
        self._write("track_ids", np.array(self._ids))
        self._write("tracks", np.stack(self._means))
        self._archive.close()
        self._partial.replace(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drop()

    def _drop(self) -> None:
        with suppress(OSError, ValueError):  # the end of an archive on a full disk, or in the middle of a member
            self._archive.close()
        self._partial.unlink(missing_ok=True)

    def _write(self, name: str, value: np.ndarray) -> None:
        with self._archive.open(zipfile.ZipInfo(f"{name}.npy", _DATE), "w", force_zip64=True) as member:
            np.lib.format.write_array(member, value, allow_pickle=False)


@dataclass(frozen=True)
class EmbeddingIndex:
    """What an embedding file holds: its feature, its tracks in their order, and who trained the network."""

    feature: Feature
    track_ids: tuple[str, ...]
    trained_on: tuple[str, ...]


def read_index(path: Path) -> EmbeddingIndex:
    """Returns the index of an embedding file; raises DataError where it is none."""
    file = _open(path)
    try:
        feature = Feature.from_dict(json.loads(_texts(file["feature"])[0]))
        ids, trained_on = (_texts(file[key]) for key in ("track_ids", "trained_on"))
    except (KeyError, TypeError, RecursionError, OSError, *_DAMAGED) as error:
        raise DataError(f"{path}: must be a file that tfmusic embed wrote: {_line(error)}") from error
    if feature.name != EMBEDDING:
        raise DataError(f"{path}: must be a file that tfmusic embed wrote. Received: feature {feature}")
    return EmbeddingIndex(feature, ids, trained_on)


def read_embedding(path: Path, track_id: str, n_dims: int) -> np.ndarray:
    """Returns the embeddings of a track as a feature, float32 [n_dims, n_segments], every value finite.

    Raises:
        DataError: the file is none, has no such track, or the track's shape or values are not what they must be.
    """
    file, name = _open(path), f"segments/{track_id}.npy"  # the whole name: numpy would take "a" for "a.npy"
    if name not in file:
        raise DataError(
            f"{path}: must hold the track {track_id}. Received: no embedding of it; run tfmusic embed on it"
        )
    try:
        segments = file[name]
    except (OSError, *_DAMAGED) as error:
        raise DataError(f"{path}: track {track_id}: damaged: {_line(error)}") from error
    if not isinstance(segments, np.ndarray):  # a member without numpy's mark is given as it is
        raise DataError(f"{path}: track {track_id}: damaged: must be an array")
    if segments.ndim != 2 or segments.shape[1] != n_dims or len(segments) == 0 or segments.dtype.kind != "f":
        shape = list(segments.shape)
        raise DataError(f"{path}: track {track_id}: must be floats [n_segments, {n_dims}]. Received: {shape}")
    if not np.isfinite(segments).all():
        raise DataError(f"{path}: track {track_id}: embeddings must be finite. Received: NaN or infinite values")
    return np.ascontiguousarray(segments.T, dtype=np.float32)


def _open(path: Path) -> Any:
    try:
        return _open_version(path, path.stat().st_mtime_ns)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, *_DAMAGED) as error:
        raise DataError(f"{path}: must be a file that tfmusic embed wrote: {_line(error)}") from error


def _texts(values: Any) -> tuple[str, ...]:
    """Returns the cells of an array of text.

    Raises:
        ValueError: it holds other things, or numbers that are no sign, of which numpy makes texts that break Python.
    """
    cells = np.atleast_1d(np.asarray(values))
    if cells.size == 0:
        return ()
    codes = np.ascontiguousarray(cells.astype(cells.dtype.newbyteorder("="))).view(np.uint32)
    if cells.dtype.kind != "U" or codes.max() > sys.maxunicode:
        raise ValueError("it must hold text")
    return tuple(str(cell) for cell in cells)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@lru_cache(maxsize=4)
def _open_version(path: Path, mtime_ns: int) -> Any:
    """Returns the open archive; its list of members is read once a process, its members when asked for."""
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("it is no .npz archive")
    return file
