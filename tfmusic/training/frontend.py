"""The frontend that a config asks for, from the spectrogram of the records."""

from tfmusic.core.contract import Contract
from tfmusic.errors import ConfigError
from tfmusic.features.filterbanks import filterbank_map, frames_for_each
from tfmusic.models.frontends import Frontend, MusicnnFrontend, Pcen, smoothing
from tfmusic.models.musicnn import FEATURE, SCALE_FACTOR


def find_frontend(name: str, contract: Contract) -> Frontend | None:
    """Returns the frontend to musicnn's spectrogram or to PCEN, or None where none is asked for.

    Raises:
        ConfigError: the input is no spectrogram, or one that cannot be mapped.
    """
    if name == "none":
        return None
    source = contract.feature
    if source.name != "mel":
        raise ConfigError(f"input.frontend={name} is for mel-spectrograms. Received: {source.name}")
    scale = contract.scale
    if name == "pcen":
        return Pcen(smoothing(contract.frames, contract.frames_per_s), scale)
    steps = frames_for_each(source, FEATURE)
    return MusicnnFrontend(filterbank_map(source, FEATURE), steps, SCALE_FACTOR, scale)
