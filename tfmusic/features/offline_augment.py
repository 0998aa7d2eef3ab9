"""Augmented copies of a track's audio, made offline: tempo, pitch, shift in time, noise; drawn from the track's id.

A phase vocoder changes the tempo (Flanagan & Golden 1966; Dolson 1986, The phase vocoder: a tutorial): it moves the
windows of the sound to other distances and advances the phase of every bin at the bin's own rate. It does not lock the
phases of neighbouring bins, so dense music becomes some dB softer, as with `librosa.effects.time_stretch`. The pitch is
changed by stretching the sound and resampling it to the old length.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from tfmusic.core.section import CountOrZero, PositiveOrZero, Section, Seed
from tfmusic.features.spectrograms import hann

_N_FFT, _HOP = 2048, 512
_FRAMES_AT_ONCE = 512


class OfflineAugment(Section):
    """Copies of training tracks whose audio is changed before the feature is computed.

    The order of the changes is tempo, pitch, shift, noise.
    """

    copies: Annotated[int, Field(ge=0, le=100)] = 0
    """Copies of every training track; 0 for none."""
    noise: PositiveOrZero = 0.0025
    """Standard deviation of the white noise; full scale is 1."""
    shift_samples: CountOrZero = 8000
    """Roll the audio by 0 to this many samples."""
    stretch: list[Annotated[float, Field(ge=0.5, le=2.0)]] = Field(default=[0.8, 0.9, 1.0, 1.1], min_length=1)
    """Tempo factors, of which each copy gets one."""
    pitch_semitones: Annotated[float, Field(ge=0.0, le=12.0)] = 0.0
    """Move the pitch by up to this much, up or down."""
    seed: Seed = 0
    """Seed of the changes."""


@dataclass(frozen=True)
class Change:
    """The parameters of one augmented copy.

    Attributes:
        tempo: factor; 1.1 is faster, and shorter.
        semitones: raises the pitch.
        shift_samples: rolls the sound to the right; its end moves to the beginning.
        noise: standard deviation of the added white noise; full scale is 1.
        seed: of the noise.
    """

    tempo: float
    semitones: float
    shift_samples: int
    noise: float
    seed: int


def draw(section: OfflineAugment, track_id: str, copy: int) -> Change:
    """Returns the change of a track's copy (numbered from 1): the same for the same seed, track and number."""
    digest = hashlib.sha256(f"{section.seed}/{track_id}/{copy}".encode()).digest()
    rng = np.random.default_rng(list(digest))
    return Change(
        tempo=float(section.stretch[rng.integers(len(section.stretch))]),
        semitones=float(rng.uniform(-section.pitch_semitones, section.pitch_semitones)),
        shift_samples=int(rng.integers(section.shift_samples + 1)),
        noise=section.noise,
        seed=int(rng.integers(1 << 32)),
    )


def changed_length(n_samples: int, change: Change) -> int:
    """Returns the number of samples of a changed copy: round(n / tempo), at least 1."""
    return max(round(n_samples / change.tempo), 1)


def apply_change(samples: np.ndarray, change: Change) -> np.ndarray:
    """Returns the changed copy of samples [n], float32 [changed_length(n)]."""
    pitch = 2.0 ** (change.semitones / 12.0)
    changed = stretch(samples, change.tempo / pitch)
    if pitch != 1.0:
        import soxr

        changed = soxr.resample(changed, pitch, 1.0, quality="HQ")
    length = changed_length(len(samples), change)
    changed = np.pad(changed[:length], (0, max(length - len(changed), 0)))
    changed = np.roll(changed, change.shift_samples)
    rng = np.random.default_rng(change.seed)
    return np.asarray(changed + np.float32(change.noise) * rng.standard_normal(length, np.float32), np.float32)


def stretch(samples: np.ndarray, tempo: float) -> np.ndarray:
    """Returns samples [n] at another tempo and the same pitch, float32 [round(n / tempo)]."""
    if tempo == 1.0:
        return samples.astype(np.float32)
    positions = np.arange(0, 1 + len(samples) // _HOP, tempo)  # of the new windows, in hops of the old sound
    length = round(len(samples) / tempo)
    # Half a window before the sound centres the windows; after it there is room for the last window and one more.
    padded = np.pad(samples, (_N_FFT // 2, _N_FFT + 2 * _HOP))
    old = np.lib.stride_tricks.sliding_window_view(padded, _N_FFT)[::_HOP]
    n_samples = max((len(positions) - 1) * _HOP + _N_FFT, _N_FFT // 2 + length)
    stretched, weight = np.zeros(n_samples, np.float32), np.zeros(n_samples, np.float32)
    window = hann(_N_FFT)
    phase: np.ndarray | None = None
    for first in range(0, len(positions), _FRAMES_AT_ONCE):
        frames, phase = _vocode(old, positions[first : first + _FRAMES_AT_ONCE], window, phase)
        for index, frame in enumerate(frames, first):
            stretched[index * _HOP : index * _HOP + _N_FFT] += frame
            weight[index * _HOP : index * _HOP + _N_FFT] += window**2
    stretched /= np.maximum(weight, 1e-3)
    return stretched[_N_FFT // 2 : _N_FFT // 2 + length]


def _vocode(
    old: np.ndarray, positions: np.ndarray, window: np.ndarray, phase: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns windows [n_windows, n_fft] at positions between the old ones, and the phases of the next window."""
    from scipy.fft import irfft, rfft

    before = positions.astype(np.int64)
    share = (positions - before)[:, None]
    spectrum, next_spectrum = (rfft(old[rows] * window, axis=1) for rows in (before, before + 1))
    expected = 2.0 * np.pi * _HOP / _N_FFT * np.arange(_N_FFT // 2 + 1)  # a bin's advance over one hop
    surplus = np.angle(next_spectrum) - np.angle(spectrum) - expected
    advance = expected + surplus - 2.0 * np.pi * np.round(surplus / (2.0 * np.pi))
    phases = np.cumsum(np.concatenate([np.angle(spectrum[:1]) if phase is None else phase[None], advance]), axis=0)
    magnitude = (1.0 - share) * np.abs(spectrum) + share * np.abs(next_spectrum)
    return irfft(magnitude * np.exp(1j * phases[:-1]), _N_FFT, axis=1) * window, phases[-1]
