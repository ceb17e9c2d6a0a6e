"""The opponents: modified backwards in plain PyTorch, as people write them.

Imports torch and pyrevgrad's tables; computes nothing with pyrevgrad.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function

from pyrevgrad.activations import ACTIVATIONS
from pyrevgrad.rules import Rule

Apply = Callable[[Tensor], Tensor]


def differentiated(apply: Apply) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Forward and backward as inside a network: the gradient of a tensor that is no leaf."""

    def step(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        y = apply(x)
        return y, torch.autograd.grad(y, x, g)[0]

    return step


def plain(activation: str) -> Apply | None:
    """PyTorch's own function with default parameters, or None where it has no gradient."""
    row = ACTIVATIONS[activation]
    composed: dict[str, Apply] = {
        "identity": torch.clone,
        "relu": F.relu,
        "relu_squared": lambda x: F.relu(x).square(),
    }
    if activation in composed:
        return composed[activation]
    if row.torch_name is None:
        return None
    function = functools.reduce(getattr, row.torch_name.split("."), torch)
    if not row.torch_arguments:
        return function  # type: ignore[return-value]
    return functools.partial(function, **row.torch_arguments)  # type: ignore[operator]


class Guided(Function):
    """g·(x > 0)·(g > 0), three kernels and x kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Apply) -> Tensor:
        ctx.save_for_backward(x)
        return value(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return g * (x > 0) * (g > 0), None


class GuidedScaled(Function):
    """g·(x > 0)·(g > 0)·scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Apply, scale: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale = scale
        return value(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return g * (x > 0) * (g > 0) * ctx.scale, None, None


class Reversal(Function):
    """Every reversal library's twenty lines: a view forward, -λ·g backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return -ctx.scale * g, None


class PositiveGradient(Function):
    """g·(g > 0) behind an activation that keeps its own slope."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * (g > 0)


class RectifiedGradient(Function):
    """relu(g) ahead of the activation, as Captum's hook does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return F.relu(g)


class Deconvolution(Function):
    """g·(g > 0), the activation's slope left out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Apply, clip: float | None) -> Tensor:
        ctx.clip = clip
        return value(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        if ctx.clip is not None:
            g = g.clamp(-ctx.clip, ctx.clip)
        return g * (g > 0), None, None


class StraightThrough(Function):
    """g, or g·(x >= low)·(x <= high)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Apply, interval: tuple[float, float] | None) -> Tensor:
        ctx.interval = interval
        if interval is not None:
            ctx.save_for_backward(x)
        return value(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        if ctx.interval is None:
            return g, None, None
        (x,) = ctx.saved_tensors
        low, high = ctx.interval
        return g * (x >= low) * (x <= high), None, None


class RectGrad(Function):
    """g·(y·g > threshold) behind an activation that keeps its own slope."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, threshold: float) -> Tensor:
        ctx.save_for_backward(y)
        ctx.threshold = threshold
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return g * (y * g > ctx.threshold), None


def _value(activation: str) -> Apply | None:
    if activation == "relu":
        return lambda x: x.clamp_min(0)
    return plain(activation)


def idiom(activation: str, rule_name: str, rule: Rule) -> Apply | None:
    """The pair as people write it, or None where plain PyTorch has no such activation or idiom."""
    value, ordinary = _value(activation), plain(activation)
    if value is None or ordinary is None:
        return None
    forms: dict[str, Apply] = {
        "reverse": lambda x: Reversal.apply(ordinary(x), -rule.scale),
        "GUIDED": lambda x: Guided.apply(x, value),
        "guided_scaled": lambda x: GuidedScaled.apply(x, value, rule.scale),
        "guided_slope": lambda x: PositiveGradient.apply(ordinary(x)),
        "guided_product": lambda x: ordinary(RectifiedGradient.apply(x)),
        "DECONVNET": lambda x: Deconvolution.apply(x, value, None),
        "deconvnet_clipped": lambda x: Deconvolution.apply(x, value, rule.clip),
        "STRAIGHT_THROUGH": lambda x: StraightThrough.apply(x, value, None),
        "clipped_straight_through": lambda x: StraightThrough.apply(x, value, rule.input_gate),
        "rectgrad": lambda x: RectGrad.apply(ordinary(x), rule.threshold),
    }
    return forms.get(rule_name)
