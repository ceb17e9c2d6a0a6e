"""A reversal folded into the product of a linear layer's or a convolution's backward.

Imports backends, binding and the reversal as a function. A plain eager call on the CPU is recorded
by a C++ node where there is one, any other by the Function, which says the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.nn import functional as F

from . import backends
from .backends import Pairs
from .binding import NODES
from .functional import reverse_gradient
from .inputs import checked
from .reference import eager
from .rules import reverse

Number = Callable[[], float | None] | None
_REVERSAL = Pairs("identity", reverse(1.0), {})
# Half types have the same pair, as with every row whose slope is constant.
_PAIR = _REVERSAL.full
# From here on λ multiplies the finished product, as it does behind a plain layer: PyTorch refuses a
# factor past float32's range, and a library may multiply an operand by it, which overflows first.
# So does a λ that is 0 in float32, for which PyTorch makes no product at all: a NaN in g would be
# lost.
_HUGE, _TINY = 2.0**64, 2.0**-126


def _reversed_plainly(gx: Tensor, scale: Tensor) -> Tensor:
    """``−λ · gx`` as a formula that autograd can record."""
    return eager.gradient_of_nothing(gx, _PAIR, scale)


def _behind_reversal(x: Tensor, scale: Tensor) -> Tensor:
    """What W meets, where its gradient is differentiated in turn."""
    return reverse_gradient(x, scale) if torch.is_grad_enabled() else x


class _FoldedLinear(Function):
    """``x·Wᵀ + b`` whose gradient in x is ``−λ · g·W``; those in W and b are the plain ones."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor,
        number: Number,
        backend: Any,
    ) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        # On the context and not saved: a schedule may change λ between forward and backward.
        ctx.call = (scale, number, backend, x.shape)
        y = F.linear(x, weight, bias)
        # Of more or fewer axes it may be a view, which nobody could then change in place.
        return y if x.dim() == 2 else torch.ops.aten._unsafe_view.default(y, y.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        scale, number, backend, shape = ctx.call
        asked = ctx.needs_input_grad
        known = None if number is None else number()
        factor = weight if asked[0] else None
        gradients = _gradients(g, x, factor, scale, known, shape, asked[2], backend)
        return *gradients, None, None, None


def _gradients(
    g: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    scale: Tensor,
    number: float | None,
    shape: Sequence[int],
    bias: bool,
    backend: Any = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of x, W and b, where what makes them is there; differentiable where it is recorded."""
    # Counted: of no features -1 would stand for any number.
    count = math.prod(shape[:-1])
    rows = g.reshape(count, g.shape[-1])
    gx = gw = None
    if weight is not None:
        gx = _reversed_product(rows, weight, scale, number, backend).view(shape)
    if x is not None:
        gw = rows.t() @ _behind_reversal(x, scale).reshape(count, x.shape[-1])
    return gx, gw, rows.sum(0) if bias else None


def _reversed_product(
    g: Tensor, weight: Tensor, scale: Tensor, number: float | None, backend: Any
) -> Tensor:
    """``−λ · g·W`` in one product; a λ that only a tensor knows scales the smaller factor first,
    but in float16, where λ times it may be below what that holds."""
    factor = number is None or _TINY <= abs(number) < _HUGE
    if not factor or torch.is_grad_enabled():
        return _reversed_plainly(g @ weight, scale)
    if number is not None:
        # beta 0: the first argument is not read, but by vmap, which multiplies it by 0.
        batched = torch._C._are_functorch_transforms_active()
        unread = g.new_zeros(1) if batched else g.new_empty(1)
        return torch.addmm(unread, g, weight, beta=0, alpha=-number)
    if g.dtype is torch.float16:
        return backend.backward(g @ weight, None, _PAIR, scale)
    if weight.numel() <= g.numel():
        return g @ backend.backward(weight, None, _PAIR, scale)
    return backend.backward(g, None, _PAIR, scale) @ weight


def _backend_for(x: Tensor, scale: Tensor) -> Any:
    """Who scales the smaller factor."""
    return backends.choose(x, checked(x, _REVERSAL, scale))


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
    return _applied(_FoldedLinear, (x, weight, bias), scale, number)


def _applied(function: Any, tensors: tuple[Any, ...], scale: Tensor, rest: Any) -> Tensor:
    """The Function of x, W and b, cast as autocast casts them: within it, backward would have two
    dtypes to multiply."""
    kind = tensors[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # of meta it is an error to ask
        return function.apply(*tensors, scale, rest, _backend_for(tensors[0], scale))
    dtype = torch.get_autocast_dtype(kind)
    kept = (None, torch.float64)
    tensors = tuple(t if getattr(t, "dtype", None) in kept else t.to(dtype) for t in tensors)
    with torch.autocast(kind, enabled=False):
        return function.apply(*tensors, scale, rest, _backend_for(tensors[0], scale))


class _FoldedConvolution(Function):
    """A convolution whose gradient in x is that by −λ·W; those in W and b are the plain ones."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor,
        geometry: Any,
        backend: Any,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.call = (scale, backend, geometry)
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        scale, backend, geometry = ctx.call
        asked = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():
            found = _convolved_by_formula(g, x, weight, scale, geometry, asked)
        elif not asked[0] or g.dtype is torch.float16:
            # As in a linear layer: of float16 the finished gradient is reversed.
            gx, gw, gb = _convolved_back(g, x, weight, geometry, asked)
            gx = gx if gx is None else backend.backward(gx, None, _PAIR, scale)
            found = gx, gw, gb
        elif weight.numel() <= g.numel():
            # W's own gradient does not read W.
            factor = backend.backward(weight, None, _PAIR, scale)
            found = _convolved_back(g, x, factor, geometry, asked)
        else:
            reversed_g = backend.backward(g, None, _PAIR, scale)
            gx, _, _ = _convolved_back(reversed_g, x, weight, geometry, [True, False, False])
            found = (gx, *_convolved_back(g, x, weight, geometry, [False, *asked[1:]])[1:])
        return *found, None, None, None


def _convolved_by_formula(
    g: Tensor, x: Tensor, weight: Tensor, scale: Tensor, geometry: Any, asked: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients that are asked for, differentiable where that is recorded."""
    gx, gw, gb = _convolved_back(g, _behind_reversal(x, scale), weight, geometry, asked)
    return gx if gx is None else _reversed_plainly(gx, scale), gw, gb


def _convolved_back(
    g: Tensor, x: Tensor, weight: Tensor, geometry: Any, asked: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The plain gradients of x, W and b that are asked for."""
    *pairs, groups = geometry
    stride, padding, dilation = ((n, n) if isinstance(n, int) else n for n in pairs)
    sizes = [weight.shape[0]] if asked[2] else None
    return torch.ops.aten.convolution_backward.default(
        g, x, weight, sizes, stride, padding, dilation, False, (0, 0), groups, asked
    )


if NODES is not None:
    NODES.configure_folding(_gradients, _convolved_by_formula)


def folded_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, geometry: Any
) -> Tensor:
    """``F.conv2d`` of a batch with a reversed gradient in x, by the Function.

    Parameters
    ----------
    scale : Tensor
        λ, 0-dim, read when backward runs.
    geometry : tuple
        stride, padding, dilation (a number or two each) and groups.
    """
    return _applied(_FoldedConvolution, (x, weight, bias), scale, geometry)
