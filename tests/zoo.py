"""Topologies and small architectures, each built with the activations that it is given.

Built with PyTorch's functions it is a user's model. Built with `site_of`, each call of which is an
autograd.Function written from the formulas of `expected`, it is the oracle. Imports none of ours.
"""

from __future__ import annotations

import expected
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Site(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kind, rule):
        ctx.save_for_backward(x)
        ctx.kind, ctx.rule = kind, rule
        return expected.value(kind, x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return expected.gradient(ctx.kind, ctx.rule, x.detach(), g), None, None


def site_of(kind, rule):
    """An activation whose every call has the backward of `rule`, by formula."""
    return lambda x: _Site.apply(x, kind, rule)


class Layer(nn.Module):
    """A function as a layer, for the oracle's side."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Topology(nn.Module):
    """Two linear layers and a wiring of them with one activation."""

    def __init__(self, wiring, act):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.wiring, self.act = wiring, act
        self.double()

    def forward(self, x):
        return self.wiring(self.a, self.b, self.act, x)


def _conditional(a, b, act, x):
    return act(a(x)) if x.sum() > 1e9 else act(b(act(a(x))) - 0.1)


#: Where hooks on a tensor, or one backward for a module, go wrong.
WIRINGS = {
    "a chain": lambda a, b, act, x: act(b(act(a(x)))),
    "pre-activation residual": lambda a, b, act, x: b(x) + a(act(b(x))),
    "residual on the same tensor": lambda a, b, act, x: (h := b(x)) + a(act(h)),
    "crelu": lambda a, b, act, x: b(torch.cat([act(h := a(x)), act(-h)], -1)[..., 3:9]),
    "one tensor into two activations": lambda a, b, act, x: a(act(h := b(x))) * b(act(h)),
    "on the input, which is used elsewhere": lambda a, b, act, x: a(act(x)) + b(x) * x,
    "two in a row": lambda a, b, act, x: b(act(act(a(x)) - 0.1)),
    "reused layers": lambda a, b, act, x: a(act(a(act(a(x))))),
    "a branch that ignores the input": lambda a, b, act, x: (
        a(act(b(x))) + act(b(torch.ones_like(x)))
    ),
    "decided by the data": _conditional,
    "on a slice": lambda a, b, act, x: b(torch.cat([act(a(x)[..., :3]), a(x)[..., 3:]], -1)),
    "on a transposed view": lambda a, b, act, x: b(act(a(x).t()).t()),
    "on an expanded tensor": lambda a, b, act, x: b(act(a(x).mean(0, keepdim=True).expand(5, 6))),
    "last of all": lambda a, b, act, x: act(b(a(x))),
}


class Inception(nn.Module):
    """Branches of convolutions with a functional activation, concatenated."""

    def __init__(self, act):
        super().__init__()
        self.one, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.norm, self.act, self.head = nn.BatchNorm2d(8), act, nn.Linear(8, 5)

    def forward(self, x):
        pooled = self.act(self.three(F.avg_pool2d(x, 3, 1, 1)))
        both = torch.cat([self.act(self.one(x)), pooled], 1)
        return self.head(self.act(self.norm(both)).mean((2, 3)))


class DenseNet(nn.Module):
    """Pre-activation layers that each see all before, and a last functional activation."""

    def __init__(self, act, layer):
        super().__init__()
        self.act = act
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(3 + 2 * i), layer(), nn.Conv2d(3 + 2 * i, 2, 3, padding=1))
            for i in range(3)
        )
        self.head = nn.Linear(9, 5)

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(self.act(x).mean((2, 3)))


class MobileNet(nn.Module):
    """Inverted residuals with hard-swish and a squeeze-excitation gate."""

    def __init__(self, layer):
        super().__init__()
        self.up, self.deep = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.down, self.head = nn.Conv2d(6, 3, 1), nn.Linear(3, 5)
        self.first, self.second = layer(), layer()
        self.squeeze, self.gate = nn.Conv2d(6, 6, 1), nn.Hardsigmoid()

    def forward(self, x):
        h = self.second(self.deep(self.first(self.up(x))))
        h = h * self.gate(self.squeeze(h.mean((2, 3), keepdim=True)))
        return self.head((x + self.down(h)).mean((2, 3)))


class VisionTransformer(nn.Module):
    """Patches, two encoder layers that store their activation as a function, a head."""

    def __init__(self, act):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(8, 2, 16, 0.0, act, batch_first=True, norm_first=True)
                for _ in range(2)
            )
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


class _UNetBlock(nn.Sequential):
    def __init__(self, into, out, layer):
        super().__init__()
        self.conv = nn.Conv2d(into, out, 3, padding=1)
        self.adn = nn.Sequential()
        self.adn.add_module("N", nn.InstanceNorm2d(out))
        self.adn.add_module("A", layer())


class UNet(nn.Module):
    """Down and up with a skip; the activation sits under the attribute A."""

    def __init__(self, layer):
        super().__init__()
        self.down, self.deep = _UNetBlock(3, 4, layer), _UNetBlock(4, 4, layer)
        self.up = _UNetBlock(8, 5, layer)

    def forward(self, x):
        skip = self.down(x)
        deep = F.interpolate(self.deep(F.max_pool2d(skip, 2)), scale_factor=2)
        return self.up(torch.cat([skip, deep], 1)).mean((2, 3))


class ResNet(nn.Module):
    """Two residual blocks, each with one in-place layer used twice."""

    def __init__(self, layer):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))
        self.relu, self.head = layer(), nn.Linear(4, 5)

    def forward(self, x):
        x = self.relu(self.stem(x))
        for i in (0, 2):
            h = self.relu(self.norms[i](self.convs[i](x)))
            x = self.relu(x + self.norms[i + 1](self.convs[i + 1](h)))
        return self.head(x.mean((2, 3)))


def _layer(made, rule, kind):
    return made if rule is None else (lambda: Layer(site_of(kind, rule)))


def _function(made, rule, kind):
    return made if rule is None else site_of(kind, rule)


#: Each built plain for rule None, and as the oracle for a rule of `expected`.
ARCHITECTURES = {
    "inception": lambda rule: Inception(_function(F.relu, rule, "relu")),
    "densenet": lambda rule: DenseNet(
        _function(F.relu, rule, "relu"), _layer(lambda: nn.ReLU(inplace=True), rule, "relu")
    ),
    "mobilenet": lambda rule: MobileNet(_layer(nn.Hardswish, rule, "hardswish")),
    "vit": lambda rule: VisionTransformer(_function(F.gelu, rule, "gelu")),
    "unet": lambda rule: UNet(_layer(nn.SiLU, rule, "silu")),
    "resnet": lambda rule: ResNet(_layer(lambda: nn.ReLU(inplace=True), rule, "relu")),
}
#: How many activations each calls in one forward.
CALLS = {"inception": 3, "densenet": 4, "mobilenet": 2, "vit": 2, "unet": 3, "resnet": 5}


def architecture(name: str, rule: str | None) -> nn.Module:
    """A small model in float64 with fixed weights."""
    torch.manual_seed(5)
    return ARCHITECTURES[name](rule).double().eval()


def images(*shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*(shape or (2, 3, 8, 8)), dtype=torch.float64)


def gradient(model, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of its weighted sum with respect to x."""
    x = x.detach().clone().requires_grad_()
    y = model(x)
    weights = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape)
    (found,) = torch.autograd.grad((y * weights).sum(), x)
    return y.detach(), found
