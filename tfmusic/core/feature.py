"""The feature: what a track is turned into before it is stored, with its parameters, defaults and presets.

The section `feature` of a config is one, and so is the feature of a contract. In a config it is a mapping, or the name
of a preset: `feature: gtzan`.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from tfmusic.core.section import Count, Positive, Section, first_error

EMBEDDING: Final = "embedding"  # the feature that a network has made, one step a segment
POWER = (
    "mel",
    "stft",
    "cqt",
    "cqt_normalised",
)  # features of linear power, of which dB make sense; others are stored as is
WITHOUT_FFT = ("cqt", "cqt_normalised", "chroma_cqt", "raw", EMBEDDING)
C1_HZ = 440.0 * 2.0 ** (-69 / 12 + 2)  # 32.70 Hz, the lowest bin of the features cqt and chroma_cqt
CHROMA_CQT_OCTAVES = 7

_MOST_OCTAVES = 40.0  # above every sound; keeps 2**octaves finite

# Defaults of the keys that are left out, by the name of the feature.
DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "mel": {"sample_rate_hz": 16000, "n_fft": 1024, "hop_length": 512, "n_bins": 128},
    "log-mel": {"sample_rate_hz": 16000, "n_fft": 1024, "hop_length": 512, "n_bins": 128},
    "stft": {"sample_rate_hz": 16000, "n_fft": 1024, "hop_length": 512, "n_bins": 513},
    "cqt": {"sample_rate_hz": 22050, "hop_length": 512, "n_bins": 84},
    "cqt_normalised": {"sample_rate_hz": 22050, "hop_length": 512, "n_bins": 84},  # a frame's maximum is 1
    "chroma_stft": {"sample_rate_hz": 22050, "n_fft": 2048, "hop_length": 512, "n_bins": 12},
    "chroma_cqt": {"sample_rate_hz": 22050, "hop_length": 512, "n_bins": 12},
    "tempogram": {"sample_rate_hz": 22050, "n_fft": 2048, "hop_length": 512, "n_bins": 384},
    "raw": {"sample_rate_hz": 22050, "hop_length": 243, "n_bins": 243},
}

# Spectrograms of the original systems; `choi` cuts 1,366 frames, 29.12 s; `jamendo`: those that MTG-Jamendo offers.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "airush": {"name": "mel", "sample_rate_hz": 16000, "n_fft": 1024, "hop_length": 512, "n_bins": 128},
    "gtzan": {"name": "mel", "sample_rate_hz": 16000, "n_fft": 1024, "hop_length": 512, "n_bins": 96},
    "choi": {"name": "mel", "sample_rate_hz": 12000, "n_fft": 512, "hop_length": 256, "n_bins": 96},
    "musicnn": {"name": "mel", "sample_rate_hz": 16000, "n_fft": 512, "hop_length": 256, "n_bins": 96},
    "jamendo": {
        "name": "mel",
        "sample_rate_hz": 12000,
        "n_fft": 512,
        "hop_length": 256,
        "n_bins": 96,
        "log10_factor": 20.0,
    },
    "fma-cqt": {"name": "cqt", "sample_rate_hz": 22050, "hop_length": 512, "n_bins": 84},
}


def _frame_of(value: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys of an embedding with `frame_s`, the seconds of a frame, as sample rate and hop."""
    seconds = value.pop("frame_s", None)
    if seconds is None:
        return value
    if type(seconds) not in (int, float) or not 1e-4 <= seconds <= 1e5:
        raise ValueError(f"feature.frame_s must be the seconds of a frame, 0.0001 to 100000. Received: {seconds!r}")
    frame = Fraction(str(seconds)).limit_denominator(100_000)
    return value | {"sample_rate_hz": frame.denominator, "hop_length": frame.numerator}


