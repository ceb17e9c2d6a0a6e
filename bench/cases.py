"""What is measured: activation and rule pairs, read from the package's own tables.

Imports pyrevgrad's tables only; a row added there is a case here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pyrevgrad.activations import ACTIVATIONS, INPUT, OUTPUT
from pyrevgrad.rules import RULES, Rule


@dataclass(frozen=True)
class Case:
    """One activation under one rule of the tables, with default parameters."""

    activation: str
    rule_name: str

    @property
    def name(self) -> str:
        """As a filter sees it, such as ``relu/GUIDED``."""
        return f"{self.activation}/{self.rule_name}"

    @property
    def rule(self) -> Rule:
        """The rule itself."""
        return RULES[self.rule_name]

    @property
    def is_curved(self) -> bool:
        """Whether f is computed (exp, tanh, erf, a quotient) rather than selected."""
        return ACTIVATIONS[self.activation].slope_from in (OUTPUT, INPUT)

    @property
    def at_few_sizes(self) -> bool:
        """Whether a few sizes say enough: of curved activations, and of DeconvNet's relu."""
        return self.is_curved or self == DECONVNET


#: The pairs of the relu targets. `guided_scaled` multiplies by a scale as the idiom of the issue
#: does; `GUIDED` is the harder opponent, whose idiom needs no multiplication.
RELU_CASES = tuple(Case("relu", rule) for rule in ("guided_scaled", "GUIDED", "reverse"))

#: For the other libraries that have it; no target speaks of it.
DECONVNET = Case("relu", "DECONVNET")

#: Rows with a slope that must be computed, and a PyTorch function to compare with.
CURVED = tuple(
    row.name
    for row in ACTIVATIONS.values()
    if row.slope_from in (OUTPUT, INPUT) and row.torch_name is not None
)
CURVED_CASES = tuple(Case(name, rule) for name in CURVED for rule in ("reverse", "GUIDED"))
#: Whose compiled forms are timed too: our compiled code has a kernel of ours there.
SLOW_COMPILED = tuple(Case(name, "reverse") for name in CURVED if ACTIVATIONS[name].slow_compiled)
QUICK_CURVED = ("gelu", "silu", "tanh")


def all_cases() -> tuple[Case, ...]:
    """Every pair of the two tables."""
    return tuple(Case(activation, rule) for activation in ACTIVATIONS for rule in RULES)


def default_cases(quick: bool) -> tuple[Case, ...]:
    """The targets' pairs and relu's DeconvNet; in the quick form three curved activations."""
    curved = [c for c in CURVED_CASES if not quick or c.activation in QUICK_CURVED]
    return (*RELU_CASES, DECONVNET, *curved)


def finder(pattern: str) -> Callable[[str], object]:
    """What finds a filter in a name: GUIDED and guided_scaled are rules, and few recall which is
    written how."""
    return re.compile(pattern, re.IGNORECASE).search


def select(pattern: str | None, quick: bool) -> tuple[Case, ...]:
    """The default cases that `pattern` finds; where it finds none, those of the whole tables.

    Parameters
    ----------
    pattern : str or None
        A regular expression searched in ``activation/rule``, in whichever case.
    quick : bool

    Raises
    ------
    ValueError
        `pattern` is no regular expression, or finds nothing; the message lists the cases.

    Examples
    --------
    >>> [case.name for case in select("relu/rev", quick=True)]
    ['relu/reverse']
    """
    chosen = default_cases(quick)
    if pattern is None:
        return chosen
    try:
        matches = finder(pattern)
    except re.error as error:
        raise ValueError(f"the filter {pattern!r} is not a regular expression: {error}") from None
    for cases in (chosen, all_cases()):
        found = tuple(case for case in cases if matches(case.name))
        if found:
            return found
    raise ValueError(
        f"no case matches {pattern!r}; a case is activation/rule with an activation of "
        f"{', '.join(ACTIVATIONS)} and a rule of {', '.join(RULES)}"
    )
