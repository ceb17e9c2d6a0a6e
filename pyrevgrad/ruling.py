"""A rule of the user's own: a PyTorch function, and a Triton one that runs it fused on a GPU.

`pyrevgrad.custom_rule` is its function. Imports the tables, the rules and the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import backends, rules, triton_backend
from .custom_rules import CUSTOM_RULES, READABLE, CustomRule
from .given import (
    Made,
    check_elementwise,
    check_name,
    check_triton,
    constants_of,
    made_before,
    parameters_of,
    positional,
    try_out,
)
from .reference import formulas
from .rules import Rule

Function = Callable[..., Tensor]
_POINTS = (-1.5, 0.0, 0.7, float("nan"), float("inf"))


_MADE: dict[str, Made] = {}


def custom_rule(
    name: str,
    sent: Function,
    *,
    triton: Any = None,
    parameters: Mapping[str, float] | None = None,
    text: str | None = None,
    replace: bool = False,
) -> Rule:
    """A rule of your own, for any activation: ``gx = scale · sent(g, …) + 0``.

    What `sent` needs of the forward it says by the names of its arguments: ``g`` first, then any
    of ``slope``, ``x`` and ``y`` in this order, then the parameters. Backward keeps what these
    need and no more, as `plan` tells: nothing for ``g`` alone, for ``slope`` what the ordinary
    backward keeps, the input for ``x``, the output for ``y`` where that gives f'(x), else the
    input. Triton's function runs it in one kernel on CUDA; everywhere else, under torch.compile
    and for second derivatives PyTorch's does.

    Parameters
    ----------
    name : str
        A Python name that no rule has.
    sent : callable
        What is sent back, in plain differentiable PyTorch: g, f'(x), x and y of any one shape,
        float32 or float64; the result of the same shape and dtype, each element made of its own
        numbers alone and the same each time. Half types arrive widened to float32, y as it was
        returned.
    triton : callable, optional
        The same as a ``@triton.jit`` function of scalars, with arguments of the same names, that
        calls nothing but triton's own language and other such functions.
    parameters : mapping of str to float, optional
        At most two parameters with their defaults, any finite numbers, passed by position.
    text : str, optional
        What is sent as a reader would write it in the names of the arguments, for `Rule.formula`.
    replace : bool
        Whether it takes the place of another that was made under this name and takes the same
        arguments. A rule stands for its name: every rule, layer and graph that holds it sends what
        the new one says from then on. Whatever was compiled is compiled anew.

    Returns
    -------
    Rule
        With the default parameters; `Rule.given` changes them. It is scaled and clipped as any
        other, and takes ``dataclasses.replace(rule, input_gate="positive")`` and the gates on g,
        which block outside `sent`. The same arguments give the same rule again.

    Raises
    ------
    TypeError
        An argument of the wrong type; a function that does not keep shape and dtype, or whose
        arguments have other names; a Triton function that is none, or of other arguments.
    ValueError
        A name that is no Python name or that is taken, or more than two parameters; a function
        that is not elementwise, or random, as far as a few numbers show.

    Notes
    -----
    A slope of 0 is a number here and blocks nothing: 0·inf is NaN, so select with `torch.where`.
    A zero that is sent is +0. Gates are held fixed in second derivatives, `sent` is differentiated.
    Forward-mode gradients, which need a rule that is linear in g, are refused.

    Examples
    --------
    >>> import torch, pyrevgrad
    >>> def at_least(g, slope, least):
    ...     return torch.where(slope < least, least, slope) * g
    >>> revived = custom_rule("at_least", at_least, parameters={"least": 0.01},
    ...                       text="max(slope, least)·g")
    >>> x = torch.tensor([-1.0, 2.0], requires_grad=True)
    >>> torch.autograd.grad(pyrevgrad.relu(x, revived).sum(), x)
    (tensor([0.0100, 1.0000]),)
    >>> revived.given(least=0.1).formula("relu")
    'gx = max(slope, least)·g, where slope = x > 0 ? 1 : 0, least = 0.1'
    >>> pyrevgrad.plan("relu", revived)
    Plan(keeps='mask', bytes_per_element=0.125)
    """
    _check_name(name)
    numbers = dict(parameters or {})
    row = _row(name, sent, numbers, text)
    given = (sent, triton, constants_of(triton), _as_given(row))
    made = made_before(_MADE, name, given, f"the rule {name!r}", replace)
    if made is not None:
        return made
    _try(row, sent)
    if triton is not None:
        _check_triton(row, triton)
    _check_replaced(row, triton)
    CUSTOM_RULES[name] = row
    formulas.RULES[name] = sent
    if triton is not None:
        triton_backend.add_rule(name, triton)
    if name in _MADE:
        backends.forget_compiled()
    rule = Rule(custom=(name, *row.resolve({})))
    _MADE[name] = Made(given, rule)
    return rule


def _check_replaced(row: CustomRule, triton: Any) -> None:
    """ValueError unless what holds the name can go on with `row`, and kernels with `triton`."""
    old = CUSTOM_RULES.get(row.name)
    if old is None:
        return
    taken, takes = (
        ["g", *one.reads, *(parameter.name for parameter in one.parameters)] for one in (old, row)
    )
    if taken != takes:
        raise ValueError(
            f"custom: the rule {row.name} takes {', '.join(taken)}, and what replaces it must take "
            f"the same, since rules that hold its name go on with it; it takes {', '.join(takes)}"
        )
    if triton is None and _MADE[row.name].given[1] is not None:
        raise ValueError(
            f"custom: the rule {row.name} has a Triton function, and what replaces it needs one: "
            "kernels go on with it"
        )


def _as_given(row: CustomRule) -> tuple[Any, ...]:
    """`row` as plain values, which compare."""
    numbers = tuple((parameter.name, parameter.default) for parameter in row.parameters)
    return (row.reads, numbers, row.text)


def _check_name(name: object) -> None:
    if check_name(name) in rules.NAMES:
        raise ValueError(f"custom: pyrevgrad has a rule {name!r} already; choose another name")


def _row(name: str, sent: object, numbers: Mapping[str, float], text: str | None) -> CustomRule:
    if not callable(sent):
        raise TypeError(f"custom: the rule {name} must be a function of tensors")
    parameters = parameters_of(name, numbers, ("self", "g", *READABLE))
    if not (text is None or isinstance(text, str)):
        raise TypeError(f"custom: text of {name} must be a string, not {type(text).__name__}")
    taken = positional(sent)
    if taken is None:
        raise TypeError(f"custom: {name} does not tell its arguments; wrap it in a def")
    reads = _reads(name, taken, tuple(numbers))
    return CustomRule(name, reads, parameters, text or f"{name}({', '.join(taken)})")


def _reads(name: str, taken: list[str], numbers: tuple[str, ...]) -> tuple[str, ...]:
    """What the arguments `taken` say is read; TypeError unless they are in order and complete."""
    reads = tuple(argument for argument in READABLE if argument in taken)
    if taken != ["g", *reads, *numbers]:
        listed = ", ".join(numbers) or "none"
        raise TypeError(
            f"custom: the rule {name} must take g, then any of slope, x and y in this order, then "
            f"its parameters ({listed}); it takes {', '.join(taken) or 'none'}"
        )
    return reads


def _try(row: CustomRule, sent: Function) -> None:
    """TypeError or ValueError unless the function makes new tensors of its arguments' kind, each
    element of its own numbers."""
    what, count, numbers = f"the rule {row.name}", 1 + len(row.reads), row.resolve({})
    for dtype in (torch.float32, torch.float64):
        try_out(what, sent, count, _POINTS, dtype, numbers)
    check_elementwise(what, sent, count, numbers)


def _check_triton(row: CustomRule, function: Any) -> None:
    names = ["g", *row.reads, *(parameter.name for parameter in row.parameters)]
    check_triton(f"function of the rule {row.name}", function, len(names), ", ".join(names))
    if list(function.arg_names) != names:
        raise TypeError(
            f"custom: Triton's function of the rule {row.name} must take {', '.join(names)}; "
            f"it takes {', '.join(function.arg_names)}"
        )
