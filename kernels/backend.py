"""The Triton backend: launches the kernels for a pair, in any layout.

Imports the kernels and, for their names, pyrevgrad's tables; knows nothing of autograd.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy
import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from pyrevgrad import masks

from . import sweep
from .formulas import FORMULAS, REPLACED, RULES, Formula
from .layout import contiguous_strides, dense, laid_out
from .mathematics import INTERPRETED as _INTERPRETED

#: Whether the kernels run under Triton's interpreter, on tensors of the CPU too; and whether
#: Triton's own functions do, which were made when triton was imported.
INTERPRETED = bool(_INTERPRETED)
LANGUAGE_INTERPRETED = isinstance(triton.language.sum, InterpretedFunction)
OLDEST_CAPABILITY = (8, 0)
_ONE_LAUNCH = threading.Lock()

Arguments = Mapping[str, Any]


def _parts(size: int, mask: bool) -> int:
    """In how many accesses of 16 bytes a thread takes the eight elements of a mask's byte."""
    return size // 2 if mask else 1


def _shared_arguments(pair: Any) -> dict[str, Any]:
    a, b = (*pair.numbers, 0.0, 0.0)[:2]
    low, high = pair.interval
    return {
        "a": a, "b": b, "low": low, "high": high, "arity": len(pair.numbers), "BLOCK": sweep.BLOCK,
    }  # fmt: skip


def _formula(row: Any) -> Formula:
    """The functions of `row`, which keeps its own where others stand under its name since."""
    return REPLACED.get(row) or FORMULAS[row.name]


@functools.lru_cache(maxsize=8192)
def forward_arguments(pair: Any, mask: bool, size: int) -> Arguments:
    """The forward kernel's arguments but for tensors: with a mask or not, elements of `size`."""
    formula = _formula(pair.row)
    bit = pair.bit if mask else "none"
    return {
        **_shared_arguments(pair),
        "value": formula.value,
        "passes": formula.passes if bit == "own" else None,
        "BIT": bit,
        "PARTS": _parts(size, mask),
    }


def _slope_functions(formula: Formula, pair: Any) -> Arguments:
    """What gives the slope where the output or the input is kept; none where it is constant."""
    empty = {"slope": None, "passes": None, "flat": None}
    if pair.rule.slope == "identity" or pair.keeps in ("nothing", "mask"):
        return empty
    two = formula.passes is not None
    if pair.keeps == "output":
        return {**empty, "passes" if two else "slope": formula.from_output}
    if two:
        return {**empty, "passes": formula.passes}
    # To a custom rule a slope of 0 is a number like any other.
    return {**empty, "slope": formula.slope, "flat": None if pair.rule.custom else formula.flat}


@functools.lru_cache(maxsize=8192)
def backward_arguments(pair: Any, size: int) -> Arguments:
    """The backward kernel's arguments but for tensors: elements of `size`."""
    rule = pair.rule
    formula = _formula(pair.row)
    reads_output = rule.gradient_gate == "output" or "y" in pair.reads
    needs_value = pair.keeps == "input" and reads_output
    return {
        **_shared_arguments(pair),
        **_slope_functions(formula, pair),
        "slope_high": pair.slope_high,
        "slope_low": pair.slope_low,
        "threshold": rule.threshold,
        "clip": rule.clip,
        "scale": rule.scale,
        "value": formula.value if needs_value else None,
        "KEEPS": pair.keeps,
        "BIT": pair.bit if pair.keeps == "input" else "none",
        "GATE": rule.gradient_gate or "none",
        "CLIPPED": not math.isinf(rule.clip),
        "BLOCKS": pair.low_blocks,
        "PARTS": _parts(size, pair.keeps == "mask"),
        **_sent_arguments(rule),
    }


