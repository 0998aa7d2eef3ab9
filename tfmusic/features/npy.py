"""Spectrogram files: `.npy`, linear power, [1, n_bins, n_frames] or [n_bins, n_frames]; never unpickled."""

import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy_format

from tfmusic.errors import DataError

_MAGIC = b"\x93NUMPY"


def count_mel_frames(path: Path, n_bins: int) -> int:
    """Returns n_frames of a spectrogram [n_bins, n_frames] of any real float dtype; cells are not read.

    Raises:
        DataError: missing, truncated or pickled file, wrong dtype, number of axes or bins, or no frames.
    """
    with _opened(path) as (_, header):
        return _mel_shape(path, header, n_bins)[1]


def read_mel(path: Path, n_bins: int) -> np.ndarray:
    """Returns the spectrogram in memory, float32 [n_bins, n_frames], every cell finite and at least 0.

    Raises:
        DataError: as `count_mel_frames`, or a cell is NaN, infinite or negative.
    """
    mel = read_cells(path, n_bins)
    check_power(mel, str(path))
    return mel


def read_cells(path: Path, n_bins: int) -> np.ndarray:
    """Returns the file's cells in memory, float32 [n_bins, n_frames], of any value; raises as `count_mel_frames`."""
    with _opened(path) as (file, header):
        shape = _mel_shape(path, header, n_bins)
        # Read, not mapped: a file that shrinks meanwhile would end the process without a word.
        cells = np.fromfile(file, header.dtype, math.prod(shape))
    if cells.size < math.prod(shape):
        raise DataError(f"{path}: changed while it was read: {math.prod(shape)} cells, now {cells.size}")
    cells = cells.reshape(shape, order="F" if header.is_fortran else "C")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which no check lets pass
        return np.ascontiguousarray(cells, dtype=np.float32)


def read_any_mel(path: Path, n_bins: Sequence[int]) -> np.ndarray:
    """Returns as `read_mel` a spectrogram that may have one of several numbers of bins."""
    with _opened(path) as (_, header):
        height = header.shape[-2] if len(header.shape) > 1 else 0
    if height not in n_bins:
        wanted = " or ".join(map(str, n_bins))
        raise DataError(f"{path}: shape must be [1, {wanted}, n_frames]. Received: {list(header.shape)}")
    return read_mel(path, height)


def check_power(mel: np.ndarray, origin: str) -> None:
    """Raises DataError if a cell of a float32 spectrogram is NaN, infinite or negative."""
    # The bits of a non-negative finite float32 are below 0x7F80_0000: one cheap integer maximum instead of three float
    # comparisons.
    if mel.size == 0 or int(np.ascontiguousarray(mel, dtype="<f4").view("<u4").max()) < 0x7F80_0000:
        return
    for name, bad in (("NaN", np.isnan(mel)), ("infinite", np.isinf(mel)), ("negative", mel < 0)):
        if bad.any():
            index = [int(i) for i in np.argwhere(bad)[0]]
            raise DataError(
                f"{origin}: cells must be finite power, 0 or more. Received: {int(bad.sum())} {name} cells,"
                f" the first at bin {index[0]}, frame {index[1]}"
            )


def check_finite(values: np.ndarray, origin: str) -> None:
    """Raises DataError if a cell of a float32 feature that is no power is NaN or infinite."""
    bad = ~np.isfinite(values)
    if bad.any():
        index = [int(i) for i in np.argwhere(bad)[0]]
        raise DataError(
            f"{origin}: cells must be finite. Received: {int(bad.sum())} NaN or infinite cells, the first at bin"
            f" {index[0]}, frame {index[1]}"
        )


class _Header(NamedTuple):
    """What an .npy file says of its cells."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype


def _mel_shape(path: Path, header: _Header, n_bins: int) -> tuple[int, int]:
    """Returns [n_bins, n_frames]; raises DataError where the header is that of another kind of array."""
    if header.dtype.kind != "f":
        raise DataError(f"{path}: cells must be real floats (float32 as a rule). Received: dtype {header.dtype}")
    shape = header.shape[1:] if header.shape[:1] == (1,) and len(header.shape) == 3 else header.shape
    if len(shape) != 2 or shape[0] != n_bins:
        raise DataError(f"{path}: shape must be [1, {n_bins}, n_frames]. Received: {list(header.shape)}")
    if shape[1] == 0:
        raise DataError(f"{path}: must hold at least one frame. Received: shape {list(header.shape)}")
    return shape[0], shape[1]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], _Header]]:
    """Yields an .npy file that stands where its cells begin, and its header; the file is as long as that says."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would keep us waiting
            raise DataError(f"{path}: must be a file")
        with path.open("rb") as file:
            yield file, _read_header(file)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (ValueError, EOFError, OverflowError, MemoryError, SyntaxError, TypeError, TokenError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: must be a whole .npy file of plain numbers (never unpickled): {why}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_header(file: IO[bytes]) -> _Header:
    """Returns the header of an .npy file; raises ValueError where it is none, or the file is shorter than it says."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it does not begin as one")
    file.seek(0)
    version = npy_format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"its version is {version}")
    # Version 3 is version 2 with other letters in names of fields, which no plain number has.
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    header = _Header(*read(file))
    if header.dtype.hasobject:
        raise ValueError("it holds Python objects")
    if any(size < 0 for size in header.shape):
        raise ValueError(f"its shape is {header.shape}")
    n_bytes, n_found = math.prod(header.shape) * header.dtype.itemsize, os.fstat(file.fileno()).st_size - file.tell()
    if n_found < n_bytes:
        raise ValueError(f"its header promises {n_bytes} bytes of cells, it has {n_found}")
    return header
