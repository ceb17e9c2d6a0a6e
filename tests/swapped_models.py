"""Two small models that the tests of the swap share, and one forward and backward of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """Layers, a function, a method, a gate; one layer under two names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.act, self.gate = nn.ReLU(inplace=True), nn.Sigmoid()
        self.alias = self.act
        self.unused = nn.ELU()
        self.double()

    def forward(self, x):
        h = self.act(self.a(x))
        h = h + F.gelu(self.b(h)).relu_()
        return self.c(h * self.gate(self.b(h)))


class Wrapped(nn.Module):
    """A linear layer, a relu, and any function after them."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.relu, self.function = nn.Linear(4, 4), nn.ReLU(), function

    def forward(self, x):
        return self.function(self.relu(self.linear(x)))


def run(model, shape=(5, 4), dtype=torch.float64):
    x = torch.randn(*shape, dtype=dtype, requires_grad=True)
    model(x).sum().backward()
    return x.grad
