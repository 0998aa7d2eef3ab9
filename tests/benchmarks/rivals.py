"""What tfmusic's streams are compared with that needs no TensorFlow: PyTorch's DataLoader, one memory-mapped array.

All do the work of our training stream: a random crop, and the time warp and the masks of SpecAugment's policy LD.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.clock import Bench, pulling

# SpecAugment's LD: warp, width and number of masks over bins, over frames.
WARP_FRAMES, _FREQ_BINS, _TIME_FRAMES, _N_MASKS = 80, 27, 100, 2
_DB_RANGE = 90.0


def warped_rows(rng: np.random.Generator, n_batch: int, frames: int) -> np.ndarray:
    """Returns which frame of a crop each frame of the warped crop shows, [batch, frames]."""
    reach = min(WARP_FRAMES, (frames - 1) // 2)
    point = rng.integers(reach, frames - reach, (n_batch, 1))
    moved = point + rng.integers(1 - reach, reach, (n_batch, 1))
    frame, last = np.arange(frames)[None, :], frames - 1
    before = frame * point / np.maximum(moved, 1)
    after = point + (frame - moved) * (last - point) / np.maximum(last - moved, 1)
    rows = np.rint(np.where(frame <= moved, before, after))
    return np.asarray(np.clip(rows, 0, last), np.int64)


def mask(rng: np.random.Generator, batch: np.ndarray, fill: Any) -> None:
    """Fills two masks of bins and two of frames of each example, in place; [batch, frames, n_bins]."""
    n_batch, frames, n_bins = batch.shape
    for one in range(n_batch):
        for _ in range(_N_MASKS):
            width = rng.integers(0, min(_FREQ_BINS, n_bins))
            start = rng.integers(0, n_bins - width)
            batch[one, :, start : start + width] = fill
            width = rng.integers(0, min(_TIME_FRAMES, frames))
            start = rng.integers(0, frames - width)
            batch[one, start : start + width] = fill


def data_loader(data: str, batch_size: int, frames: int, workers: int) -> Bench:
    """Returns PyTorch's DataLoader over memory-mapped files: a crop, its logarithm, warp and masks an example."""
    import torch
    from torch.utils.data import DataLoader, Dataset, RandomSampler

    paths = sorted(Path(data).rglob("*.npy"))

    class Crops(Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            rng = np.random.default_rng(int(torch.randint(1 << 62, ())))
            mel = np.load(paths[index], mmap_mode="r")[0]
            start = int(rng.integers(0, max(mel.shape[1] - frames, 0) + 1))
            crop = np.array(mel[:, start : start + frames]).T
            log_mel = 10.0 * np.log10(np.maximum(crop, 1e-10))
            warped = np.maximum(log_mel, log_mel.max() - _DB_RANGE)[warped_rows(rng, 1, len(log_mel))[0]]
            mask(rng, warped[None], warped.mean())
            return torch.from_numpy(warped), index % 4

    sampler = RandomSampler(Crops(), replacement=True, num_samples=1 << 40)
    loader = DataLoader(Crops(), batch_size, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    return Bench({"read": pulling(iter(loader), batch_size)})


def array(path: str, batch_size: int, frames: int) -> Bench:
    """Returns whole batches of one memory-mapped array [n, stored frames, n_bins], rows in a random order.

    Part `plain` copies segments, part `training` crops, warps and masks them.
    """
    stored = np.load(path, mmap_mode="r")
    rng = np.random.default_rng(0)
    return Bench(
        {
            "plain": pulling(_plain(stored, batch_size, rng), batch_size),
            "training": pulling(_training(stored, batch_size, frames, rng), batch_size),
        }
    )


def _chosen(n: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields the rows of batches for ever, each row once an epoch, ascending in a batch."""
    while True:
        order = rng.permutation(n)
        for first in range(0, n - batch_size + 1, batch_size):
            yield np.sort(order[first : first + batch_size])


def _plain(stored: np.ndarray, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    for rows in _chosen(len(stored), batch_size, rng):
        yield stored[rows]


def _training(stored: np.ndarray, batch_size: int, frames: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    for rows in _chosen(len(stored), batch_size, rng):
        start = rng.integers(0, stored.shape[1] - frames + 1, (batch_size, 1))
        batch = stored[rows[:, None], start + warped_rows(rng, batch_size, frames)]  # crop and warp in one gather
        mask(rng, batch, 128)
        yield batch


def write_array(records: str, out: str) -> Bench:
    """Writes the segments of some records as one array."""
    from tfmusic.records.manifest import Manifest
    from tfmusic.records.reader import iterate

    manifest = Manifest.read(Path(records))
    n = sum(split.segments for split in manifest.splits.values())
    shape = (n, manifest.segment_frames, manifest.contract.n_bins)
    cells = np.lib.format.open_memmap(out, "w+", np.uint8, shape)
    segments = (segment for split in manifest.splits for _, segment in iterate(manifest, split))
    for row, segment in enumerate(segments):
        cells[row] = segment
    cells.flush()
    return Bench({}, {"segments": n})
