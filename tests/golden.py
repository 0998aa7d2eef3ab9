"""Golden records of format 1: `python -m tests.golden` writes them again, which only a new format may need."""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from tfmusic.config.sections import Config
from tfmusic.core.track import Dataset, Track
from tfmusic.records.build.build import write_records
from tfmusic.records.build.places import InFolder
from tfmusic.records.build.plan import Build

GOLDEN = Path(__file__).parents[1] / "records" / "golden" / "format-1"
N_BINS, N_FRAMES = 4, (1, 5, 6, 7, 12, 13, 30, 2)

CONFIG = Config.model_validate(
    {
        "task": "golden",
        "data": {"loader": "folder", "folds": 2},
        "feature": {"n_bins": N_BINS},
        "record": {"segment_frames": 6, "hop_frames": 4, "num_shards": 2, "shard_mib": 1},
        "input": {"frames": 6, "hop_frames": 3},
    }
)


def mel_of(n):
    """Returns the spectrogram of golden track `n`: exact powers of two, the same on every machine."""
    exponent = (np.arange(N_BINS)[:, None] * 3 + np.arange(N_FRAMES[n])[None, :] * (n + 1)) % 40 - 25
    return np.ldexp(np.float32(1), exponent).astype(np.float32)[None]


def build(out, mels):
    """Builds the golden records into `out` from spectrograms that it writes to `mels`."""
    for n in range(len(N_FRAMES)):
        np.save(mels / f"{n}.npy", mel_of(n))
    tracks = tuple(
        Track(
            str(n),
            mels / f"{n}.npy",
            labels=(("가", "b")[n % 2], "R&B/c") if n % 3 else ("b",),
            artists=(f"artist {n // 2}",),
            album='one, "two"' if n < 2 else None,
        )
        for n in range(len(N_FRAMES))
    )
    dataset = Dataset("golden", "multi", ("R&B/c", "b", "가"), tracks)
    write_records(Build(dataset, CONFIG), InFolder(out))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder) / "format-1", Path(folder))
        shutil.rmtree(GOLDEN, ignore_errors=True)
        shutil.copytree(Path(folder) / "format-1", GOLDEN)
