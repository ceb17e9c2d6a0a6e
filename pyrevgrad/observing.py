"""The norm of a gradient on its way back, left in a tensor on its device. Imports torch alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function


class _Observed(Function):
    """The identity both ways, as a view; backward writes the gradient's norm into `norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor) -> Tensor:
        ctx.norm = norm
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        if not _may_be_recorded(g):
            return g, None
        with torch.no_grad():
            # Half types square in float32, where their own range would overflow.
            wide = torch.float64 if g.dtype == torch.float64 else torch.float32
            norm = torch.linalg.vector_norm(g.detach(), dtype=wide)
            # Of a DTensor the norm is one too, and only all processes together have its value.
            sharded = hasattr(type(norm), "full_tensor")
            ctx.norm.copy_(norm.full_tensor() if sharded else norm)
        return g, None


def _may_be_recorded(tensor: Tensor) -> bool:
    """Not inside torch.func, which lets nothing outside be written, nor in forward mode, nor of
    a batch of gradients, which has many norms."""
    return torch.compiler.is_compiling() or not (
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._functorch.is_legacy_batchedtensor(tensor)
    )


def observed(x: Tensor, norm: Tensor) -> Tensor:
    """`x` as a view whose backward writes the 2-norm of what comes back into the 0-dim `norm`.

    Where no norm can be recorded, `x` itself.
    """
    if x.requires_grad and torch.is_grad_enabled() and _may_be_recorded(x):
        return _Observed.apply(x, norm)
    return x
