"""Where PyTorch would drop a custom backward: torch.func, forward mode, exporters and tracers.

Each gives the modified gradient or a sentence. Imports pairs and the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from .pairs import Pair
from .reference import eager

Value = Callable[[Tensor], Tensor] | None
COMPILED = (
    "torch.compile drops the backward of an autograd.Function inside a torch.func transform or "
    "forward-mode gradients; apply these to uncompiled code"
)


class TracingError(RuntimeError):
    """A modified backward met a tracer or transform that would drop it silently."""


class _Transformed(Function):
    """For torch.func and forward mode: the reference's formulas, and x itself as state."""

    @staticmethod
    def forward(x: Tensor, pair: Pair, scale: Tensor | None, value: Value) -> Tensor:
        return eager.value(x, pair) if value is None else value(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, ctx.pair, ctx.scale, _ = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return eager.gradient_of_input(g, x, ctx.pair, ctx.scale), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        rule = ctx.pair.rule
        if not rule.is_linear:
            raise TracingError(
                f"forward-mode: {rule} is not linear in the gradient, so it has no jvp; "
                "use reverse mode (torch.func.vjp, grad or jacrev)"
            )
        (x,) = ctx.saved_tensors
        return eager.gradient_of_input(tangent, x, ctx.pair, ctx.scale)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, x: Tensor, pair: Pair, scale: Tensor | None, value: Value
    ) -> Any:
        if in_dims[2] is None:
            return _Transformed.apply(x, pair, scale, value), in_dims[0]
        x = x.unsqueeze(0) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        x = x.expand(info.batch_size, *x.shape[1:])
        scale = scale.reshape(-1, *[1] * (x.dim() - 1))  # type: ignore[union-attr]
        return _Transformed.apply(x, pair, scale, value), 0


def _gradient_possible(x: Tensor, levels: list[Any]) -> bool:
    """Whether a transform of `levels`, or autograd outside of them, may send a gradient to x."""
    kind, functorch = torch._C._functorch.TransformType, torch._C._functorch
    if kind.Grad in levels or kind.Jvp in levels or torch.autograd.forward_ad._current_level >= 0:
        return True
    while functorch.is_functorch_wrapped_tensor(x):
        x = functorch.get_unwrapped(x)
    return x.requires_grad and torch.is_grad_enabled()


def transformed(x: Tensor, pair: Pair, scale: Tensor | None, value: Value = None) -> Tensor:
    """f(x) inside a torch.func transform or forward mode, or TracingError.

    `value` computes f(x); the reference's formula if None.
    """
    if torch.compiler.is_compiling():
        # Having refused the caller's frame, a compiler takes up this one.
        raise TracingError(COMPILED)
    kind = torch._C._functorch.TransformType
    levels = [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]
    if kind.Functionalize not in levels and levels.count(kind.Jvp) < 2:
        return _Transformed.apply(x, pair, scale, value)
    if pair.exact and scale is None:
        return eager.value(x, pair)
    if kind.Functionalize in levels:
        if _gradient_possible(x, levels):
            raise TracingError(
                "torch.func.functionalize takes no autograd.Function and would replace the "
                f"backward of {pair.rule} by the plain gradient; use it for inference alone, under "
                "torch.no_grad() and outside of torch.func.grad and its like"
            )
        return eager.value(x, pair) if value is None else value(x)
    raise TracingError(
        "forward-mode of forward-mode: PyTorch drops the outer derivative of an autograd.Function; "
        "use reverse mode for one of the two (jacfwd of jacrev, or jacrev of jacfwd)"
    )


def exporting() -> bool:
    """Whether torch.export is at work.

    By the flag: `torch.compiler.is_exporting` is True in any trace of torch.compile before 2.12.
    """
    return torch.compiler._is_exporting_flag


# Asked once, while torch.compile or torch.export traces, which share no code.
exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def refuse_modified(pair: Pair, scale: Tensor | None, tracer: str) -> None:
    """TracingError for a modified rule while a gradient can be needed."""
    if torch.is_grad_enabled() and not (pair.exact and scale is None):
        # No rule is made here: torch.export traces this, and cannot show one that has no source.
        live = "" if scale is None else ", times a scale that is a tensor,"
        raise TracingError(
            f"{tracer} would replace the backward of {pair.rule}{live} by the plain gradient; "
            "trace under torch.no_grad() for inference, or train the module itself "
            "(torch.compile keeps the rule)"
        )


def exported(x: Tensor, pair: Pair, scale: Tensor | None) -> Tensor:
    """f(x) in plain operations for an exporter, or TracingError."""
    refuse_modified(pair, scale, "torch.export or torch.jit.trace")
    y = eager.value(x, pair)
    # A modified rule leaves no gradient at all rather than a plain one.
    return y if pair.exact and scale is None else y.detach()
