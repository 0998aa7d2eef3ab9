"""Training steps and inference of a network in PyTorch."""

from typing import Any

import numpy as np
import torch
from torch import nn

from tfmusic.benchmarks.clock import Bench, CannotMeasureError, repeating
from tfmusic.benchmarks.torch_networks import build, extra_parameters


def network(
    name: str,
    *,
    frames: int,
    n_bins: int,
    n_outputs: int,
    width: int,
    batch_size: int,
    precision: str,
    layout: str,
    compiled: bool = False,
) -> Bench:
    """Returns parts `train` and `infer`, segments; `layout` is contiguous or channels_last.

    Raises:
        CannotMeasureError: `compiled` without a GPU.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if compiled and device == "cpu":
        raise CannotMeasureError("torch.compile is compared on GPUs alone")
    torch.set_float32_matmul_precision("high")  # TensorFloat-32 on GPUs, as XLA has it
    formats: dict[str, Any] = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    model: Any = build(name, frames, n_bins, n_outputs, width).to(device, memory_format=formats[layout])
    facts = {"parameters": sum(p.numel() for p in model.parameters()) - extra_parameters(model), "device": device}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    if compiled:
        model = torch.compile(model)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (batch_size, frames, n_bins), np.uint8)
    labels = rng.integers(0, n_outputs, batch_size)
    autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "mixed_bfloat16")
    loss_fn = nn.CrossEntropyLoss()

    def to_device(values: np.ndarray) -> Any:
        return torch.from_numpy(values).to(device, non_blocking=True)

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = loss_fn(model(to_device(codes)), to_device(labels))
        loss.backward()
        optimizer.step()
        loss.item()

    def infer() -> None:
        model.eval()
        with torch.inference_mode(), autocast:
            model(to_device(codes)).float().cpu()

    return Bench({"train": repeating(train, batch_size), "infer": repeating(infer, batch_size)}, facts)
