"""Linear power to stored codes: a monotonic scale over a fixed range, quantised by one table look-up.

uint8: code = round(255 (scaled - low) / (high - low)). The upper 16 bits of a float32 (the bfloat16 below it)
index a table of 65,536 codes, built at the centres of the bfloat16 intervals, so that scaling and quantising is one
gather, and the exported graph does exactly the same. The interval is 1/128 of its value wide: an error of at most
.017 dB beside a code step of .35 dB.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, Self, get_args

import numpy as np

ScaleName = Literal["db", "log10_1p10", "log10_1p10000", "identity"]

MOST_ABOVE_MEDIAN = 1e4  # of the tracks' loudest values, power: 40 dB; beyond it lies another unit, or a damaged value
DB_RANGE = 90.0  # what lies further below the loudest value is noise of the encoder


def _db(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.asarray(10.0 * np.log10(power))


def _log10_1p(factor: float, power: np.ndarray) -> np.ndarray:
    return np.asarray(np.log10(1.0 + factor * power))


_CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "db": _db,
    "log10_1p10": partial(_log10_1p, 10.0),
    "log10_1p10000": partial(_log10_1p, 10000.0),
    "identity": np.asarray,
}

_BLOCK_CELLS = 1 << 15  # looked up at a time: their indices of 8 bytes stay in the second cache

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def too_loud(loudest: Sequence[float]) -> np.ndarray:
    """Returns which tracks are of another level than the others, bool [n], for the largest power of each."""
    values = np.asarray(loudest, np.float64)
    sounding = values[values > 0]
    return np.asarray(values > MOST_ABOVE_MEDIAN * np.median(sounding)) if sounding.size else values > np.inf


@dataclass(frozen=True)
class Scale:
    """A named monotonic curve and the range [low, high] that codes cover, in units of the curve."""

    name: ScaleName
    low: float
    high: float

    @classmethod
    def measure(cls, name: ScaleName, mels: Sequence[np.ndarray]) -> Self:
        """Returns the scale whose range covers a sample of spectrograms; labels play no part.

        `db`: up to the loudest value, rounded up to a whole dB, and 90 dB down from there.
        `identity`: everything, whatever the sample. The others: from 0 to the loudest value, rounded up to a tenth.
        """
        if name == "identity":
            return cls(name, -_FLOAT32_MAX, _FLOAT32_MAX)
        loudest = max((float(mel.max()) for mel in mels), default=1.0)
        high = float(_CURVES[name](np.array(max(loudest, 1e-10))))
        if name == "db":
            return cls(name, float(np.ceil(high)) - DB_RANGE, float(np.ceil(high)))
        return cls(name, 0.0, float(max(np.ceil(high * 10) / 10, 0.1)))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Returns the scale that `to_dict` gave; raises ValueError, TypeError or KeyError where it is none."""
        name, low, high = fields["name"], fields["low"], fields["high"]
        is_range = all(type(end) in (int, float) and np.isfinite(end) for end in (low, high)) and low < high
        if name not in get_args(ScaleName) or not is_range or len(fields) > 3:
            raise ValueError(f"scale must have a name, low and high, low below high. Received: {str(fields)[:120]}")
        return cls(name, float(low), float(high))

    def __str__(self) -> str:
        """Returns the scale as messages name it: `db [-56, 34]`."""
        return f"{self.name} [{self.low:g}, {self.high:g}]"

    def to_dict(self) -> dict[str, Any]:
        """Returns name, low and high for JSON."""
        return asdict(self)

    def apply(self, power: np.ndarray) -> np.ndarray:
        """Returns scaled values in [low, high], same shape, float64 for float64 input."""
        return np.asarray(np.clip(_CURVES[self.name](power), self.low, self.high))

    def table(self) -> np.ndarray:
        """Returns the uint8 code of every upper half of a float32, shape [65536]; 0 for negative and NaN."""
        halves = np.arange(1 << 16, dtype=np.uint32)
        with np.errstate(invalid="ignore"):  # the halves that are NaN
            power = ((halves << 16) | 0x8000).view(np.float32).astype(np.float64)
        power[0] = 0.0  # zero itself, not the middle of its interval
        usable = np.isfinite(power) & (power >= 0)
        scaled = self.apply(np.where(usable, power, 0.0))
        codes = np.round(255.0 * (scaled - self.low) / (self.high - self.low))
        return np.where(usable, codes, 0).astype(np.uint8)


class Encoder:
    """Turns float32 power [n_bins, n_frames] into stored codes [n_frames, n_bins] of one dtype."""

    def __init__(self, scale: Scale, dtype: str) -> None:
        self.scale, self.dtype = scale, np.dtype(dtype)
        self._table = scale.table() if self.dtype == np.uint8 else None

    def encode(self, mel: np.ndarray) -> np.ndarray:
        """Returns the codes in time-major order, C-contiguous."""
        if self._table is not None:
            return _turned(_look_up(self._table, mel))
        return np.ascontiguousarray(self.scale.apply(mel).T, dtype=self.dtype)

    def count_clipped(self, codes: np.ndarray) -> int:
        """Returns how many codes are at the ends of the scale."""
        low, high = (0, 255) if self.dtype == np.uint8 else (self.scale.low, self.scale.high)
        with np.errstate(over="ignore"):  # the ends of `identity` are beyond float16
            ends = np.array([low, high]).astype(self.dtype)
        return int(np.count_nonzero(codes == ends[0]) + np.count_nonzero(codes == ends[1]))


def _look_up(table: np.ndarray, mel: np.ndarray) -> np.ndarray:
    """Returns the code of the upper half of every float32, uint8, same shape.

    A block at a time: numpy wants indices of 8 bytes, and those of a whole track would be twice its size.
    """
    bits = np.ascontiguousarray(mel, dtype="<f4").reshape(-1).view("<u4")
    codes = np.empty(bits.size, np.uint8)
    halves, index = np.empty(_BLOCK_CELLS, np.uint32), np.empty(_BLOCK_CELLS, np.intp)
    for first in range(0, bits.size, _BLOCK_CELLS):
        block = bits[first : first + _BLOCK_CELLS]
        index[: block.size] = np.right_shift(block, 16, out=halves[: block.size])
        # All indices are valid: no checks.
        table.take(index[: block.size], out=codes[first : first + _BLOCK_CELLS], mode="clip")
    return codes.reshape(mel.shape)


def _turned(codes: np.ndarray) -> np.ndarray:
    """Returns bytes [n_bins, n_frames] as [n_frames, n_bins], C-contiguous.

    Two bins at a time, as one number of 16 bits: half as many strided steps.
    """
    if len(codes) % 2:
        return np.ascontiguousarray(codes.T)
    pairs = codes[1::2].astype("<u2")
    pairs <<= 8
    pairs |= codes[0::2]
    return np.ascontiguousarray(pairs.T).view(np.uint8)
