"""A reversal folded into the product of a linear layer's or a convolution's backward.

Imports backends, binding and the reversal as a function. A plain eager call on the CPU is recorded
by a C++ node where there is one, any other by the Function, which says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn import functional as F

from . import backends
from .autograd import checked
from .backends import Pairs
from .binding import NODES
from .functional import reverse_gradient
from .pairs import Pair
from .reference import eager

Number = Callable[[], float | None] | None


class _FoldedLinear(Function):
    """``x·Wᵀ + b`` whose gradient in x is ``−λ · g·W``; those in W and b are the plain ones."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, number: Number
    ) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        # On the context and not saved: a schedule may change λ between forward and backward.
        ctx.scale, ctx.number, ctx.shape = scale, number, x.shape
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        asked = ctx.needs_input_grad
        known = None if ctx.number is None else ctx.number()
        factor = weight if asked[0] else None
        gradients = _gradients(g, x, factor, ctx.scale, known, ctx.shape, asked[2])
        return *gradients, None, None


def _gradients(
    g: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    scale: Tensor,
    number: float | None,
    shape: Sequence[int],
    bias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of x, W and b, where what makes them is there; differentiable where it is recorded."""
    rows = g.reshape(-1, g.shape[-1])
    gx = gw = None
    if weight is not None:
        gx = _reversed_product(rows, weight, scale, number).view(shape)
    if x is not None:
        if torch.is_grad_enabled():
            # What W meets is x behind the reversal, and so is what leads on from W's gradient.
            x = reverse_gradient(x, scale)
        gw = rows.t() @ x.reshape(-1, x.shape[-1])
    return gx, gw, rows.sum(0) if bias else None


if NODES is not None:
    NODES.configure_folding(_gradients)


def _reversed_product(g: Tensor, weight: Tensor, scale: Tensor, number: float | None) -> Tensor:
    """``−λ · g·W`` in one product; a λ that only a tensor knows scales the smaller factor first."""
    if number is None:
        if weight.numel() <= g.numel():
            weight = weight * scale
        else:
            g = g * scale
        number = 1.0
    # beta 0: the first argument is not read, only its dtype and device count.
    return torch.addmm(g.new_empty(1), g, weight, beta=0, alpha=-number)


def folded_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, number: Number
) -> Tensor:
    """``F.linear`` with a reversed gradient in x, by the Function.

    Parameters
    ----------
    scale : Tensor
        λ, 0-dim, read when backward runs.
    number : callable, optional
        Gives λ as a number when backward runs, or None where only the tensor knows it.
    """
    if torch.is_autocast_enabled(x.device.type):
        x, weight, bias = _cast(x, weight, bias)
        with torch.autocast(x.device.type, enabled=False):
            return _FoldedLinear.apply(x, weight, bias, scale, number)
    return _FoldedLinear.apply(x, weight, bias, scale, number)


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """As autocast casts them: within a Function, backward would have two dtypes to multiply."""
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class _FoldedConvolution(Function):
    """A convolution whose gradient in x is that by −λ·W; those in W and b are the plain ones."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor,
        pair: Pair,
        backend: Any,
        geometry: Any,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.call = (scale, pair, backend, geometry)
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        scale, pair, backend, geometry = ctx.call
        asked = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():
            found = _differentiable(g, x, weight, scale, pair, geometry, asked)
        elif not asked[0]:
            found = _backward(g, x, weight, geometry, asked)
        elif weight.numel() <= g.numel():
            # W's own gradient does not read W.
            reversed_weight = backend.backward(weight, None, pair, scale)
            found = _backward(g, x, reversed_weight, geometry, asked)
        else:
            reversed_g = backend.backward(g, None, pair, scale)
            (gx, _, _) = _backward(reversed_g, x, weight, geometry, [True, False, False])
            found = (gx, *_backward(g, x, weight, geometry, [False, *asked[1:]])[1:])
        return *found, None, None, None, None


def _differentiable(
    g: Tensor, x: Tensor, weight: Tensor, scale: Tensor, pair: Pair, geometry: Any, asked: Any
) -> Any:
    """As two layers make them: W meets x behind the reversal, and the plain gradient is scaled."""
    gx, *rest = _backward(g, reverse_gradient(x, scale), weight, geometry, asked)
    return gx if gx is None else eager.gradient_of_nothing(gx, pair, scale), *rest


def _backward(g: Tensor, x: Tensor, weight: Tensor, geometry: Any, asked: list[bool]) -> Any:
    stride, padding, dilation, groups = geometry
    shape = [weight.shape[0]] if asked[2] else None
    return torch.ops.aten.convolution_backward(
        g, x, weight, shape, stride, padding, dilation, False, (0, 0), groups, asked
    )


def folded_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, pairs: Pairs, geometry: Any
) -> Tensor:
    """``F.conv2d`` of a batch with a reversed gradient in x.

    Parameters
    ----------
    scale : Tensor
        λ, 0-dim, read when backward runs.
    pairs : Pairs
        Of the identity under ``reverse(1)``.
    geometry : tuple
        stride, padding, dilation (two numbers each) and groups.
    """
    if torch.is_autocast_enabled(x.device.type):
        x, weight, bias = _cast(x, weight, bias)
        with torch.autocast(x.device.type, enabled=False):
            return folded_convolution(x, weight, bias, scale, pairs, geometry)
    pair = checked(x, pairs, scale)
    backend = backends.choose(x, pair)
    return _FoldedConvolution.apply(x, weight, bias, scale, pair, backend, geometry)
