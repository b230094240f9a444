"""Train the digits network: ``python -m calibration.train_digits`` writes its weights.

It takes about two minutes of processor time. The seed is fixed, but floating-point sums depend
on library and processor, so another machine gets weights of like quality, not equal bytes.
"""

from __future__ import annotations

import lzma
import sys

import numpy as np
import safetensors.torch
import torch
from torch import nn

from calibration import digits

EPOCHS = 12
BATCH_SIZE = 50
PEAK_LEARNING_RATE = 4e-3
SHIFT_PIXELS = 2
PAIRS = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 1, "lp": 1, "pb": 2}
"""LZMA that tells the first byte of a number from its second."""


def main() -> None:
    """Train on the training part, report top-1 on the evaluation part, write the weights."""
    torch.manual_seed(0)
    network = digits.Digits()
    train(network, *training_samples())
    weights = {name: _stored(value) for name, value in network.state_dict().items()}
    digits.WEIGHTS.write_bytes(lzma.compress(safetensors.torch.save(weights), filters=[PAIRS]))
    sys.stdout.write(f"top-1 on the evaluation part: {evaluate(digits.model()):.4f}\n")


def training_samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Return images [3000, 1, 32, 32] and labels [3000].

    The first of a fixed random order; the provider has the other 2,000.
    """
    chosen = digits.table()[: digits.TRAINING]
    images = digits.padded(chosen[:, :-1].reshape(-1, 28, 28))
    return torch.from_numpy(images), torch.from_numpy(chosen[:, -1].astype(np.int64))


def train(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Train ``network`` in place on images [n, 1, 32, 32] and labels [n]."""
    steps = EPOCHS * (len(images) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, steps)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.05)
    network.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for chosen in torch.randperm(len(images)).split(BATCH_SIZE):
            loss = loss_function(network(shifted(images[chosen]))["logits"], labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        sys.stdout.write(
            f"epoch {epoch + 1} of {EPOCHS}: loss {total * BATCH_SIZE / len(images):.4f}\n"
        )


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Return ``images`` [n, 1, h, w], all moved by one random offset of up to 2 pixels."""
    rows, columns = torch.randint(-SHIFT_PIXELS, SHIFT_PIXELS + 1, (2,)).tolist()
    return torch.roll(images, (rows, columns), (2, 3))


def evaluate(network: nn.Module) -> float:
    """Return the top-1 share of ``network`` on the evaluation part."""
    images, labels = digits.samples(digits.EVALUATION)
    with torch.no_grad():
        logits = network(torch.from_numpy(images))["logits"].numpy()
    return float(np.mean(digits.metric({"logits": logits}, {"labels": labels})))


def _stored(value: torch.Tensor) -> torch.Tensor:
    """Return what is stored of a tensor: float16, of kernels 5 significant bits in bfloat16.

    So few keep the file small; top-1 is the same.
    """
    if not value.is_floating_point():
        return value
    if value.dim() == 1:
        return value.half()
    mantissa, exponent = torch.frexp(value)
    return torch.ldexp(torch.round(mantissa * 32) / 32, exponent).bfloat16()


if __name__ == "__main__":
    main()
