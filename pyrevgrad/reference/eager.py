"""The reference backend: every activation and rule in plain PyTorch, differentiable to any order.

It is the fallback where nothing faster serves, and what the kernels are compared with. Imports
torch, the tables, pairs and the formulas beside it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import function

from ..activations import CONSTANT, MASK
from ..pairs import Pair, floats
from .formulas import RULES, formula_of


def _wide(x: Tensor) -> Tensor:
    """`x` in its compute type: float32 for half types."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in the dtype that is stored; no operation where it has that. Compiled by torch 2.11, a
    Function whose output an operation returned as it got it is sent a gradient of zeros."""
    return x if x.dtype == dtype else x.to(dtype)


def fitted(pair: Pair, x: Tensor) -> Pair:
    """`pair` in the compute type of `x`."""
    return pair if pair.in_float32 is None or x.dtype == torch.float64 else pair.in_float32


def _scale(pair: Pair, tensor: Tensor | None, like: Tensor) -> Tensor | float:
    """The factor λ: a number, or a tensor in the compute type of `like`, multiplied in float64.

    `like` is the gradient that λ multiplies.
    """
    if tensor is None or tensor.device.type == "mps":
        *_, number = floats(pair.texts.rule)
    else:
        (number,) = floats(pair.texts.factor)
    if tensor is None:
        return number
    if torch.compiler.is_compiling():
        # Less a 0 that is made of g: a compiler would else read λ when the forward runs.
        tensor = tensor - like.flatten()[:0].sum().to(tensor.dtype)
    wide = tensor if tensor.device.type == "mps" else tensor.double()
    return _narrow(number * wide, like.dtype)


def value(x: Tensor, pair: Pair) -> Tensor:
    """f(x), in fresh storage laid out as ``torch.empty_like(x)``."""
    y = _value(x, pair)
    return _own(y, x) if pair.row.own_slope else y


def _value(x: Tensor, pair: Pair) -> Tensor:
    """f(x), differentiable; a user's function may give x itself, a view, or other strides."""
    pair = fitted(pair, x)
    return _narrow(formula_of(pair.row).value(_wide(x), *floats(pair.texts.numbers)), x.dtype)


def _own(y: Tensor, x: Tensor) -> Tensor:
    """`y` where it is fresh and has the strides of ``torch.empty_like(x)``, else a copy that is."""
    if torch.compiler.is_compiling():
        return torch.empty_like(x).copy_(y)
    if type(y) is not Tensor or torch._C._functorch.is_functorch_wrapped_tensor(y):
        # What is inside cannot be asked.
        return y.clone()
    strides = torch.empty_like(x, device="meta").stride()
    shared = y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    if y.stride() == strides and not (shared or y._is_view()):
        return y
    return torch.empty_like(x).copy_(y)


def bit(x: Tensor, pair: Pair) -> Tensor:
    """The unpacked mask: what the input says of each element, as booleans."""
    pair, x = fitted(pair, x), _wide(x)
    if pair.bit == "positive":
        return ~(x <= 0)
    if pair.bit == "interval":
        low, high = floats(pair.texts.interval)
        return ~(x < low) & ~(x > high)
    passes = formula_of(pair.row).passes
    assert passes is not None
    return passes(x, *floats(pair.texts.numbers))


def gradient(
    g: Tensor,
    slope: Tensor,
    passes: Tensor | None,
    y: Tensor | None,
    pair: Pair,
    scale: Tensor | None,
    x: Tensor | None = None,
) -> Tensor:
    """``passes and gate(g) ? (scale · slope) · g : +0`` in the compute type, gates held fixed.

    A condition is used once: one that is used twice Inductor stores as bytes, which is slow.
    """
    rule = pair.rule
    threshold, clip, _ = floats(pair.texts.rule)
    if not math.isinf(clip):
        g = torch.clamp(g, -clip, clip)
    tested = None
    if rule.gradient_gate == "gradient":
        tested = g <= 0
    elif rule.gradient_gate == "product":
        tested = slope * g <= 0
    elif rule.gradient_gate == "output":
        assert y is not None
        tested = y * g <= threshold
    if rule.custom:
        at = {"slope": slope, "x": x, "y": y}
        read = [at[name] for name in pair.reads]
        sent = RULES[rule.custom[0]](g, *read, *floats(pair.texts.custom))
        # The sum makes +0 of −0, which is what blocks.
        product = _scale(pair, scale, g) * sent + 0.0
    else:
        product = (_scale(pair, scale, g) * slope) * g
    if tested is not None:
        product = torch.where(tested, 0.0, product)
    return product if passes is None else torch.where(passes, product, 0.0)


