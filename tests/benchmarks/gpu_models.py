"""ResNet-50 and a single-shot detector in plain PyTorch, weights drawn: they tell speed only.

Both take ``images`` [batch, 3, 224, 224], the data of ``tests/benchmarks/resnet50.py``.
"""

from __future__ import annotations

import torch
from torch import nn

_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


def _conv(inner: int, outer: int, size: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inner, outer, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outer))


class _Block(nn.Module):
    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        outer = 4 * width
        self.main = nn.Sequential(
            *(_conv(inner, width, 1), nn.ReLU()),
            *(_conv(width, width, 3, stride), nn.ReLU()),
            _conv(width, outer, 1),
        )
        same = stride == 1 and inner == outer
        self.shortcut = nn.Identity() if same else _conv(inner, outer, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = self.main(x) + self.shortcut(x)
        return summed.relu()


def _trunk() -> nn.Sequential:
    parts: list[nn.Module] = [_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, blocks, stride in _STAGES:
        for index in range(blocks):
            parts.append(_Block(channels, width, stride if index == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*parts)


class _ResNet50(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = _trunk()
        self.head = nn.Linear(2048, 1000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.trunk(images).mean((2, 3)))
        return logits


class _Detector(nn.Module):
    """Six anchors at each place of two scales: boxes [batch, n, 4], scores [batch, n, 80]."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _trunk()
        self.coarser = nn.Sequential(_conv(2048, 512, 3, 2), nn.ReLU())
        self.heads = nn.ModuleList(nn.Conv2d(c, 6 * 84, 3, padding=1) for c in (2048, 512))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        coarse = self.trunk(images)
        maps = (coarse, self.coarser(coarse))
        found = [head(x).flatten(2) for head, x in zip(self.heads, maps, strict=True)]
        rows = torch.cat(found, 2).unflatten(1, (6, 84)).permute(0, 1, 3, 2).flatten(1, 2)
        return rows[..., :4], rows[..., 4:].sigmoid()


def resnet50() -> nn.Module:
    """Return ResNet-50, 25.6 million parameters."""
    torch.manual_seed(0)
    return _ResNet50().eval()


def detector() -> nn.Module:
    """Return a single-shot detector on the same trunk."""
    torch.manual_seed(0)
    return _Detector().eval()
