"""The constant-Q transform, and chroma, the energy of the 12 pitch classes.

The bins of a CQT are at equal steps of pitch, each with a window of the same number of periods.

A frame is the inner product of the sound with windowed tones, computed in the frequency domain with sparse kernels
(Brown & Puckette 1992, An efficient algorithm for the calculation of a constant Q transform). Low pitches are computed
at an eighth of the sample rate, where their long windows have fewer samples (as in the octaves of Schoerkhuber &
Klapuri 2010, Constant-Q transform toolbox for music processing). Windows, lengths and norm are those of `librosa.cqt`
0.11.

Chroma adds up all octaves, from C upwards, tuned to A4 = 440 Hz; every frame is divided by its maximum, so values are 0
to 1. The filters of `chroma_stft` are those of Ellis 2007 (Chroma feature analysis and synthesis). Both kinds agree
with librosa 0.11 at tuning=0; librosa's default estimates the tuning.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tfmusic.core.feature import C1_HZ, CHROMA_CQT_OCTAVES
from tfmusic.features.spectrograms import CentredWindows, collect, divide_by_maximum, power_spectra

_DIVISOR = 8  # of the sample rate, for low pitches
_LOW_SHARE = 0.5  # of half the lower rate: the highest of the low pitches
_LOST_ENERGY = 1e-8  # share of a kernel's energy that may be dropped

_N_CHROMA = 12
_LOWEST_A_HZ = 27.5
_CENTRE_OCTAVES, _SPREAD_OCTAVES = 5.0, 2.0  # above the lowest A; of the weight over the octaves
_BINS_PER_SEMITONE = 3


def cqt(blocks: Iterator[np.ndarray], *, sample_rate_hz: int, hop_length: int, n_bins: int) -> np.ndarray:
    """Returns |CQT|^2 from C1 (32.7 Hz) upwards, 12 bins an octave, float32 [n_bins, 1 + n_samples // hop_length].

    Tuned to A4 = 440 Hz.
    """
    return power_at_pitches(blocks, sample_rate_hz, hop_length, n_bins=n_bins, bins_per_octave=12)


def power_at_pitches(
    blocks: Iterator[np.ndarray], sample_rate_hz: int, hop_length: int, *, n_bins: int, bins_per_octave: int
) -> np.ndarray:
    """Returns |CQT|^2 with any number of bins an octave, float32 [n_bins, 1 + n_samples // hop_length]."""
    bands = _bands(sample_rate_hz, hop_length, n_bins, bins_per_octave)
    transforms = [_BandTransform(band) for band in bands]
    n_samples = 0
    for block in blocks:
        n_samples += len(block)
        for transform in transforms:
            transform.push(block)
    n_frames = 1 + n_samples // hop_length
    return np.concatenate([transform.finish()[:, :n_frames] for transform in transforms])


@dataclass(frozen=True)
class _Band:
    """Neighbouring pitches with kernels at one rate.

    Attributes:
        divisor: of the sample rate.
        n_fft: length of a window at that rate.
        hop_length: distance of the windows at that rate.
        kernels: sparse complex64 [n_bins, n_fft // 2 + 1], conjugated.
    """

    divisor: int
    n_fft: int
    hop_length: int
    kernels: Any


class _BandTransform:
    """Computes one band of a stream: resamples, slices windows, multiplies with the kernels."""

    def __init__(self, band: _Band) -> None:
        import soxr

        self._band = band
        self._resampler = soxr.ResampleStream(band.divisor, 1, 1, dtype="float32", quality="HQ")
        self._windows = CentredWindows(band.n_fft, band.hop_length)
        self._parts: list[np.ndarray] = []

    def push(self, block: np.ndarray) -> None:
        self._parts += map(self._project, self._windows.push(self._at_rate(block)))

    def finish(self) -> np.ndarray:
        rest = self._at_rate(np.zeros(0, np.float32), last=True)
        # One zero more makes sure of the last frame: the resampler may round the length down.
        self._parts += map(self._project, self._windows.push(np.pad(rest, (0, 1))))
        self._parts += map(self._project, self._windows.finish())
        return collect(self._parts, lambda part: part)

    def _at_rate(self, block: np.ndarray, *, last: bool = False) -> np.ndarray:
        return block if self._band.divisor == 1 else np.asarray(self._resampler.resample_chunk(block, last=last))

    def _project(self, windows: np.ndarray) -> np.ndarray:
        from scipy.fft import rfft

        bins = self._band.kernels @ rfft(windows, axis=1).T
        return np.asarray(bins.real**2 + bins.imag**2, np.float32)


@lru_cache(maxsize=4)
def _bands(rate_hz: int, hop_length: int, n_bins: int, bins_per_octave: int) -> tuple[_Band, ...]:
    """Returns the bands from low to high; a single one if the hop is not divisible by `_DIVISOR`."""
    pitches_hz = C1_HZ * 2.0 ** (np.arange(n_bins) / bins_per_octave)
    n_low = int(np.searchsorted(pitches_hz, _LOW_SHARE * rate_hz / 2 / _DIVISOR))
    if hop_length % _DIVISOR:
        n_low = 0
    groups = [(_DIVISOR, pitches_hz[:n_low]), (1, pitches_hz[n_low:])]
    return tuple(
        _band(pitches, divisor, rate_hz, hop_length, bins_per_octave) for divisor, pitches in groups if len(pitches)
    )


def _band(pitches_hz: np.ndarray, divisor: int, rate_hz: int, hop_length: int, bins_per_octave: int) -> _Band:
    from scipy.sparse import csr_array

    step = 2.0 ** (2.0 / bins_per_octave)
    periods = (step + 1.0) / (step - 1.0)  # neighbours meet at half their width
    lengths = periods * (rate_hz / divisor) / pitches_hz
    n_fft = 2 ** int(np.ceil(np.log2(lengths.max())))
    rows = []
    for pitch_hz, length in zip(pitches_hz, lengths, strict=True):
        half = int(length / 2)
        position = np.arange(-half, half + 1)
        # The Hann window of a fractional length: rounding it would change short windows noticeably.
        window = 0.5 + 0.5 * np.cos(2.0 * np.pi * position / length)
        tone = window * np.exp(2j * np.pi * position * pitch_hz * divisor / rate_hz)
        kernel = np.zeros(n_fft, complex)
        kernel[n_fft // 2 + position] = tone / window.sum()
        spectrum = np.fft.fft(kernel)[: n_fft // 2 + 1].conj() / n_fft
        rows.append(np.sqrt(length * divisor) * _drop_weakest(spectrum))
    return _Band(divisor, n_fft, hop_length // divisor, csr_array(np.array(rows, np.complex64)))


def _drop_weakest(spectrum: np.ndarray) -> np.ndarray:
    """Returns the spectrum with its weakest values set to 0, in place."""
    energy = np.abs(spectrum) ** 2
    order = np.argsort(energy)
    weakest = order[np.cumsum(energy[order]) < _LOST_ENERGY * energy.sum()]
    spectrum[weakest] = 0.0
    return spectrum


def chroma_stft(
    blocks: Iterator[np.ndarray], *, sample_rate_hz: int, n_fft: int, hop_length: int, n_bins: int
) -> np.ndarray:
    """Returns chroma of power spectra, float32 [12, 1 + n_samples // hop_length]."""
    filters = chroma_filters(sample_rate_hz, n_fft)
    spectra = power_spectra(blocks, n_fft, hop_length)
    # einsum adds in one order, whatever the number of threads.
    return collect(spectra, lambda power: divide_by_maximum(np.einsum("cf,tf->ct", filters, power)))


def chroma_cqt(blocks: Iterator[np.ndarray], *, sample_rate_hz: int, hop_length: int, n_bins: int) -> np.ndarray:
    """Returns chroma of CQT magnitudes over 7 octaves, 36 bins each, float32 [12, 1 + n_samples // hop_length]."""
    per_octave = _N_CHROMA * _BINS_PER_SEMITONE
    n_cqt_bins = CHROMA_CQT_OCTAVES * per_octave
    power = power_at_pitches(blocks, sample_rate_hz, hop_length, n_bins=n_cqt_bins, bins_per_octave=per_octave)
    octave = np.sqrt(power).reshape(CHROMA_CQT_OCTAVES, per_octave, -1).sum(0)
    # A semitone is the bin at its pitch and the bins on both sides of it.
    octave = np.roll(octave, _BINS_PER_SEMITONE // 2, axis=0)
    return divide_by_maximum(octave.reshape(_N_CHROMA, _BINS_PER_SEMITONE, -1).sum(1))


@lru_cache(maxsize=4)
def chroma_filters(sample_rate_hz: int, n_fft: int) -> np.ndarray:
    """Returns the weight of every FFT bin for every pitch class, float64 [12, n_fft // 2 + 1].

    A Gaussian around each pitch class, as wide as the FFT bin in semitones and at least one. The weights of a bin have
    the norm 1, times a Gaussian over the octaves.
    """
    hz = np.arange(1, n_fft) * (sample_rate_hz / n_fft)
    semitones = _N_CHROMA * np.log2(hz / _LOWEST_A_HZ)
    semitones = np.concatenate([[semitones[0] - 1.5 * _N_CHROMA], semitones])  # 0 Hz has no pitch: far below
    widths = np.append(np.maximum(np.diff(semitones), 1.0), 1.0)
    distance = semitones[None, :] - np.arange(_N_CHROMA)[:, None]
    nearest = (distance + _N_CHROMA / 2) % _N_CHROMA - _N_CHROMA / 2
    weights = np.exp(-0.5 * (2.0 * nearest / widths) ** 2)
    weights /= np.sqrt((weights**2).sum(0))
    weights *= np.exp(-0.5 * ((semitones / _N_CHROMA - _CENTRE_OCTAVES) / _SPREAD_OCTAVES) ** 2)
    return np.asarray(np.roll(weights, -3, axis=0)[:, : n_fft // 2 + 1])  # C first, not A
