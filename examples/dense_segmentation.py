"""Adaptation of a segmentation network: a label and a domain for every pixel.

Per-pixel labels with ignored ones and class weights, mixed precision, gradient accumulation and
activation checkpointing, in a plain loop around `DANN`.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pyrevgrad.adversarial import DANN, GaninSchedule
from pyrevgrad.nn import Activation, ReversedConv2d

CLASSES, IGNORED, SIZE, BATCH, PARTS, STEPS = 3, 255, 16, 4, 2, 20


class Features(nn.Module):
    """Convolutions whose inner activations are computed again in backward instead of being kept."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), Activation("relu"))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), Activation("relu"))

    def forward(self, x):
        return checkpoint(self.second, self.first(x), use_reentrant=False)


def images(count, brightness, generator):
    """Squares (class 1) and bars (class 2) on noise, their labels, and an ignored border."""
    x = torch.randn(count, 1, SIZE, SIZE, generator=generator) * 0.2 + brightness
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    for i in range(count):
        top, left = torch.randint(1, SIZE - 6, (2,), generator=generator).tolist()
        labels[i, top : top + 5, left : left + 5] = 1
        labels[i, :, (left + 8) % SIZE] = 2
    x[:, 0] += labels
    labels[:, 0], labels[:, -1] = IGNORED, IGNORED
    return x, labels


def build(schedule):
    """The network, with rare classes weighing more."""
    # A module and not a partial function, so that the weights follow the network to a device.
    loss = nn.CrossEntropyLoss(torch.tensor([0.5, 1.0, 2.0]), ignore_index=IGNORED)
    # A domain logit for every pixel: linear layers over the channels, the first one reversed.
    domain = nn.Sequential(ReversedConv2d(8, 16, 1, activation="relu"), nn.Conv2d(16, 1, 1))
    return DANN(Features(), nn.Conv2d(8, CLASSES, 1), domain, loss, scale=schedule)


def step(model, optimizer, parts):
    """One step over several small batches, whose gradients are added up; the mean losses."""
    optimizer.zero_grad()
    found = []
    for source, labels, target in parts:
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(source, labels, target)
        (losses.loss / len(parts)).backward()
        found.append(torch.stack([value.detach().float() for value in losses]))
    optimizer.step()
    model.schedule.step()
    return torch.stack(found).mean(0).tolist()


def main():
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    model = build(GaninSchedule(STEPS))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for number in range(STEPS):
        parts = [
            (*images(BATCH, 0.0, draw), images(BATCH, 0.5, draw)[0]) for _ in range(PARTS)
        ]  # fmt: skip
        _, label, domain, right, told = step(model, optimizer, parts)
        if number % 5 == 0 or number == STEPS - 1:
            print(
                f"step {number:2d}: label loss {label:.3f}, domain loss {domain:.3f}, "
                f"pixels right {right:.2f}, domains told apart {told:.2f}"
            )
    print(model.reversal)


if __name__ == "__main__":
    main()
