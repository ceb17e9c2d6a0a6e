"""The networks whose training is measured: adversarial ones by each provider, and ones to convert.

Imports pyrevgrad and torch; pytorch-revgrad where asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrevgrad
from pyrevgrad.nn import ReversedConv2d, ReversedLinear

from . import idioms
from .ceilings import IDLE

#: λ of every reversal.
SCALE = 0.3
Batch = tuple[Tensor, ...]
Loss = Callable[[nn.Module, Batch], Tensor]


class _Eager(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return idioms.Reversal.apply(x, SCALE)


def _layer(dense: bool, into: int, out: int) -> nn.Module:
    """A linear layer over the features, those of each pixel where there are pixels."""
    return nn.Conv2d(into, out, 1) if dense else nn.Linear(into, out)


def _reversed(provider: str, dense: bool, size: int, hidden: int) -> list[nn.Module]:
    """A reversal, a linear layer and its relu."""
    if provider == "fused" and dense:
        return [ReversedConv2d(size, hidden, 1, scale=SCALE), nn.ReLU()]
    if provider == "fused":
        return [ReversedLinear(size, hidden, scale=SCALE), nn.ReLU()]
    if provider == IDLE:
        return [_layer(dense, size, hidden)]
    reversal: nn.Module = _Eager()
    if provider == "pytorch-revgrad":
        from pytorch_revgrad import RevGrad

        reversal = RevGrad(alpha=SCALE)
    return [reversal, _layer(dense, size, hidden), nn.ReLU()]


class Adversarial(nn.Module):
    """Features, a label head and a domain head behind a reversal, for each pixel or sample."""

    def __init__(self, provider: str, features: list[nn.Module], size: int, dense: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.label = _layer(dense, size, 10)
        self.domain = nn.Sequential(*_reversed(provider, dense, size, 64), _layer(dense, 64, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.features(x)
        return self.label(f[: len(f) // 2]), self.domain(f)


def _relu(provider: str) -> nn.Module:
    return nn.Identity() if provider == IDLE else nn.ReLU()


def _leaky_relu(provider: str) -> nn.Module:
    return nn.Identity() if provider == IDLE else nn.LeakyReLU(0.1)


def adversarial(case: str, provider: str, quick: bool) -> tuple[nn.Module, Batch]:
    """The network of a case by a provider, from the same weights, and its batch.

    Ours has the reversal folded into the domain head's first layer, and its activations are those
    that `pyrevgrad.convert` chooses: PyTorch's own where the next layer keeps their output anyway,
    so that a mask would be one thing more to keep.
    """
    wide = 4 if quick else 32
    torch.manual_seed(0)
    if case == "MLP features":
        layers = [nn.Linear(256, 16 * wide), _relu(provider)]
        layers += [nn.Linear(16 * wide, 256), _relu(provider)]
        model = Adversarial(provider, layers, 256, False)
        x, shape = torch.randn(128, 256), (64,)
    else:
        dense, pixels = case == "dense discriminator", 64
        features: list[nn.Module] = []
        for into, out in ((3, wide), (wide, wide)):
            features += [nn.Conv2d(into, out, 3, padding=1), _relu(provider)]
        if not dense:
            pixels = 32
            # Of maxima before two heads, torch 2.13 compiled loses the features' gradient, any
            # reversal aside.
            features += [nn.AvgPool2d(4), nn.Flatten()]
        model = Adversarial(provider, features, wide if dense else wide * 64, dense)
        x = torch.randn(8 if dense else 32, 3, pixels, pixels)
        shape = (len(x) // 2, pixels, pixels) if dense else (len(x) // 2,)
    batch = (x, torch.randint(10, shape))
    if provider == "fused":
        pyrevgrad.convert(model, x)
    return model, batch


def adversarial_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the labels of the first half, and of both halves' domains."""
    x, labels = batch
    logits, domain = model(x)
    truth = torch.zeros_like(domain)
    truth[len(truth) // 2 :] = 1
    label_loss = F.cross_entropy(logits, labels)
    return label_loss + F.binary_cross_entropy_with_logits(domain, truth)


def convertible(case: str, provider: str, quick: bool) -> tuple[nn.Module, Batch]:
    """A network of PyTorch's layers, converted or as it is, and its batch."""
    wide = 4 if quick else 32
    torch.manual_seed(0)
    if case == "MLP":
        layers: list[nn.Module] = []
        for into in (256, 32 * wide, 32 * wide):
            layers += [nn.Linear(into, 32 * wide), _leaky_relu(provider), nn.Dropout(0.1)]
        model, x = nn.Sequential(*layers, nn.Linear(32 * wide, 10)), torch.randn(256, 256)
    else:
        layers = []
        for into in (3, wide, wide):
            layers += [nn.Conv2d(into, wide, 3, padding=1), nn.BatchNorm2d(wide)]
            layers += [_leaky_relu(provider), nn.AvgPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(wide * 16, 10)]
        model, x = nn.Sequential(*layers), torch.randn(32, 3, 32, 32)
    batch = (x, torch.randint(10, (len(x),)))
    if provider == "converted":
        pyrevgrad.convert(model, x)
    return model, batch


def labels_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])
