"""The bridge that a config asks for, from the spectrogram of the records."""

from tfmusic.contract import Contract
from tfmusic.errors import ConfigError
from tfmusic.features.bridge import bridge_matrix, frames_for_each
from tfmusic.models.bridged import Bridge
from tfmusic.models.musicnn import FEATURE, SCALE_FACTOR
from tfmusic.models.pcen import Pcen, smoothing


def find_bridge(name: str, contract: Contract) -> Bridge | Pcen | None:
    """Returns the bridge to musicnn's spectrogram or to PCEN, or None where none is asked for.

    Raises:
        ConfigError: the input is no spectrogram, or one that cannot be mapped.
    """
    if name == "none":
        return None
    source = contract.feature
    if source["name"] != "mel":
        raise ConfigError(f"input.bridge={name} is for mel-spectrograms. Received: {source['name']}")
    scale = contract.scale
    stored = (str(scale["name"]), float(scale["low"]), float(scale["high"]))
    if name == "pcen":
        return Pcen(smoothing(contract.frames, contract.frames_per_s), stored)
    steps = frames_for_each(source, FEATURE)
    sizes = [int(side[key]) for side in (source, FEATURE) for key in ("n_bins", "n_fft")]
    matrix = bridge_matrix(sizes[0], sizes[1], sizes[2], sizes[3], int(source["sample_rate_hz"]))
    return Bridge(matrix, steps, SCALE_FACTOR, stored)
