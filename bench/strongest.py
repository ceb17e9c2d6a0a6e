"""The opponents at their strongest: the fewest nodes, allocations and kernels that we know of.

Imports torch, the tables and idioms; computes nothing with pyrevgrad. Where several forms compete,
a run times them all and keeps the fastest of each cell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function

from pyrevgrad.rules import Rule

from .idioms import Apply, Reversal, plain

Backward = Callable[[Tensor, Tensor], Tensor]
_aten = torch.ops.aten


class OneNode(Function):
    """An activation that keeps y or x, and a backward(g, kept) of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Apply, backward: Backward, output: bool) -> Tensor:
        y = value(x)
        ctx.save_for_backward(y if output else x)
        ctx.own = backward
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (kept,) = ctx.saved_tensors
        return ctx.own(g, kept), None, None, None


class ReversalInPlace(Reversal):
    """Ahead of the activation, which has just made g: multiplying in place is safe."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g.mul_(-ctx.scale), None


class Deconvolution(Function):
    """clamp_min(g, 0): one kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Apply) -> Tensor:
        return value(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g.clamp_min(0), None


def relu_times(scale: float, into: bool = False) -> Backward:
    """g·(y > 0)·scale in one kernel: elu's backward, whose negative side of alpha 0 is g·y = 0.

    `into` writes the result over g. An infinite g times that 0 is NaN, where threshold_backward
    has 0; the tensors that are timed hold none.
    """
    if into:
        return lambda g, y: _aten.elu_backward.grad_input(g, 0.0, scale, 1.0, True, y, grad_input=g)
    return lambda g, y: _aten.elu_backward(g, 0.0, scale, 1.0, True, y)


#: Activations whose backward PyTorch has as one operation that multiplies by a scale of its own:
#: alpha and scale.
_SCALED = {"elu": (1.0, 1.0), "celu": (1.0, 1.0),
           "selu": (1.6732632423543772, 1.0507009873554805)}  # fmt: skip
#: Those whose backward is one operation on g and the kept x or y, and whether it is y.
_KEPT: dict[str, tuple[Backward, bool]] = {
    "sigmoid": (_aten.sigmoid_backward, True),
    "tanh": (_aten.tanh_backward, True),
    "gelu": (_aten.gelu_backward, False),
    "gelu_tanh": (lambda g, x: _aten.gelu_backward(g, x, approximate="tanh"), False),
    "silu": (_aten.silu_backward, False),
    "mish": (_aten.mish_backward, False),
    "hardswish": (_aten.hardswish_backward, False),
    "softplus": (lambda g, x: _aten.softplus_backward(g, x, 1.0, 20.0), False),
}


def _reversed(activation: str, scale: float) -> tuple[Backward, bool] | None:
    """scale·g·f′ from g and what is kept, and whether that is y; None where PyTorch has no such
    operation."""
    if activation == "relu":
        return relu_times(scale), True
    if activation in _SCALED:
        alpha, own = _SCALED[activation]
        return lambda g, x: _aten.elu_backward(g, alpha, own * scale, 1.0, False, x), False
    if activation in _KEPT:
        slope, output = _KEPT[activation]
        return lambda g, kept: slope(g, kept).mul_(scale), output
    return None


def _guided(activation: str, scale: float) -> tuple[Backward, bool]:
    """scale·g·(x > 0)·(g > 0) in one allocation: of relu in two kernels, since y tells x > 0."""
    if scale == 1:
        first = lambda g, kept: _aten.threshold_backward(g, kept, 0).clamp_min_(0)  # noqa: E731
        return first, activation == "relu"
    if activation == "relu":
        times = relu_times(scale, into=True)
        return lambda g, y: times(g.clamp_min(0), y), True
    return lambda g, x: _aten.threshold_backward(g, x, 0).clamp_min_(0).mul_(scale), False


def function(activation: str, rule_name: str, rule: Rule) -> Apply | None:
    """The strongest autograd Function, or None where it is no other than the idiom."""
    ordinary = plain(activation)
    # identity's backward hands on the caller's own g, which must not be written to.
    if ordinary is None or activation == "identity":
        return None
    if rule_name == "DECONVNET":
        return lambda x: Deconvolution.apply(x, ordinary)
    found: tuple[Backward, bool] | None = None
    if rule_name == "reverse":
        found = _reversed(activation, rule.scale)
        if found is None:
            return lambda x: ordinary(ReversalInPlace.apply(x, -rule.scale))
    elif rule_name in ("GUIDED", "guided_scaled"):
        found = _guided(activation, rule.scale)
    if found is None:
        return None
    backward, output = found
    return lambda x: OneNode.apply(x, ordinary, backward, output)


def hooked(activation: str, rule_name: str, rule: Rule) -> Apply | None:
    """A hook on y that changes g ahead of the ordinary backward: no Function, so that the price of
    a call is least; None where it does not give the rule's gradient."""
    ordinary, scale = plain(activation), rule.scale
    hooks: dict[str, Apply] = {"reverse": lambda g: g * scale}
    if activation == "relu":
        hooks["GUIDED"] = lambda g: g.clamp_min(0)
        hooks["guided_scaled"] = lambda g: g.clamp_min(0).mul_(scale)
    hook = hooks.get(rule_name)
    if ordinary is None or activation == "identity" or hook is None:
        return None

    def apply(x: Tensor) -> Tensor:
        y = ordinary(x)
        y.register_hook(hook)
        return y

    return apply


class CompiledRelu(Function):
    """PyTorch's relu, which keeps y alone, and a compiled backward(g, y).

    Each way by itself: compiled as one, Inductor would keep a mask of bytes, slow to store on the
    CPU. A forward compiled too was slower below 2^18 elements and much the same above.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, backward: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        y = F.relu(x)
        ctx.save_for_backward(y)
        ctx.compiled = backward
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return ctx.compiled(g, y), None


def relu_backward(rule_name: str, rule: Rule) -> Callable[[Tensor, Tensor], Tensor] | None:
    """gx from g and y for relu, to be compiled into one kernel; None where it is not written."""
    scale = rule.scale
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "reverse": lambda g, y: torch.where(y > 0, g * scale, 0.0),
        "GUIDED": lambda g, y: torch.where(y > 0, g.clamp_min(0), 0.0),
        "guided_scaled": lambda g, y: torch.where(y > 0, g.clamp_min(0) * scale, 0.0),
    }
    return forms.get(rule_name)
