"""The sections of a config that say what is made of sound: `feature` and `offline_augment`.

`feature` is a mapping, or the name of a preset in its place: `feature: gtzan`.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tfmusic.core.contract import C1_HZ, CHROMA_CQT_OCTAVES, WITHOUT_FFT, FeatureName
from tfmusic.core.section import Count, CountOrZero, PositiveOrZero, Section, Seed

_MOST_OCTAVES = 40.0  # above every sound


# What a key that is left out takes, by the name of the feature.
DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "mel": {"sample_rate_hz": 16000, "n_fft": 1024, "hop_length": 512, "n_bins": 128},
    "log-mel": {"sample_rate_hz": 16000, "n_fft": 1024, "hop_length": 512, "n_bins": 128},
    "stft": {"sample_rate_hz": 16000, "n_fft": 1024, "hop_length": 512, "n_bins": 513},
    "cqt": {"sample_rate_hz": 22050, "hop_length": 512, "n_bins": 84},
    "chroma_stft": {"sample_rate_hz": 22050, "n_fft": 2048, "hop_length": 512, "n_bins": 12},
    "chroma_cqt": {"sample_rate_hz": 22050, "hop_length": 512, "n_bins": 12},
    "tempogram": {"sample_rate_hz": 22050, "n_fft": 2048, "hop_length": 512, "n_bins": 384},
    "raw": {"sample_rate_hz": 22050, "hop_length": 243, "n_bins": 243},
}

# Spectrograms of the original systems; `choi` cuts 1,366 frames, 29.12 s.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "airush": {"name": "mel", "sample_rate_hz": 16000, "n_fft": 1024, "hop_length": 512, "n_bins": 128},
    "gtzan": {"name": "mel", "sample_rate_hz": 16000, "n_fft": 1024, "hop_length": 512, "n_bins": 96},
    "choi": {"name": "mel", "sample_rate_hz": 12000, "n_fft": 512, "hop_length": 256, "n_bins": 96},
    "musicnn": {"name": "mel", "sample_rate_hz": 16000, "n_fft": 512, "hop_length": 256, "n_bins": 96},
    "fma-cqt": {"name": "cqt", "sample_rate_hz": 22050, "hop_length": 512, "n_bins": 84},
}


class FeatureSection(Section):
    """What a track is turned into, or what its `.npy` file holds; a key that is left out takes that of `DEFAULTS`.

    `cqt`, `chroma_cqt` and `raw` have no n_fft; `raw` is audio in frames of hop_length samples.
    """

    name: FeatureName = "mel"
    sample_rate_hz: Count = 16000
    n_fft: Count | None = 1024
    hop_length: Count = 512
    n_bins: Count = 128

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in PRESETS:
                raise ValueError(f"feature must be a mapping, or one of {', '.join(PRESETS)}. Received: {value!r}")
            value = PRESETS[value]
        name = value.get("name", "mel") if isinstance(value, Mapping) else None
        if not isinstance(name, str) or name not in DEFAULTS:
            return value  # the types of the fields say what is wrong
        if name in WITHOUT_FFT and value.get("n_fft") is not None:
            raise ValueError(
                f"feature.n_fft must be left out for {name}; write the section anew, or feature=fma-cqt for cqt."
                f" Received: {value['n_fft']}"
            )
        return {"n_fft": None} | dict(DEFAULTS[name]) | dict(value)

    @model_validator(mode="after")
    def _can_be_computed(self) -> "FeatureSection":
        wanted = self._wanted_bins()
        if wanted not in (None, self.n_bins):
            raise ValueError(f"feature.n_bins must be {wanted} for {self.name}. Received: {self.n_bins}")
        if self.n_fft is None and self.name not in WITHOUT_FFT:
            raise ValueError(f"feature.n_fft must be given for {self.name}. Received: none")
        if self.n_fft is not None and self.n_fft % 2:
            raise ValueError(f"feature.n_fft must be even. Received: {self.n_fft}")
        octaves = {"cqt": self.n_bins / 12, "chroma_cqt": CHROMA_CQT_OCTAVES}.get(self.name, 0.0)
        highest_hz = C1_HZ * 2.0 ** min(octaves, _MOST_OCTAVES)
        if octaves and highest_hz > self.sample_rate_hz / 2:
            raise ValueError(
                f"feature.sample_rate_hz must be at least {2 * highest_hz:.0f} for {self.name} of {self.n_bins} bins."
                f" Received: {self.sample_rate_hz}"
            )
        return self

    def _wanted_bins(self) -> int | None:
        """Returns the only number of bins that the feature can have, or None where it is free."""
        if self.name == "stft" and self.n_fft is not None:
            return self.n_fft // 2 + 1
        return {"chroma_stft": 12, "chroma_cqt": 12, "raw": self.hop_length}.get(self.name)

    @model_serializer(mode="wrap")
    def _without_missing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


class OfflineAugmentSection(Section):
    """Copies of training tracks whose audio is changed before the feature is computed; none for 0 copies.

    Each copy is stretched by one of the tempo factors of `stretch`, moved by up to `pitch_semitones` up or down, rolled
    by up to `shift_samples`, and gets white noise of standard deviation `noise` (full scale is 1), in this order.
    """

    copies: Annotated[int, Field(ge=0, le=100)] = 0
    noise: PositiveOrZero = 0.0025
    shift_samples: CountOrZero = 8000
    stretch: Annotated[list[Annotated[float, Field(ge=0.5, le=2.0)]], Field(min_length=1)] = [0.8, 0.9, 1.0, 1.1]
    pitch_semitones: Annotated[float, Field(ge=0.0, le=12.0)] = 0.0
    seed: Seed = 0
