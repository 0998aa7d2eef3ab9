"""Spectrogram files: `.npy`, linear power, [1, n_bins, n_frames] or [n_bins, n_frames]; never unpickled.

Beside them may lie `feature.json`, in which `tfmusic extract` names the feature of the spectrograms of a folder.
"""

import json
import math
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy_format

from tfmusic.core.feature import Feature
from tfmusic.core.files import read_json_file, write_text
from tfmusic.errors import DataError

MAGIC = b"\x93NUMPY"


def count_mel_frames(path: Path, n_bins: int) -> int:
    """Returns n_frames of a spectrogram [n_bins, n_frames] of any real float dtype; reads the header only.

    Raises:
        DataError: the file is missing, truncated or pickled, has another dtype, number of axes or bins, or no frames.
    """
    with _opened(path) as (_, header):
        return _mel_shape(path, header, n_bins)[1]


def read_mel(path: Path, n_bins: int) -> np.ndarray:
    """Returns a spectrogram of linear power, float32 [n_bins, n_frames], every value finite and at least 0.

    Raises:
        DataError: as `count_mel_frames`, or a value is NaN, infinite or negative.
    """
    mel = read_values(path, n_bins)
    check_power(mel, str(path))
    return mel


def read_values(path: Path, n_bins: int) -> np.ndarray:
    """Returns the values of a file, float32 [n_bins, n_frames], unchecked; raises as `count_mel_frames`."""
    with _opened(path) as (file, header):
        shape = _mel_shape(path, header, n_bins)
        # Read, not memory-mapped: a mapped file that shrinks kills the process without a message.
        values = np.fromfile(file, header.dtype, math.prod(shape))
    if values.size < math.prod(shape):
        raise DataError(f"{path}: changed while it was read: {math.prod(shape)} values, now {values.size}")
    values = values.reshape(shape, order="F" if header.is_fortran else "C")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which every check refuses
        return np.ascontiguousarray(values, dtype=np.float32)


def read_any_mel(path: Path, n_bins: Sequence[int]) -> np.ndarray:
    """Returns a spectrogram, as `read_mel`, that has one of several numbers of bins."""
    with _opened(path) as (_, header):
        height = header.shape[-2] if len(header.shape) > 1 else 0
    if height not in n_bins:
        allowed = " or ".join(map(str, n_bins))
        raise DataError(f"{path}: shape must be [1, {allowed}, n_frames]. Received: {list(header.shape)}")
    return read_mel(path, height)


def check_power(mel: np.ndarray, origin: str) -> None:
    """Raises DataError if a value of a float32 spectrogram is NaN, infinite or negative."""
    # The bits of a finite float32 of at least 0 are below 0x7F80_0000: one maximum replaces three comparisons.
    if mel.size == 0 or int(np.ascontiguousarray(mel, dtype="<f4").view("<u4").max()) < 0x7F80_0000:
        return
    for name, bad in (("NaN", np.isnan(mel)), ("infinite", np.isinf(mel)), ("negative", mel < 0)):
        if bad.any():
            index = [int(i) for i in np.argwhere(bad)[0]]
            raise DataError(
                f"{origin}: power must be finite and at least 0. Received: {int(bad.sum())} {name} values,"
                f" the first at bin {index[0]}, frame {index[1]}"
                f"{'; where files hold dB, set feature.log10_factor=10' if name == 'negative' else ''}"
            )


def check_finite(values: np.ndarray, origin: str) -> None:
    """Raises DataError if a value of a feature is NaN or infinite."""
    bad = ~np.isfinite(values)
    if bad.any():
        index = [int(i) for i in np.argwhere(bad)[0]]
        raise DataError(
            f"{origin}: values must be finite. Received: {int(bad.sum())} NaN or infinite values, the first at bin"
            f" {index[0]}, frame {index[1]}"
        )


def open_arrays(path: Path) -> Any:
    """Returns an .npz file whose arrays are stored as they are, since a few compressed megabytes can take all memory.

    Raises:
        ValueError, OSError, zipfile.BadZipFile: it is no such file.
    """
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("compressed arrays; they must be stored as they are")
    return np.load(path, allow_pickle=False)


