"""Changed copies of a track's audio: tempo, pitch, place and noise; what each copy gets is drawn by its name.

Tempo and pitch by a phase vocoder (Flanagan & Golden 1966; Dolson 1986, The phase vocoder: a tutorial): windows of the
sound are laid at other distances, each bin's phase going on at its own speed. Nothing locks the phases of neighbouring
bins: as with `librosa.effects.time_stretch`, dense music comes out softer by some dB. A pitch is moved by stretching
the sound and playing it as much faster.
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
    """What one copy of one track gets.

    Attributes:
        tempo: factor; 1.1 is faster, and shorter.
        semitones: by which the pitch is higher.
        shift_samples: by which the sound is rolled to the right, its end coming in at the beginning.
        noise: standard deviation of the white noise that is added; full scale is 1.
        seed: of that noise.
    """

    tempo: float
    semitones: float
    shift_samples: int
    noise: float
    seed: int


def draw(section: OfflineAugment, track_id: str, copy: int) -> Change:
    """Returns the change of a track's copy, which are counted from 1: the same whenever and wherever it is drawn."""
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
    """Returns how many samples a changed copy has: n / tempo, rounded, and one at least."""
    return max(round(n_samples / change.tempo), 1)


def apply_change(samples: np.ndarray, change: Change) -> np.ndarray:
    """Returns the changed copy of samples [n], float32 [changed_length(n)]."""
    pitch = 2.0 ** (change.semitones / 12.0)
    made = stretch(samples, change.tempo / pitch)
    if pitch != 1.0:
        import soxr

        made = soxr.resample(made, pitch, 1.0, quality="HQ")
    wanted = changed_length(len(samples), change)
    made = np.pad(made[:wanted], (0, max(wanted - len(made), 0)))
    made = np.roll(made, change.shift_samples)
    rng = np.random.default_rng(change.seed)
    return np.asarray(made + np.float32(change.noise) * rng.standard_normal(wanted, np.float32), np.float32)


def stretch(samples: np.ndarray, tempo: float) -> np.ndarray:
    """Returns samples [n] at another tempo and the same pitch, float32 [round(n / tempo)]."""
    if tempo == 1.0:
        return samples.astype(np.float32)
    places = np.arange(0, 1 + len(samples) // _HOP, tempo)  # of every new window, in old hops
    wanted = round(len(samples) / tempo)
    # Half a window before the sound, so that windows are centred; after it, room for the last and the one behind it.
    padded = np.pad(samples, (_N_FFT // 2, _N_FFT + 2 * _HOP))
    old = np.lib.stride_tricks.sliding_window_view(padded, _N_FFT)[::_HOP]
    n_made = max((len(places) - 1) * _HOP + _N_FFT, _N_FFT // 2 + wanted)
    made, weight = np.zeros(n_made, np.float32), np.zeros(n_made, np.float32)
    window = hann(_N_FFT)
    phase: np.ndarray | None = None
    for first in range(0, len(places), _FRAMES_AT_ONCE):
        frames, phase = _vocode(old, places[first : first + _FRAMES_AT_ONCE], window, phase)
        for index, frame in enumerate(frames, first):
            made[index * _HOP : index * _HOP + _N_FFT] += frame
            weight[index * _HOP : index * _HOP + _N_FFT] += window**2
    found = made / np.maximum(weight, 1e-3)
    return np.asarray(found[_N_FFT // 2 : _N_FFT // 2 + wanted])


def _vocode(
    old: np.ndarray, places: np.ndarray, window: np.ndarray, phase: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns new windows [some, n_fft] at places between the old ones, and the phases that the next begins with."""
    from scipy.fft import irfft, rfft

    before = places.astype(np.int64)
    share = (places - before)[:, None]
    here, there = (rfft(old[rows] * window, axis=1) for rows in (before, before + 1))
    expected = 2.0 * np.pi * _HOP / _N_FFT * np.arange(_N_FFT // 2 + 1)  # a bin's advance over one hop
    surplus = np.angle(there) - np.angle(here) - expected
    advance = expected + surplus - 2.0 * np.pi * np.round(surplus / (2.0 * np.pi))
    phases = np.cumsum(np.concatenate([np.angle(here[:1]) if phase is None else phase[None], advance]), axis=0)
    magnitude = (1.0 - share) * np.abs(here) + share * np.abs(there)
    return irfft(magnitude * np.exp(1j * phases[:-1]), _N_FFT, axis=1) * window, phases[-1]
