"""An activation with a rule: everything that is decided before a tensor is seen.

Imports the tables only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .activations import CONSTANT, MASK, Activation
from .rules import NOTHING, Rule, plan_kind

FLOAT32_MAX = (2 - 2**-23) * 2.0**127


# Not frozen: torch.compile before 2.11 makes a frozen argument of a Function anew from all of its
# fields, and a Rule among them takes no such arguments.
@dataclass(eq=False)
class Pair:
    """One activation under one rule at one width of dtype; made once, shared and never changed.

    Attributes
    ----------
    row : Activation
    numbers : tuple of float
        The activation's parameters in table order.
    rule : Rule
        Without a tensor scale, which travels beside the pair.
    keeps : {"nothing", "mask", "output", "input"}
    bit : {"none", "own", "positive", "interval"}
        What the input says of an element: the mask's bit, or the rule's input gate.
    interval : (float, float)
        For ``bit="interval"``.
    slope_high, slope_low : float
        The two slopes of a mask (or the constant slope and 0), the rule's slope applied.
    fits_float32 : bool
        Whether no finite number of the pair overflows float32.
    exact : bool
        Whether the backward is the ordinary one (a tensor scale aside).
    passes_through : bool
        Whether gx is g itself (a tensor scale aside).
    flat : bool
        Whether nothing is ever sent: a slope of 0 everywhere.
    low_blocks : bool
        Whether an element of the low slope is blocked: 0, or a gate's.
    reads : tuple of str
        What a custom rule reads beside g.
    program : torch.Tensor or None
        The pair as numbers for the native library.
    """

    row: Activation
    numbers: tuple[float, ...]
    rule: Rule
    keeps: str
    bit: str
    interval: tuple[float, float]
    slope_high: float
    slope_low: float
    fits_float32: bool = True
    exact: bool = False
    passes_through: bool = False
    flat: bool = False
    low_blocks: bool = False
    reads: tuple[str, ...] = ()
    program: Any = None


def _slopes(row: Activation, numbers: tuple[float, ...], rule: Rule) -> tuple[float, float]:
    if rule.slope == "identity":
        return 1.0, 0.0
    if row.slope_from in (CONSTANT, MASK):
        high, *low = row.slope_values(numbers)
        return high, (low[0] if low else 0.0)
    return 1.0, 0.0


def make_pair(row: Activation, numbers: tuple[float, ...], rule: Rule, half: bool) -> Pair:
    """Decide what `row` under `rule` keeps and how its backward reads it."""
    keeps = plan_kind(row, numbers, rule, half)
    gate = rule.input_gate
    bit, interval = "none", (0.0, 0.0)
    if gate == "positive":
        bit = "positive"
    elif gate is not None:
        bit, interval = "interval", gate  # type: ignore[assignment]
    elif keeps == "mask":
        bit = "own"
    high, low = _slopes(row, numbers, rule)
    through = (
        keeps == NOTHING
        and high == rule.scale == 1.0
        and rule.gradient_gate is None
        and math.isinf(rule.clip)
        and not rule.custom
    )
    # What drops a custom backward would take the derivative instead.
    exact = rule.is_exact and not row.own_slope
    # To a custom rule the activation's own slope of 0 is a number like any other.
    flat = high == 0 and not rule.custom
    low_blocks = low == 0 and (not rule.custom or (keeps == "mask" and bit != "own"))
    all_numbers = (*numbers, *interval, high, low, rule.threshold, rule.clip, rule.scale)
    all_numbers += rule.custom[1:]
    fits = all(abs(number) <= FLOAT32_MAX or math.isinf(number) for number in all_numbers)
    return Pair(
        row, numbers, rule, keeps, bit, interval, high, low, fits, exact, through, flat, low_blocks,
        rule.reads,
    )  # fmt: skip
