"""Train the small MobileNetV2: ``python -m calibration.train_mobilenet`` writes its weights.

It takes about four minutes of processor time. The seed is fixed, but floating-point sums depend
on library and processor, so another machine gets weights of like quality, not equal bytes.
"""

from __future__ import annotations

import lzma
import sys

import numpy as np
import safetensors.torch
import torch
from torch import nn

from calibration import mobilenet
from calibration.train_digits import PAIRS

EPOCHS = 10
ROUNDS = 512
"""Crops of each photograph in an epoch; every epoch has others."""
BATCH_SIZE = 64
PEAK_LEARNING_RATE = 0.2
WEIGHT_DECAY = 1e-4


def main() -> None:
    """Train on the training part, report top-1 on the evaluation part, write the weights."""
    torch.manual_seed(0)
    network = mobilenet.MobileNet()
    train(network)
    weights = {name: _stored(value) for name, value in network.state_dict().items()}
    mobilenet.WEIGHTS.write_bytes(
        lzma.compress(safetensors.torch.save(weights), filters=[PAIRS])
    )
    sys.stdout.write(f"top-1 on the evaluation part: {evaluate(mobilenet.model()):.4f}\n")


def train(network: nn.Module) -> None:
    """Train ``network`` in place: SGD with momentum and weight decay, one cycle.

    Channels lie last (NHWC) in memory, which is faster for depthwise convolutions.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not annotated
    steps = EPOCHS * (ROUNDS * len(mobilenet.PHOTOGRAPHS) // BATCH_SIZE)
    optimizer = torch.optim.SGD(
        network.parameters(), 0.1, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, steps)
    loss_function = nn.CrossEntropyLoss()
    network.train()
    for epoch in range(EPOCHS):
        drawn = mobilenet.samples(mobilenet.TRAINING, ROUNDS, seed=1000 + epoch)
        images, labels = (torch.from_numpy(array) for array in drawn)
        images = images.to(memory_format=torch.channels_last)
        total = 0.0
        for chosen in torch.randperm(len(images)).split(BATCH_SIZE):
            loss = loss_function(network(images[chosen])["logits"], labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        sys.stdout.write(
            f"epoch {epoch + 1} of {EPOCHS}: loss {total * BATCH_SIZE / len(images):.4f}\n"
        )
        sys.stdout.flush()


def evaluate(network: nn.Module) -> float:
    """Return the top-1 share of ``network`` on the evaluation part."""
    drawn, labels = mobilenet.evaluation_samples()
    images = torch.from_numpy(drawn)
    scores = []
    for start in range(0, len(labels), mobilenet.BATCH_SIZE):
        part = slice(start, start + mobilenet.BATCH_SIZE)
        with torch.no_grad():
            logits = network(images[part])["logits"].numpy()
        scores.append(mobilenet.metric({"logits": logits}, {"labels": labels[part]}))
    return float(np.mean(np.concatenate(scores)))


def _stored(value: torch.Tensor) -> torch.Tensor:
    stored = value.half() if value.is_floating_point() else value
    return stored.contiguous()


if __name__ == "__main__":
    main()
