"""Photographs told apart by a crop: a small MobileNetV2, its data and its metric (top-1).

The network is built as Sandler et al. describe it ("MobileNetV2: Inverted Residuals and Linear
Bottlenecks", CVPR 2018), narrower and with fewer blocks. A sample is 48 x 48 pixels of one of
16 photographs that scikit-image ships, under another light: exposure and color cast vary. Each
photograph is cut into tiles; training, calibration and evaluation have tiles of their own, so
that no pixel is in two of them.

Weights: ``mobilenet.safetensors.xz``, written by ``train_mobilenet.py``.
"""

from __future__ import annotations

import functools
import lzma
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import skimage
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt
    import torch

METRIC_NAME = "top-1"
METRIC_HIGHER_IS_BETTER = True

WEIGHTS = Path(__file__).with_name("mobilenet.safetensors.xz")

PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)

TILE = 64
CROP = 48
TRAINING = (0, 1, 2, 3, 4)
CALIBRATION = (5,)
EVALUATION = (6, 7)
"""A part of the data: which of every eight tiles of a photograph."""

CALIBRATION_ROUNDS = 32
EVALUATION_ROUNDS = 128
"""Crops of each photograph."""

BATCH_SIZE = 32

STEM = 16
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 48, 2, 1))
"""Expansion, channels, blocks and first stride of each stage."""
HEAD = 192


class InvertedResidual(nn.Module):
    """Expand by 1 x 1, filter each channel by 3 x 3, project by 1 x 1 without activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [] if expansion == 1 else [_layer(inputs, inner, 1, 1, 1)]
        self.layers = nn.Sequential(
            *expand,
            _layer(inner, inner, 3, stride, inner),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return [n, outputs, h / stride, w / stride] of [n, inputs, h, w]."""
        found: torch.Tensor = self.layers(features)
        return features + found if self.has_shortcut else found


class MobileNet(nn.Module):
    """22 convolutions, 7 of them depthwise, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_layer(3, STEM, 3, 2, 1)]
        width = STEM
        for expansion, channels, number, stride in STAGES:
            for index in range(number):
                step = stride if index == 0 else 1
                blocks.append(InvertedResidual(width, channels, step, expansion))
                width = channels
        blocks.append(_layer(width, HEAD, 1, 1, 1))
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(HEAD, len(PHOTOGRAPHS))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``logits`` [n, 16] of ``images`` [n, 3, 48, 48], RGB in 0 ... 1."""
        features = self.features(images)
        return {"logits": self.classifier(features.mean(dim=(2, 3)))}


def model() -> nn.Module:
    """Return the trained network in evaluation mode; its weights are stored in float16."""
    network = MobileNet()
    weights = safetensors.torch.load(lzma.decompress(WEIGHTS.read_bytes()))
    network.load_state_dict({name: value.float() for name, value in weights.items()})
    return network.eval()


@functools.cache
def photographs() -> tuple[npt.NDArray[np.uint8], ...]:
    """Return the photographs [h, w, 3], by label; grey ones have R = G = B."""
    folder = Path(skimage.__file__).with_name("data")
    return tuple(_rgb(skimage.io.imread(folder / name)) for name in PHOTOGRAPHS)


def tiles(photograph: npt.NDArray[np.uint8], part: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return the tiles [n, 64, 64, 3] of ``photograph`` [h, w, 3] that belong to ``part``.

    Every eighth tile is of one kind; the count goes on from row to row by an odd number, so
    that no kind is a column of the photograph.
    """
    rows, columns = (side // TILE for side in photograph.shape[:2])
    cut = [
        photograph[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        for row in range(rows)
        for column in range(columns)
        if (column + 3 * row) % 8 in part
    ]
    return np.stack(cut)


def samples(
    part: tuple[int, ...], rounds: int, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return images [rounds * 16, 3, 48, 48] in 0 ... 1 and their labels, photographs in turn.

    Place, mirroring and light are drawn from ``seed``, the tiles taken in turn.
    """
    random = np.random.default_rng(seed)
    sources = [tiles(photograph, part) for photograph in photographs()]
    images = [
        _crop(source[index % len(source)], random)
        for index in range(rounds)
        for source in sources
    ]
    labels = np.tile(np.arange(len(sources), dtype=np.int64), rounds)
    return np.stack(images), labels


def calibration_batches() -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Yield 16 batches of 32 images from tiles that are in no other part."""
    images, _ = samples(CALIBRATION, CALIBRATION_ROUNDS, seed=1)
    for start in range(0, len(images), BATCH_SIZE):
        yield {"images": images[start : start + BATCH_SIZE]}


def evaluation_samples() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the 2,048 images of the evaluation part and their labels."""
    return samples(EVALUATION, EVALUATION_ROUNDS, seed=2)


def evaluation_batches() -> Iterator[dict[str, npt.NDArray[np.float32 | np.int64]]]:
    """Yield 64 batches of 32 images, with their ``labels``."""
    images, labels = evaluation_samples()
    for start in range(0, len(images), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        yield {"images": images[part], "labels": labels[part]}


def metric(
    outputs: Mapping[str, npt.NDArray[np.float32]],
    batch: Mapping[str, npt.NDArray[np.int64]],
) -> npt.NDArray[np.float64]:
    """Return 1 for every image whose largest logit is its label's, else 0: shape [n]."""
    right = outputs["logits"].argmax(axis=1) == batch["labels"]
    return np.asarray(right, np.float64)


def _layer(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


def _rgb(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    grey = pixels.ndim == 2  # noqa: PLR2004  no channel axis
    return np.repeat(pixels[:, :, None], 3, axis=2) if grey else pixels


def _crop(tile: npt.NDArray[np.uint8], random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return [3, 48, 48] of ``tile``: exposure within two stops, cast within a third of one."""
    top, left = random.integers(0, TILE - CROP + 1, 2)
    crop = tile[top : top + CROP, left : left + CROP]
    if random.integers(0, 2):
        crop = crop[:, ::-1]
    stops = random.uniform(-1.5, 0.5) + random.uniform(-0.33, 0.33, 3)
    lit = np.minimum(crop.astype(np.float32) / 255 * np.exp2(stops, dtype=np.float32), 1)
    return np.ascontiguousarray(lit.transpose(2, 0, 1), np.float32)
