"""The built-in model: a small network trained on scikit-learn's handwritten digits in seconds.

Imports torch, and scikit-learn inside functions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Images that are trained on; the others are held out.
TRAINED = 1500


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    return images, torch.tensor(data.target, dtype=torch.int64)


def held_out() -> tuple[Tensor, Tensor]:
    """The images (n, 1, 8, 8) in [0, 1] and labels that the network did not train on."""
    images, labels = _digits()
    return images[TRAINED:], labels[TRAINED:]


def trained_network(epochs: int = 12) -> nn.Module:
    """Two convolutions and a linear layer, trained from a fixed seed; in eval mode."""
    images, labels = _digits()
    images, labels = images[:TRAINED], labels[:TRAINED]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 16, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for _ in range(epochs):
            for rows in torch.randperm(TRAINED).split(100):
                loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()