class _Header(NamedTuple):
    """Shape, order and dtype of the array of an .npy file."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype


def _mel_shape(path: Path, header: _Header, n_bins: int) -> tuple[int, int]:
    """Returns (n_bins, n_frames); raises DataError if the array is no spectrogram of `n_bins` bins."""
    if header.dtype.kind != "f":
        raise DataError(f"{path}: values must be real floats such as float32. Received: dtype {header.dtype}")
    shape = header.shape[1:] if header.shape[:1] == (1,) and len(header.shape) == 3 else header.shape
    if len(shape) != 2 or shape[0] != n_bins:
        hint = "; transpose it" if shape[1:] == (n_bins,) else ""
        raise DataError(f"{path}: shape must be [1, {n_bins}, n_frames]. Received: {list(header.shape)}{hint}")
    if shape[1] == 0:
        raise DataError(f"{path}: must have at least one frame. Received: shape {list(header.shape)}")
    return shape[0], shape[1]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], _Header]]:
    """Yields an .npy file, positioned at its values, and its header; the file is as long as the header says."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would block
            raise DataError(f"{path}: must be a regular file")
        with path.open("rb") as file:
            yield file, _read_header(file)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (ValueError, EOFError, OverflowError, MemoryError, SyntaxError, TypeError, TokenError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: must be a complete .npy file of numbers (never unpickled). Received: {reason}"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_header(file: IO[bytes]) -> _Header:
    """Returns the header of an .npy file; raises ValueError if it is damaged or the file is shorter than it says."""
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("a file that does not begin like .npy")
    file.seek(0)
    version = npy_format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"version {version}")
    # Version 3 differs from version 2 only in the names of fields, which an array of numbers does not have.
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    header = _Header(*read(file))
    if header.dtype.hasobject:
        raise ValueError("Python objects")
    if any(size < 0 for size in header.shape):
        raise ValueError(f"shape {header.shape}")
    n_expected = math.prod(header.shape) * header.dtype.itemsize
    n_bytes = os.fstat(file.fileno()).st_size - file.tell()
    if n_bytes < n_expected:
        raise ValueError(f"{n_bytes} bytes of values where the header says {n_expected}")
    return header


FEATURE_FILE = "feature.json"
FEATURE_FORMAT = "tfmusic features 1"
_MAX_LEVELS = 6  # of parent folders to search


def write_feature(folder: Path, feature: Feature, made_by: Mapping[str, str]) -> None:
    """Writes the file into a folder; `made_by` has the versions of the libraries that decode audio."""
    body = {"format": FEATURE_FORMAT, "feature": feature.model_dump(), "made_by": dict(made_by)}
    write_text(folder / FEATURE_FILE, json.dumps(body, indent=1) + "\n")


def find_feature(folder: Path) -> tuple[Path, Feature] | None:
    """Returns the nearest file in a folder or its parents, and the feature that it names; None without such a file.

    Raises:
        DataError: the file has the right format, but no valid feature.
    """
    parent = str(folder.absolute())
    for _ in range(_MAX_LEVELS):
        # A string: this runs for every track, and pathlib would take longer than reading the track's header.
        if os.access(f"{parent}/{FEATURE_FILE}", os.F_OK):
            path = Path(parent, FEATURE_FILE)
            feature = _feature_of(path)
            if feature is not None:
                return path, feature
        parent = parent.rpartition("/")[0]
    return None


def _feature_of(path: Path) -> Feature | None:
    """Returns the feature that a file names; None for a file of another program."""
    try:
        body = read_json_file(path)
    except (OSError, ValueError):
        return None
    if not isinstance(body, dict) or body.get("format") != FEATURE_FORMAT:
        return None
    try:
        return Feature.from_dict(body.get("feature"))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def check_extracted(path: Path, feature: Feature) -> None:
    """Raises DataError if a `feature.json` above a spectrogram names another feature."""
    named = find_feature(path.parent)
    if named is not None and named[1] != feature:
        raise DataError(f"{path}: the feature must be {feature}. Received: {named[1]}, named in {named[0]}")
