"""What `pyrevgrad.custom_rule` has made, as data: what a rule reads, its parameters, its text.

Imports the activation table, for its parameters, and checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .activations import Parameter
from .checks import closest

#: What a rule may read beside g, in the order in which it is given.
READABLE = ("slope", "x", "y")


@dataclass(frozen=True)
class CustomRule:
    """One rule of the user's own, without its functions.

    Attributes
    ----------
    name : str
    reads : tuple of str
        Some of `READABLE`, in that order.
    parameters : tuple of Parameter
    text : str
        What is sent, for `Rule.formula`.
    """

    name: str
    reads: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    text: str

    def resolve(self, given: Mapping[str, object]) -> tuple[float, ...]:
        """The parameters in order: `given` by name, defaults elsewhere, all checked."""
        names = [parameter.name for parameter in self.parameters]
        for name in given:
            if name not in names:
                raise TypeError(
                    f"the rule {self.name} has no parameter {name!r}: {closest(name, names)}"
                )
        return tuple(
            parameter.check(self.name, given.get(parameter.name, parameter.default))
            for parameter in self.parameters
        )


#: By name.
CUSTOM_RULES: dict[str, CustomRule] = {}


def reads_of(custom: tuple[Any, ...]) -> tuple[str, ...]:
    """What the custom part of a rule reads; nothing where there is none."""
    return CUSTOM_RULES[custom[0]].reads if custom else ()


def check_custom(custom: object) -> tuple[Any, ...]:
    """The custom part of a rule, checked: (name, *parameters), or ().

    Raises
    ------
    TypeError, ValueError
        No tuple that begins with a name; an unknown name; parameters that it does not take.
    """
    if not isinstance(custom, tuple) or (custom and not isinstance(custom[0], str)):
        raise TypeError(f"custom must be a tuple of a name and its parameters, not {custom!r}")
    if not custom:
        return ()
    name, *numbers = custom
    if name not in CUSTOM_RULES:
        known = closest(name, CUSTOM_RULES) if CUSTOM_RULES else "none has been made"
        raise ValueError(
            f"unknown custom rule {name!r}: {known} (pyrevgrad.custom_rule makes one, before a "
            "rule that was saved is loaded)"
        )
    made = CUSTOM_RULES[name]
    if len(numbers) != len(made.parameters):
        raise ValueError(
            f"the rule {name} takes {len(made.parameters)} parameters, got {len(numbers)}"
        )
    names = [parameter.name for parameter in made.parameters]
    return (name, *made.resolve(dict(zip(names, numbers, strict=True))))


def with_parameters(custom: tuple[Any, ...], given: Mapping[str, object]) -> tuple[Any, ...]:
    """`custom` with some parameters changed; TypeError where there is no custom rule."""
    if not custom:
        raise TypeError("given() changes the parameters of a custom rule, and this rule has none")
    made = CUSTOM_RULES[custom[0]]
    names = [parameter.name for parameter in made.parameters]
    before = dict(zip(names, custom[1:], strict=True))
    return (made.name, *made.resolve({**before, **given}))
