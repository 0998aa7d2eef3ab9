"""Spectrogram files: `.npy`, linear power, [1, n_bins, n_frames] or [n_bins, n_frames]; never unpickled."""

from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Literal

import numpy as np

from tfmusic.errors import DataError

_MAGIC = b"\x93NUMPY"


def open_mel(path: Path, n_bins: int) -> np.ndarray:
    """Returns the memory-mapped spectrogram, shape [n_bins, n_frames], any real float dtype; cells are not read.

    Raises:
        DataError: missing, truncated or pickled file, wrong dtype, number of axes or bins, or no frames.
    """
    mel = _load(path, mmap_mode="r")
    if mel.dtype.kind != "f":
        raise DataError(f"{path}: cells must be real floats (float32 as a rule). Received: dtype {mel.dtype}")
    shape = mel.shape
    if mel.ndim == 3 and shape[0] == 1:
        mel = mel[0]
    if mel.ndim != 2 or mel.shape[0] != n_bins:
        raise DataError(f"{path}: shape must be [1, {n_bins}, n_frames]. Received: {list(shape)}")
    if mel.shape[1] == 0:
        raise DataError(f"{path}: must hold at least one frame. Received: shape {list(shape)}")
    return mel


def read_mel(path: Path, n_bins: int) -> np.ndarray:
    """Returns the spectrogram in memory, float32 [n_bins, n_frames], every cell finite and at least 0.

    Raises:
        DataError: as `open_mel`, or a cell is NaN, infinite or negative.
    """
    mel = read_cells(path, n_bins)
    check_power(mel, str(path))
    return mel


def read_cells(path: Path, n_bins: int) -> np.ndarray:
    """Returns the file's cells in memory, float32 [n_bins, n_frames], of any value; raises as `open_mel`."""
    shape = open_mel(path, n_bins).shape
    # Read, not copied from the map: a file that shrinks meanwhile would end the process there without a word.
    cells = _load(path, mmap_mode=None)
    if cells.shape[-2:] != shape:
        raise DataError(f"{path}: changed while it was read: shape {list(shape)}, now {list(cells.shape)}")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which no check lets pass
        return np.array(cells.reshape(shape), dtype=np.float32, order="C")


def read_any_mel(path: Path, n_bins: Sequence[int]) -> np.ndarray:
    """Returns as `read_mel` a spectrogram that may have one of several numbers of bins."""
    mapped = _load(path, mmap_mode="r")
    height = mapped.shape[-2] if mapped.ndim > 1 else 0
    if height not in n_bins:
        wanted = " or ".join(map(str, n_bins))
        raise DataError(f"{path}: shape must be [1, {wanted}, n_frames]. Received: {list(mapped.shape)}")
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


def upper_halves(mel: np.ndarray) -> np.ndarray:
    """Returns the upper 16 bits of float32 cells as uint16, same shape; the bfloat16 that lies below each."""
    halves = np.ascontiguousarray(mel, dtype="<f4").view("<u2")
    return halves[..., 1::2]


def _load(path: Path, *, mmap_mode: Literal["r"] | None) -> np.ndarray:
    if path.exists() and not path.is_file():  # a pipe would keep us waiting
        raise DataError(f"{path}: must be a file")
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ValueError("it does not begin as one")
        mel: np.ndarray = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (ValueError, EOFError, OverflowError, MemoryError, SyntaxError, TypeError, TokenError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: must be a whole .npy file of plain numbers (never unpickled): {why}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return mel
