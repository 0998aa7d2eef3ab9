"""Whole tracks answered in PyTorch: the windows of a track as one batch, scores averaged."""

import numpy as np
import torch

from tfmusic.benchmarks.clock import Bench
from tfmusic.benchmarks.made_up_tracks import N_BINS, answering
from tfmusic.benchmarks.torch_networks import build
from tfmusic.core.windows import segment_starts

_N_OUTPUTS, _LOW_DB, _HIGH_DB = 10, -45.0, 45.0


def theirs(network: str, width: int, frames: int, hop_frames: int, layout: str) -> Bench:
    """Returns part `track`, in windows."""
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    model = build(network, frames, N_BINS, _N_OUTPUTS, width).to(memory_format=formats[layout]).eval()

    def answer(mel: np.ndarray) -> np.ndarray:
        starts = segment_starts(mel.shape[1], frames=frames, hop_frames=hop_frames)
        with torch.inference_mode():
            power = torch.from_numpy(mel).T
            codes = (10.0 * torch.log10(power)).clamp(_LOW_DB, _HIGH_DB).sub(_LOW_DB).mul(255.0 / (_HIGH_DB - _LOW_DB))
            windows = torch.stack([codes[start : start + frames] for start in starts.tolist()])
            return np.asarray(torch.softmax(model(windows), dim=1).mean(0))

    return Bench(
        {"track": answering(answer, frames, hop_frames)}, {"parameters": sum(p.numel() for p in model.parameters())}
    )