def _two_slopes(passes: Tensor, pair: Pair, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """The slope where `passes` holds and where it does not, and what blocks: a slope of 0."""
    high, low = floats(pair.texts.slopes)
    if pair.low_blocks:
        return torch.full_like(like, high), passes
    return torch.where(passes, high, torch.full_like(like, low)), None


def _constant_slope(like: Tensor, pair: Pair) -> tuple[Tensor, Tensor | None]:
    slope = torch.full_like(like, floats(pair.texts.slopes)[0])
    return slope, torch.zeros_like(like, dtype=torch.bool) if pair.flat else None


def slope_of_output(y: Tensor, pair: Pair) -> tuple[Tensor, Tensor | None]:
    """f'(x) from y in the compute type, and what blocks (None: nothing)."""
    if pair.rule.slope == "identity" or pair.row.slope_from == CONSTANT:
        return _constant_slope(y, pair)
    from_output = formula_of(pair.row).from_output
    assert from_output is not None
    found = from_output(y, *floats(pair.texts.numbers))
    return _two_slopes(found, pair, y) if pair.row.slope_from == MASK else (found, None)


def slope_of_input(x: Tensor, pair: Pair) -> tuple[Tensor, Tensor | None]:
    """f'(x) from x in the compute type, and what blocks (None: nothing)."""
    if pair.rule.slope == "identity" or pair.row.slope_from == CONSTANT:
        return _constant_slope(x, pair)
    formula, numbers = formula_of(pair.row), floats(pair.texts.numbers)
    if formula.passes is not None:
        return _two_slopes(formula.passes(x, *numbers), pair, x)
    assert formula.slope is not None
    blocks = formula.flat is not None and not pair.rule.custom
    passes = ~formula.flat(x, *numbers) if blocks else None  # type: ignore[misc]
    return formula.slope(x, *numbers), passes


def gradient_of_nothing(g: Tensor, pair: Pair, scale: Tensor | None) -> Tensor:
    """gx from g alone."""
    if pair.flat:
        return torch.zeros_like(g)
    pair, wide = fitted(pair, g), _wide(g)
    slope = torch.full_like(wide, floats(pair.texts.slopes)[0])
    return _narrow(gradient(wide, slope, None, None, pair, scale), g.dtype)


def gradient_of_mask(g: Tensor, mask: Tensor, pair: Pair, scale: Tensor | None) -> Tensor:
    """gx from g and the unpacked mask."""
    pair, wide = fitted(pair, g), _wide(g)
    slope, passes = _two_slopes(mask, pair, wide)
    return _narrow(gradient(wide, slope, passes, None, pair, scale), g.dtype)


def gradient_of_output(g: Tensor, y: Tensor, pair: Pair, scale: Tensor | None) -> Tensor:
    """gx from g and y; differentiable in both."""
    pair, wide = fitted(pair, y), _wide(y)
    slope, passes = slope_of_output(wide, pair)
    return _narrow(gradient(_wide(g), slope, passes, wide, pair, scale), g.dtype)


def gradient_of_input(g: Tensor, x: Tensor, pair: Pair, scale: Tensor | None) -> Tensor:
    """gx from g and x, for any pair; differentiable in both."""
    pair, wide = fitted(pair, x), _wide(x)
    slope, passes = slope_of_input(wide, pair)
    if pair.rule.input_gate is not None:
        gate = bit(x, pair)
        passes = gate if passes is None else passes & gate
    needs_value = pair.rule.gradient_gate == "output" or "y" in pair.reads
    y = _wide(_value(x, pair)) if needs_value else None
    return _narrow(gradient(_wide(g), slope, passes, y, pair, scale, wide), g.dtype)


class Reversal(function.Function):
    """x as a view, whose backward is ``number · scale · g``, for a compiler to fuse.

    As `gradient_of_nothing` of a reversal has it, in few steps.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, number: float, scale: Tensor | None) -> Tensor:
        ctx.call = (number, scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        number, scale = ctx.call
        gx = number * _wide(g)
        if scale is not None:
            # Not made a factor of g's dtype first, which a compiler would do before the backward
            # runs; and never of two tensors without dimensions, of which the wider dtype wins.
            gx = (gx.unsqueeze(0) * scale).squeeze(0)
        return _narrow(gx, g.dtype), None, None


def derivative_of_output(g: Tensor, y: Tensor, pair: Pair) -> Tensor:
    """f'(x)·g from y, whatever the rule; differentiable in both."""
    row, wide = pair.row, _wide(y)
    if row.slope_from == CONSTANT:
        return row.slope_values(floats(pair.texts.numbers))[0] * g
    from_output = formula_of(row).from_output
    assert from_output is not None
    slope = from_output(wide, *floats(pair.texts.numbers))
    if row.slope_from == MASK:
        high, low = row.slope_values(floats(pair.texts.numbers))
        slope = torch.where(slope, high, torch.full_like(wide, low))
    return _narrow(slope * _wide(g), g.dtype)
