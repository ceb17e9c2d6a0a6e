"""What a user's own activation or rule is given: whether it is what was given before, and fits.

Imports nothing of ours.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any


@dataclass(frozen=True)
class Made:
    """What was made under a name, and of what."""

    given: tuple[Any, ...]
    result: Any


def made_before(made: dict[str, Made], name: str, given: tuple[Any, ...], what: str) -> Any:
    """What was made under `name` of the same, or None; ValueError if it was of something else."""
    found = made.get(name)
    if found is None:
        return None
    if len(given) == len(found.given) and all(map(same, given, found.given)):
        return found.result
    raise ValueError(
        f"custom: {what} was made before of something else, which its users still have; "
        "choose another name"
    )


def check_name(name: object) -> str:
    """`name`; TypeError or ValueError unless it is one that Python takes."""
    if not isinstance(name, str):
        raise TypeError(f"custom: name must be a string, not {type(name).__name__}")
    if not name.isidentifier() or iskeyword(name):
        raise ValueError(f"custom: {name!r} is no Python name")
    return name


def check_triton(what: str, function: Any, arguments: int, takes: str) -> None:
    """TypeError unless `function` is a ``@triton.jit`` function of so many arguments."""
    names = getattr(function, "arg_names", None)
    if names is None or not hasattr(function, "fn"):
        raise TypeError(f"custom: Triton's {what} must be a @triton.jit function")
    if len(names) != arguments:
        raise TypeError(
            f"custom: Triton's {what} must take {arguments} arguments, {takes}; "
            f"it takes {', '.join(names) or 'none'}"
        )


def same(one: Any, other: Any) -> bool:
    """Whether two arguments are the same; functions where they have the same place in the source,
    as where a notebook's cell runs again or a module is imported under two names."""
    one, other = getattr(one, "fn", one), getattr(other, "fn", other)
    if one is other:
        return True
    if not (isinstance(one, types.FunctionType) and isinstance(other, types.FunctionType)):
        return not callable(one) and bool(one == other)
    return (
        one.__code__ == other.__code__
        and one.__code__.co_filename == other.__code__.co_filename
        and one.__defaults__ == other.__defaults__
        and _same_cells(one, other)
    )


def _same_cells(one: types.FunctionType, other: types.FunctionType) -> bool:
    """Whether two functions of the same code close over the same things."""
    pairs = zip(one.__closure__ or (), other.__closure__ or (), strict=True)
    held = [(a.cell_contents, b.cell_contents) for a, b in pairs]
    return all(a is b or (isinstance(a, int | float | str) and a == b) for a, b in held)
