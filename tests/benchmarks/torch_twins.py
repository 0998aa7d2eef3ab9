"""The same networks in PyTorch: their layers, training steps and inference, and predictions for whole tracks.

The input is codes [batch, frames, n_bins]; layers and shapes are those of `tfmusic.models`. One difference is
PyTorch's: its GRU has a second vector of biases, which `extra_parameters` counts.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from tests.benchmarks.clock import Bench, CannotMeasureError, repeating
from tests.benchmarks.made_up import N_BINS, answering
from tfmusic.core.windows import segment_starts

_CRNN_CHANNELS, _CRNN_POOLS, _CRNN_STRIDE = (1, 2, 2, 2), ((2, 2), (3, 3), (4, 4), (4, 4)), 96
_CNN2D_POOLS = ((2, 2), (4, 2), (4, 2), (4, 4), (8, 4))
_DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


def build(name: str, frames: int, n_bins: int, n_outputs: int, width: int) -> nn.Module:
    """Returns a network by its name in `tfmusic.models.BUILDERS`."""
    if name == "crnn":
        return Crnn(frames, n_bins, n_outputs, width)
    if name == "cnn2d":
        return Cnn2d(frames, n_bins, n_outputs, width)
    return ResNet(n_outputs, width, n_bins, _DEPTHS[name])


def extra_parameters(network: nn.Module) -> int:
    """Returns how many parameters PyTorch's GRU has beyond that of Cho et al. 2014, which tfmusic has."""
    grus = [module for module in network.modules() if isinstance(module, nn.GRU)]
    return sum(parameter.numel() for gru in grus for name, parameter in gru.named_parameters() if "bias_hh" in name)


class Normalise(nn.Module):
    """Codes to an image [batch, 1, frames, n_bins] with mean 0 and variance 1 a bin."""

    def __init__(self, n_bins: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((n_bins,), 127.5))
        self.register_buffer("scale", torch.full((n_bins,), 1 / 74.0))

    def forward(self, codes: Any) -> Any:
        """Returns the image."""
        return ((codes.float() - self.mean) * self.scale).unsqueeze(1)


class Cnn2d(nn.Module):
    """The twin of `tfmusic.models.cnn2d`."""

    def __init__(self, frames: int, n_bins: int, n_outputs: int, width: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [Normalise(n_bins)]
        size, before = (frames, n_bins), 1
        for i, pool in enumerate(_CNN2D_POOLS):
            fitting = _fitting(pool, size)
            channels = width * 2**i
            blocks += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
            blocks += [nn.MaxPool2d(fitting)]
            size, before = (size[0] // fitting[0], size[1] // fitting[1]), channels
        blocks += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 4 * width), nn.ReLU()]
        self.layers = nn.Sequential(*blocks, nn.Linear(4 * width, n_outputs))

    def forward(self, codes: Any) -> Any:
        """Returns logits."""
        return self.layers(codes)


class Crnn(nn.Module):
    """The twin of `tfmusic.models.crnn`."""

    def __init__(self, frames: int, n_bins: int, n_outputs: int, width: int) -> None:
        super().__init__()
        missing = -frames % _CRNN_STRIDE
        self.normalise, self.pad = Normalise(n_bins), nn.ZeroPad2d((0, 0, missing // 2, missing - missing // 2))
        self.bins = nn.BatchNorm2d(n_bins)
        blocks: list[nn.Module] = []
        size, before = (frames + missing, n_bins), 1
        for factor, pool in zip(_CRNN_CHANNELS, _CRNN_POOLS, strict=True):
            fitting, channels = _fitting(pool, size), width * factor
            blocks += [nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ELU()]
            blocks += [nn.MaxPool2d(fitting), nn.Dropout(0.1)]
            size, before = (size[0] // fitting[0], size[1] // fitting[1]), channels
        self.blocks, units = nn.Sequential(*blocks), max(width // 2, 1)
        self.gru1 = nn.GRU(size[1] * before, units, batch_first=True)
        self.gru2 = nn.GRU(units, units, batch_first=True)
        self.logits = nn.Linear(units, n_outputs)

    def forward(self, codes: Any) -> Any:
        """Returns logits."""
        x = self.pad(self.normalise(codes))
        x = self.blocks(self.bins(x.transpose(1, 3)).transpose(1, 3))
        steps = x.permute(0, 2, 3, 1).flatten(2)  # [batch, time, bins x channels]
        return self.logits(self.gru2(self.gru1(steps)[0])[0][:, -1])


class ResNet(nn.Module):
    """The twin of `tfmusic.models.resnet`."""

    def __init__(self, n_outputs: int, width: int, n_bins: int, depths: tuple[int, ...]) -> None:
        super().__init__()
        blocks: list[nn.Module] = [Normalise(n_bins), *_conv_bn(1, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        before = width
        for stage, depth in enumerate(depths):
            for block in range(depth):
                channels = width * 2**stage
                blocks.append(BasicBlock(before, channels, 2 if stage and not block else 1))
                before = channels
        self.layers = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, n_outputs))

    def forward(self, codes: Any) -> Any:
        """Returns logits."""
        return self.layers(codes)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        first, second = _conv_bn(before, channels, 3, stride), _conv_bn(channels, channels, 3, 1)
        self.path = nn.Sequential(*first, nn.ReLU(), *second)
        is_same = stride == 1 and before == channels
        self.shortcut = nn.Identity() if is_same else nn.Sequential(*_conv_bn(before, channels, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Any) -> Any:
        """Returns the block's features."""
        return self.relu(self.path(x) + self.shortcut(x))


def _conv_bn(before: int, channels: int, kernel: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(before, channels, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


def _fitting(pool: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    return min(pool[0], size[0]), min(pool[1], size[1])


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


_N_OUTPUTS, _LOW_DB, _HIGH_DB = 10, -45.0, 45.0


def tracks(name: str, width: int, frames: int, hop_frames: int, layout: str) -> Bench:
    """Returns part `track`, in windows."""
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    model = build(name, frames, N_BINS, _N_OUTPUTS, width).to(memory_format=formats[layout]).eval()

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
