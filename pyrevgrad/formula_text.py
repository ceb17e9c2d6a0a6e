"""A rule as text: its repr, and the formula of its backward for one activation or for any.

Data only; imports the activation table and that of custom rules. The rules call it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .activations import MASK, Activation
from .custom_rules import CUSTOM_RULES

if TYPE_CHECKING:
    from .rules import Rule


def name_of(rule: Rule, names: Mapping[tuple[object, ...], str]) -> str:
    """The expression that makes `rule`; `names` says what its structure is called, if anything.

    A tensor scale shows as ``<tensor>``. Without one, ``eval`` of the text gives an equal rule,
    where a custom rule's name stands for it.
    """
    unclipped = (*rule.structure[:-1], math.inf)
    text = names.get(unclipped) or _constructor(rule)
    factors = [] if rule.scale == 1.0 else [repr(rule.scale)]
    if rule.tensor is not None:
        factors.append("<tensor>")
    if text == "EXACT" and math.copysign(1.0, rule.scale) < 0:
        factors[0] = repr(-rule.scale)
        if rule.scale == -1.0 and rule.tensor is not None:
            del factors[0]
        text = f"reverse({factors.pop(0)})"
    text += "".join(f".scaled({factor})" for factor in factors)
    return text if math.isinf(rule.clip) else f"{text}.clipped({rule.clip!r})"


def _constructor(rule: Rule) -> str:
    gates = (rule.input_gate, rule.gradient_gate)
    if rule.custom:
        return _custom_constructor(rule)
    if rule.slope == "identity" and isinstance(gates[0], tuple) and gates[1] is None:
        low, high = gates[0]
        return f"clipped_straight_through({low!r}, {high!r})"
    if rule.slope == "exact" and gates == (None, "output"):
        return f"rectgrad({rule.threshold!r})"
    fields = ["slope", "input_gate", "gradient_gate", *(["threshold"] if rule.threshold else [])]
    return f"Rule({', '.join(f'{field}={getattr(rule, field)!r}' for field in fields)})"


def _custom_constructor(rule: Rule) -> str:
    parts = []
    for field in ("input_gate", "gradient_gate", "threshold"):
        if getattr(rule, field):
            parts.append(f"{field}={getattr(rule, field)!r}")
    if rule.slope == "identity" and "slope" in rule.reads:
        parts.append("slope='identity'")
    if parts:
        return f"Rule({', '.join([f'custom={rule.custom!r}', *parts])})"
    name, *numbers = rule.custom
    named = zip(CUSTOM_RULES[name].parameters, numbers, strict=True)
    given = ", ".join(f"{parameter.name}={number!r}" for parameter, number in named)
    return f"{name}.given({given})" if given else name


def formula_of(rule: Rule, row: Activation | None) -> str:
    """``gx = (what blocks) ? +0 : scale·slope·g``, without the parts that the rule leaves out."""
    slope, flat = "1", None
    if rule.custom:
        slope = _whole_slope(rule, row)
    elif rule.slope == "exact":
        slope, flat = ("f′(x)", None) if row is None else (slope_where_it_passes(row), row.flat)
    if slope == "0" and not rule.custom:
        return "gx = +0"
    known = [] if row is None else [text for text in definitions(row) if _uses(slope, text)]
    g = "g"
    if not math.isinf(rule.clip):
        g = "g′"
        known.append(f"g′ = clamp(g, {-rule.clip!r}, {rule.clip!r})")
    sloped = g if slope == "1" else f"{bracketed(slope)}·{g}"
    blocks = [*_input_blocks(rule, flat), *_gradient_blocks(rule, g, sloped)]
    gate = f"({' or '.join(blocks)}) ? +0 : " if blocks else ""
    if rule.custom:
        sloped, own = _custom_text(rule, g, slope)
        known = [*own, *known]
    where = f", where {', '.join(known)}" if known else ""
    return f"gx = {gate}{_scaled(rule, sloped)}{where}"


def _whole_slope(rule: Rule, row: Activation | None) -> str:
    """The slope as a custom rule reads it, where it is 0 too."""
    if rule.slope == "identity":
        return "1"
    if row is None:
        return "f′(x)"
    text = _parts(row.slope)[0].split(" = ")[0]
    # A bare condition stands for 1 where it holds.
    return f"{text} ? 1 : 0" if row.slope_from == MASK and "?" not in text else text


def _custom_text(rule: Rule, g: str, slope: str) -> tuple[str, list[str]]:
    """What a custom rule sends, and the definitions of what stands in it."""
    made = CUSTOM_RULES[rule.custom[0]]
    text = re.sub(r"(?<!\w)g(?!\w)", g, made.text)
    numbers = zip(made.parameters, rule.custom[1:], strict=True)
    own = [f"slope = {slope}"] if "slope" in made.reads else []
    return bracketed(text), own + [
        f"{parameter.name} = {number!r}" for parameter, number in numbers
    ]


def _input_blocks(rule: Rule, flat: str | None) -> list[str]:
    blocks = [] if flat is None else [flat]
    if isinstance(rule.input_gate, tuple):
        low, high = rule.input_gate
        blocks.append(f"x < {low!r} or x > {high!r}")
    elif rule.input_gate == "positive" and flat != "x <= 0":
        blocks.append("x <= 0")
    return blocks


def _gradient_blocks(rule: Rule, g: str, sloped: str) -> list[str]:
    tests = {
        "gradient": f"{g} <= 0",
        "product": f"{sloped} <= 0",
        "output": f"y·{g} <= {rule.threshold!r}",
    }
    return [] if rule.gradient_gate is None else [tests[rule.gradient_gate]]


def _scaled(rule: Rule, sloped: str) -> str:
    product = sloped if rule.tensor is None else f"λ·{sloped}"
    if rule.scale == -1.0:
        return f"-{product}"
    return product if rule.scale == 1.0 else f"{rule.scale!r}·{product}"


def definitions(row: Activation) -> list[str]:
    """What the row's texts define for themselves, such as ``σ(x) = 1 / (1 + e⁻ˣ)``."""
    return [*_parts(row.value)[1:], *_parts(row.slope)[1:]]


def _parts(text: str) -> list[str]:
    """An expression and the definitions after it; a comma inside a call does not count."""
    return re.split(r", (?=\S+ = )", text)


def _uses(expression: str, definition: str) -> bool:
    symbol = definition.split(" = ")[0]
    return re.search(rf"(?<!\w){re.escape(symbol)}(?!\w)", expression) is not None


def slope_where_it_passes(row: Activation) -> str:
    """The row's slope as one expression, without the region `row.flat` where it is 0."""
    slope = _parts(row.slope)[0].split(" = ")[0]
    if row.flat is None:
        return slope
    if slope.endswith(" : 0"):
        return slope.removesuffix(" : 0").split(" ? ")[1]
    # A bare condition stands for 1 where it holds.
    return "1" if row.slope_from == MASK else slope.removeprefix(f"{row.flat} ? 0 : ")


def bracketed(expression: str) -> str:
    """`expression` as a factor: in brackets where an operator other than · stands outside any."""
    outside = expression
    while "(" in outside:
        outside = re.sub(r"\([^()]*\)", "", outside)
    return f"({expression})" if " " in outside or "/" in outside else expression
