"""A reversal folded into the matrix product of a linear layer's backward. Imports torch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn import functional as F


class _FoldedLinear(Function):
    """``x·Wᵀ + b`` whose gradient in x is ``−λ · g·W``; those in W and b are the plain ones."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor,
        number: Callable[[], float | None] | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        # On the context and not saved: a schedule may change λ between forward and backward.
        ctx.scale, ctx.number = scale, number
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        rows = g.reshape(-1, g.shape[-1])
        gx = gw = gb = None
        if ctx.needs_input_grad[0]:
            known = None if ctx.number is None else ctx.number()
            gx = _reversed_product(rows, weight, ctx.scale, known).view(x.shape)
        if ctx.needs_input_grad[1]:
            gw = rows.t() @ x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[2]:
            gb = rows.sum(0)
        return gx, gw, gb, None, None


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
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    number: Callable[[], float | None] | None,
) -> Tensor:
    """``F.linear`` with a reversed gradient in x.

    Parameters
    ----------
    scale : Tensor
        λ, 0-dim, read when backward runs.
    number : callable, optional
        Gives λ as a number when backward runs, or None where only the tensor knows it.
    """
    if torch.is_autocast_enabled(x.device.type):
        # F.linear would cast within the Function, and leave backward two dtypes to multiply.
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            return _FoldedLinear.apply(x, weight, bias, scale, number)
    return _FoldedLinear.apply(x, weight, bias, scale, number)