class Feature(Section):
    """The kind of spectrogram with its parameters, or the name of a preset.

    Keys that are left out have the defaults of the kind, `DEFAULTS`. A feature has `n_bins` values in every frame and a
    frame every `hop_length` samples; `raw` is audio in frames of hop_length samples. Records may also hold embeddings:
    `source` is then the network that made them, so that those of another network are refused.
    """

    name: Literal[
        "mel", "log-mel", "stft", "cqt", "cqt_normalised", "chroma_stft", "chroma_cqt", "tempogram", "raw", "embedding"
    ] = "mel"  # fmt: skip
    """What is computed of audio, or what the .npy files hold; embedding: what a network of others has made of it."""
    source: str | None = None
    """Embeddings alone: the network that made them."""
    sample_rate_hz: Count = 16000
    """Sample rate of the audio, Hz; other audio is resampled."""
    n_fft: Count | None = 1024
    """Length of the FFT window, samples; cqt, chroma_cqt and raw have none."""
    hop_length: Count = 512
    """Distance between the starts of two frames, samples."""
    n_bins: Count = 128
    """Values in a frame."""
    log10_factor: Positive | None = None
    """Features of power alone: what .npy files hold is log10(power) times this, 10 for dB, 20 for MTG-Jamendo's."""
    frame_s: Positive | None = Field(default=None, exclude=True)
    """Embeddings alone: seconds of a frame, in place of sample_rate_hz and hop_length."""

    @classmethod
    def from_dict(cls, fields: Any) -> Self:
        """Returns the feature of a JSON file, which must spell out every key.

        Raises:
            ValueError: it is no feature.
        """
        try:
            feature = cls.model_validate(fields)
        except ValidationError as error:
            raise ValueError(f"feature: {first_error(error)}") from error
        if feature.model_dump() != fields:
            raise ValueError(f"feature must have the keys {', '.join(feature.model_dump())}. Received: {fields}")
        return feature

    @property
    def frames_per_s(self) -> float:
        """Frames in a second of music."""
        return self.sample_rate_hz / self.hop_length

    def parameters(self) -> dict[str, int]:
        """Returns all numbers of a spectrogram by their names: what the function that computes it takes."""
        return {key: value for key, value in self.model_dump().items() if key not in ("name", "source", "log10_factor")}

    def __str__(self) -> str:
        """Returns the feature as messages name it: `mel (sample_rate_hz=16000, ...)`."""
        parameters = ", ".join(f"{key}={value}" for key, value in self.parameters().items())
        source, factor = f" of {self.source}" if self.source else "", self.log10_factor
        return f"{self.name}{source} ({parameters}{f'; files of {factor:g} log10(power)' if factor else ''})"

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in PRESETS:
                raise ValueError(f"feature must be a mapping, or one of {', '.join(PRESETS)}. Received: {value!r}")
            value = PRESETS[value]
        name = value.get("name", "mel") if isinstance(value, Mapping) else None
        if name != EMBEDDING and isinstance(value, Mapping) and value.get("frame_s") is not None:
            raise ValueError(f"feature.frame_s must be left out for {name}. Received: {value['frame_s']}")
        if name == EMBEDDING:
            return {"n_fft": None} | _frame_of(dict(value))
        if not isinstance(name, str) or name not in DEFAULTS:
            return value  # the types of the fields say what is wrong
        if name in WITHOUT_FFT and value.get("n_fft") is not None:
            raise ValueError(
                f"feature.n_fft must be left out for {name}; write the section anew, or feature=fma-cqt for cqt."
                f" Received: {value['n_fft']}"
            )
        return {"n_fft": None} | dict(DEFAULTS[name]) | dict(value)

    @model_validator(mode="after")
    def _can_be_computed(self) -> Self:
        wanted = self._wanted_bins()
        if wanted not in (None, self.n_bins):
            raise ValueError(f"feature.n_bins must be {wanted} for {self.name}. Received: {self.n_bins}")
        if (self.n_fft is None) != (self.name in WITHOUT_FFT):
            rule = "left out" if self.n_fft else "given"
            raise ValueError(f"feature.n_fft must be {rule} for {self.name}. Received: {self.n_fft or 'none'}")
        if (self.source is None) != (self.name != EMBEDDING):
            rule = "left out" if self.source else "given"
            raise ValueError(f"feature.source must be {rule} for {self.name}. Received: {self.source or 'none'}")
        if self.log10_factor is not None and self.name not in POWER:
            raise ValueError(f"feature.log10_factor must be left out for {self.name}. Received: {self.log10_factor:g}")
        if self.n_fft is not None and self.n_fft % 2:
            raise ValueError(f"feature.n_fft must be even. Received: {self.n_fft}")
        pitches = dict.fromkeys(("cqt", "cqt_normalised"), self.n_bins / 12) | {"chroma_cqt": CHROMA_CQT_OCTAVES}
        octaves = pitches.get(self.name, 0.0)
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
