"""Small data, a small network and a short training, that the tests of training share."""

import torch
from torch import nn

from pyrevgrad.adversarial import DANN, fit


def data(n=50, m=30, shift=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    return (x, (x[:, 0] > 0).long()), torch.randn(m, 4, generator=generator) + shift


def network(scale=0.5, dropout=0.0, seed=0, **options):
    torch.manual_seed(seed)
    return DANN(
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout)),
        nn.Linear(8, 2),
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1)),
        scale=scale,
        **options,
    )


def train(model, source=None, target=None, **options):
    own_source, own_target = data()
    given = {"epochs": 3, "batch_size": 16, "progress": False, **options}
    return fit(
        model, own_source if source is None else source,
        own_target if target is None else target, **given,
    )  # fmt: skip


def weights(model):
    return [tensor.clone() for tensor in model.state_dict().values()]


def same(one, other):
    return all(map(torch.equal, weights(one), weights(other)))


class Killed(Exception):
    pass


def kill_after(epochs):
    """An `after_epoch` that ends the training as a crash in the epoch behind those would."""

    def after_epoch(record):
        if record["epoch"] > epochs:
            raise Killed

    return after_epoch


class Seen(nn.Module):
    """Keeps the first column of whatever passes."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, x):
        self.rows.append(x[:, 0].tolist())
        return x
