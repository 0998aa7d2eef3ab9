"""Made-up input: spectrogram files in the AI Rush layout, and tracks of different lengths in memory."""

import json
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import numpy as np

from tests.benchmarks.clock import Bench, Clock, Part
from tfmusic.core.windows import segment_starts

N_BINS = 128
_STATIONS = ("외로울때", "파티할때", "집중할때", "휴식할때")
_BLOCK_FRAMES = 1 << 15
_SPREAD_DB = 8.0  # with the slope over the bins some 75 dB of range, as music has: few codes are at the ends of a scale


def write(folder: str, n_tracks: int, frames: int, seed: int = 0) -> Bench:
    """Writes tracks of half to one and a half times so many frames, noise that falls towards high bins; returns bytes.

    Every track is another stretch of one block of noise: the converter sees values like those of music and never the
    same file twice.
    """
    rng = np.random.default_rng(seed)
    level_db = rng.normal(0.0, _SPREAD_DB, (N_BINS, _BLOCK_FRAMES)) - 0.3 * np.arange(N_BINS)[:, None]
    block = (10.0 ** (level_db / 10.0)).astype(np.float32)
    mels = Path(folder) / "train" / "train_data" / "mel_spectrogram"
    mels.mkdir(parents=True)
    n_bytes = 0
    for track in range(n_tracks):
        length, first = rng.integers(frames // 2, frames + frames // 2), rng.integers(_BLOCK_FRAMES)
        places = (np.arange(length) + first) % _BLOCK_FRAMES
        np.save(mels / f"{track}.npy", np.ascontiguousarray(block[:, places])[None])  # in C order, as the real ones
        n_bytes += block.itemsize * N_BINS * len(places)
    columns = {
        "track_index": {str(row): row for row in range(n_tracks)},
        "station_name": {str(row): _STATIONS[row % len(_STATIONS)] for row in range(n_tracks)},
    }
    (Path(folder) / "train" / "train_label").write_text(json.dumps(columns, ensure_ascii=False), encoding="utf-8")
    return Bench({}, {"bytes": n_bytes, "tracks": n_tracks})


N_BINS, N_TRACKS = 128, 24
SHORTEST, LONGEST = 600, 9000  # frames: 20 s to 5 minutes


def tracks(seed: int = 0) -> list[np.ndarray]:
    """Returns linear power [n_bins, n_frames], no two of one length."""
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(np.linspace(SHORTEST, LONGEST, N_TRACKS).astype(int))
    return [np.exp(rng.normal(0.0, 3.0, (N_BINS, length))).astype(np.float32) for length in lengths]


def answering(answer: Callable[[np.ndarray], object], frames: int, hop_frames: int, *, warm_tracks: int = 3) -> Part:
    """Returns a part that counts the windows of the tracks that are answered, one track after the other.

    Some answers before the first measurement compile and prepare the network for their sizes of batches.
    """
    endless: Iterator[np.ndarray] = cycle(tracks())
    for _ in range(warm_tracks):
        answer(next(endless))

    def run(clock: Clock, seconds: float) -> float:
        n_windows = 0
        with clock:
            while clock.elapsed_s < seconds:
                mel = next(endless)
                answer(mel)
                n_windows += len(segment_starts(mel.shape[1], frames=frames, hop_frames=hop_frames))
        return float(n_windows)

    return run
