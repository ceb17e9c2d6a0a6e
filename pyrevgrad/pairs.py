"""An activation with a rule: everything that is decided before a tensor is seen.

Imports the tables only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .activations import CONSTANT, MASK, OUTPUT, Activation
from .rules import NOTHING, Rule, plan_kind

_FLOAT32_MAX = (2 - 2**-23) * 2.0**127
# The least number that rounds to no float32.
_FLOAT32_OVERFLOW = (2 - 2**-24) * 2.0**127


def floats(texts: tuple[str, ...]) -> tuple[float, ...]:
    """The numbers that `Texts` has as text."""
    return tuple(map(float, texts))


class Texts(NamedTuple):
    """The floats of a pair as text, for what torch.compile traces.

    Of a float that it finds in an object the compiler makes an input of its graph, under
    ``dynamic=True`` or where two objects differ, and fails where two Functions share that input.
    A text it takes for a constant, and the float made of it too.
    """

    numbers: tuple[str, ...]
    interval: tuple[str, ...]
    slopes: tuple[str, ...]
    #: Threshold, clip and scale.
    rule: tuple[str, ...]
    custom: tuple[str, ...]
    #: The scale again, for a tensor to multiply before the product is rounded.
    factor: tuple[str, ...]

    @classmethod
    def of(
        cls,
        numbers: tuple[float, ...],
        interval: tuple[float, float],
        slopes: tuple[float, float],
        rule: Rule,
    ) -> Texts:
        """What a pair of these reads."""
        of_rule = (rule.threshold, rule.clip, rule.scale)
        parts = (numbers, interval, slopes, of_rule, rule.custom[1:], (rule.scale,))
        return cls(*(tuple(repr(float(number)) for number in part) for part in parts))

    def in_float32(self) -> Texts:
        """The same but for `factor`, with what overflows float32 as infinite, as a cast would."""
        parts = (tuple(repr(_in_float32(number)) for number in part) for part in map(floats, self))
        return Texts(*parts)._replace(factor=self.factor)


# Not frozen: torch.compile before 2.11 makes a frozen argument of a Function anew from all of its
# fields, and a Rule among them takes no such arguments.
@dataclass(eq=False)
class Pair:
    """One activation under one rule at one width of dtype; made once, shared and never changed.

    Attributes
    ----------
    row : Activation
    texts : Texts
        The pair's floats; outside of what is traced, its properties have them.
    rule : Rule
        Without a tensor scale, which travels beside the pair.
    keeps : {"nothing", "mask", "output", "input"}
    bit : {"none", "own", "positive", "interval"}
        What the input says of an element: the mask's bit, or the rule's input gate.
    in_float32 : Pair or None
        The pair with what overflows float32 as infinite, as a cast would make it; None where
        nothing does.
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
    by_output : Pair or None
        The pair that keeps y in place of bits, for a compiler, which packs none; None where y does
        not tell, or nothing is packed.
    program : torch.Tensor or None
        The pair as numbers for the native library.
    """

    row: Activation
    texts: Texts
    rule: Rule
    keeps: str
    bit: str
    in_float32: Pair | None = None
    exact: bool = False
    passes_through: bool = False
    flat: bool = False
    low_blocks: bool = False
    reads: tuple[str, ...] = ()
    by_output: Pair | None = None
    program: Any = None

    @property
    def numbers(self) -> tuple[float, ...]:
        """The activation's parameters in table order."""
        return floats(self.texts.numbers)

    @property
    def interval(self) -> tuple[float, float]:
        """For ``bit="interval"``."""
        low, high = floats(self.texts.interval)
        return low, high

    @property
    def slope_high(self) -> float:
        """The slope where a mask's bit is set, or the constant slope, the rule's slope applied."""
        return floats(self.texts.slopes)[0]

    @property
    def slope_low(self) -> float:
        """The slope where a mask's bit is not set."""
        return floats(self.texts.slopes)[1]


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
    texts = Texts.of(numbers, interval, (high, low), rule)
    pair = Pair(row, texts, rule, keeps, bit, None, exact, through, flat, low_blocks, rule.reads)
    pair.in_float32 = _pair_in_float32(pair)
    pair.by_output = _by_output(pair, half)
    return pair


def _by_output(pair: Pair, half: bool) -> Pair | None:
    row, rule = pair.row, pair.rule
    if row.name == "relu" and pair.keeps == MASK and pair.bit == "positive" and not rule.custom:
        # relu's own slope is that gate.
        rule = replace(rule, slope="exact", input_gate=None)
    elif pair.bit != "own":
        return None
    if not row.output_suffices(pair.numbers) or (half and row.input_in_half):
        return None
    found = replace(pair, rule=rule, keeps=OUTPUT, bit="none", in_float32=None)
    found.in_float32 = _pair_in_float32(found)
    return found


def _in_float32(number: float) -> float:
    if abs(number) <= _FLOAT32_MAX:
        return number
    return math.copysign(_FLOAT32_MAX if abs(number) < _FLOAT32_OVERFLOW else math.inf, number)


def _pair_in_float32(pair: Pair) -> Pair | None:
    texts = pair.texts.in_float32()
    return None if texts == pair.texts else replace(pair, texts=texts)