def _sent_arguments(rule: Any) -> Arguments:
    """A custom rule's function, what it reads as bits, its parameters."""
    name, *numbers = rule.custom or (None,)
    c, d = (*numbers, 0.0, 0.0)[:2]
    reads = sum(bit for bit, read in ((1, "slope"), (2, "x"), (4, "y")) if read in rule.reads)
    return {"c": c, "d": d, "sent": RULES.get(name), "READS": reads, "numbers": len(numbers)}


@contextmanager
def _interpreter() -> Iterator[None]:
    # One place of the grid for the whole process; and past the range of a type NumPy warns.
    with _ONE_LAUNCH, numpy.errstate(all="ignore"):
        yield


def _guard(x: Tensor) -> AbstractContextManager[Any]:
    """The device of `x` as the current one, where a launch goes."""
    if INTERPRETED:
        return _interpreter()
    if x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)


def _run(kernel: Any, arguments: Arguments, *tensors: Any) -> None:
    count = tensors[0].numel()
    if count == 0:
        return
    grid = (-(-count // sweep.BLOCK),)
    with _guard(tensors[0]):
        kernel[grid](*tensors, count, **arguments, num_warps=sweep.WARPS)


def _forward(x: Tensor, y: Tensor, mask: Tensor | None, pair: Any) -> None:
    _run(sweep.forward, forward_arguments(pair, mask is not None, x.element_size()), x, y, mask)


def _empty_mask(x: Tensor) -> Tensor:
    return torch.empty((x.numel() + 7) // 8, dtype=torch.uint8, device=x.device)


class Triton:
    """Triton's kernels: one each way, their masks packed in memory order."""

    name = "triton"

    @staticmethod
    def value(x: Tensor, pair: Any) -> Tensor:
        x = dense(x.resolve_neg())
        y = torch.empty_like(x)
        _forward(x, y, None, pair)
        return y

    @staticmethod
    def value_and_mask(x: Tensor, pair: Any) -> tuple[Tensor, Tensor]:
        x = dense(x.resolve_neg())
        y, mask = torch.empty_like(x), _empty_mask(x)
        _forward(x, y, mask, pair)
        return y, mask

    @staticmethod
    def value_(x: Tensor, pair: Any) -> None:
        inner = dense(x)
        _forward(inner, inner, None, pair)
        if inner is not x:
            x.copy_(inner)

    @staticmethod
    def value_and_mask_(x: Tensor, pair: Any) -> Tensor:
        inner, mask = dense(x), _empty_mask(x)
        _forward(inner, inner, mask, pair)
        if inner is not x:
            x.copy_(inner)
        return mask

    @staticmethod
    def backward(
        g: Tensor, kept: Tensor | None, pair: Any, scale: Tensor | None, strides: Any = None
    ) -> Tensor:
        g = g.resolve_neg()
        for other in (kept, scale):
            if other is not None and other.device != g.device:
                raise ValueError(
                    f"the gradient is on {g.device} and what its backward reads on "
                    f"{other.device}; they must share a device"
                )
        if pair.keeps == "nothing":
            if pair.flat:
                return torch.zeros_like(g)
            g = dense(g)
        elif pair.keeps == "mask":
            assert kept is not None
            # A saved-tensor hook may have brought it back otherwise than it was.
            kept = kept.contiguous()
            g = laid_out(g, contiguous_strides(g.shape) if strides is None else strides)
        else:
            assert kept is not None
            kept = dense(kept.resolve_neg())
            g = laid_out(g, kept.stride())
        gx = torch.empty_like(g)
        _run(sweep.backward, backward_arguments(pair, g.element_size()), g, kept, gx, scale)
        return gx

    unpacked = staticmethod(masks.unpacked)
    mask_strides = staticmethod(masks.mask_strides)


TRITON = Triton()


def serves(name: str) -> bool:
    """Whether there are Triton functions for the activation `name`."""
    return name in FORMULAS


def serves_rule(name: str) -> bool:
    """Whether there is a Triton function for the custom rule `name`."""
    return name in RULES
