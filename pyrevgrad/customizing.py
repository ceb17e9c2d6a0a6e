"""An activation of the user's own: PyTorch functions, and Triton ones that run it fused on a GPU.

`pyrevgrad.custom` is its function. Imports the tables, the reference and the functional room.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import backends, functional, triton_backend
from .activations import ACTIVATIONS, CUSTOM, INPUT, Activation
from .given import (
    Made,
    check_elementwise,
    check_name,
    check_takes,
    check_triton,
    constants_of,
    made_before,
    parameters_of,
    positional,
    try_out,
)
from .reference import formulas

Function = Callable[..., Tensor]
#: Where the table states f and f'.
_POINTS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0)
#: What `activation`, `nn.Activation` and `plan`, which take parameters by name, take beside them.
_TAKEN = ("self", "x", "name", "rule", "inplace", "activation", "dtype")


_MADE: dict[str, Made] = {}


class _ByName:
    """What `custom` has made as attributes, which is where pickle looks for its functions."""

    def __getattr__(self, name: str) -> Function:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in _MADE:
            raise ValueError(
                f"{name!r} was made by pyrevgrad.custom: make it before this is loaded"
            )
        return _MADE[name].result

    def __reduce__(self) -> str:
        return "made"


made = _ByName()


def custom(
    name: str,
    value: Function,
    slope: Function,
    *,
    triton: tuple[Any, Any] | None = None,
    parameters: Mapping[str, float] | None = None,
    text: tuple[str, str] = ("f(x)", "f′(x)"),
    rectifier: bool = False,
    replace: bool = False,
) -> Function:
    """An activation of your own, for any rule: ``gx = gate ? (scale · slope(x)) · g : +0``.

    It is known by its name from then on: to `pyrevgrad.activation`, `nn.Activation`, `plan` and
    `Rule.formula`. Backward keeps the input. Triton's functions run it in one kernel each way on
    CUDA; everywhere else, under torch.compile and for second derivatives PyTorch's functions do.

    Parameters
    ----------
    name : str
        A Python name that the activation table does not have.
    value, slope : callable
        f(x) and what stands for f′(x), in plain differentiable PyTorch, of (x, *parameters): x of
        any shape, float32 or float64; the result of the same shape and dtype, each element made of
        its own x alone and the same each time. Half types arrive widened to float32. `slope` need
        not be the derivative: a surrogate is welcome.
    triton : (value, slope), optional
        The same two as ``@triton.jit`` functions of scalars (x, *parameters), x of float32 or
        float64, that call nothing but triton's own language and other such functions.
    parameters : mapping of str to float, optional
        At most two parameters with their defaults, any finite numbers, passed by position.
    text : (str, str)
        f(x) and f′(x) as a reader would write them, for `Rule.formula`.
    rectifier : bool
        Whether it damps negative inputs and passes large positive ones, so that `pyrevgrad.swap`
        takes it under ``where=None``.
    replace : bool
        Whether it takes the place of another that was made under this name, as an edited cell of a
        notebook asks. Calls by name and the function, which is the same, compute the new one from
        then on; layers and graphs that were made before keep what they computed, a layer until its
        rule is set. Whatever was compiled is compiled anew.

    Returns
    -------
    callable
        ``function(x, rule=EXACT, *, inplace=False, **parameters)``. The same arguments give the
        same function again, so that a call inside a loop makes nothing twice. It pickles by its
        name, as functions do: call `custom` before you load it.

    Raises
    ------
    TypeError
        An argument of the wrong type; functions that do not take x and the parameters, or do not
        keep shape and dtype; Triton functions that are no ``@triton.jit`` functions of as many
        arguments; the same parameters by name in another order.
    ValueError
        A name that is no Python name, that is taken, or more than two parameters; functions that
        are not elementwise, or random, as far as a few numbers show.

    Notes
    -----
    A slope of exactly 0 is a factor here, not a gate: 0·inf is NaN. No derivative of `value` is
    ever taken, so exporters, which would take it, are refused while a gradient can be needed.

    Examples
    --------
    >>> import torch, pyrevgrad
    >>> def value(x):
    ...     return x + (torch.sqrt(x * x + 1) - 1) / 2
    >>> def slope(x):
    ...     return 1 + x / (2 * torch.sqrt(x * x + 1))
    >>> bent = custom("bent_identity", value, slope)
    >>> x = torch.tensor([-1.0, 2.0], requires_grad=True)
    >>> bent(x, pyrevgrad.GUIDED).sum().backward()
    >>> x.grad
    tensor([0., 1.])
    >>> pyrevgrad.reverse(0.5).formula("bent_identity")
    'gx = -0.5·f′(x)·g'
    """
    numbers = dict(parameters or {})
    _check_name(name)
    row = _row(name, numbers, text)
    pair = _pair(name, triton)
    constants = tuple(map(constants_of, pair))
    given = (value, slope, pair, constants, tuple(numbers.items()), text, bool(rectifier))
    found = made_before(_MADE, name, given, repr(name), replace)
    if found is not None:
        return found
    _check_order(name, tuple(numbers), (value, slope), pair)
    row = dataclasses.replace(row, points=_points(row, value, slope), rectifier=bool(rectifier))
    if triton is not None:
        takes = "x and the parameters"
        for what, function in zip(("value", "slope"), triton, strict=True):
            check_triton(f"{what} of {name}", function, 1 + len(numbers), takes)
    function = functional.named(row)
    function.__module__, function.__qualname__ = __name__, f"made.{name}"
    if name in CUSTOM:
        function = _retired(name, function)
    formulas.FORMULAS[name] = formulas.Formula(value, slope)
    if triton is not None:
        triton_backend.add(name, *triton)
    CUSTOM[name] = row
    if name in _MADE:
        backends.forget(name)
    _MADE[name] = Made(given, function)
    return function


def _retired(name: str, new: Any) -> Any:
    """The function that was handed out under `name`, which goes on by it as `new` would, while what
    else holds the row of then keeps its formulas."""
    row, function = CUSTOM[name], _MADE[name].result
    formulas.REPLACED.setdefault(name, []).append((row, formulas.FORMULAS[name]))
    triton_backend.retire(row)
    function.__doc__, function.__signature__ = new.__doc__, new.__signature__
    return function


def _check_name(name: object) -> None:
    if check_name(name) in ACTIVATIONS:
        raise ValueError(f"custom: the activation table has {name!r} already; choose another name")


def _row(name: str, numbers: Mapping[str, float], text: tuple[str, str]) -> Activation:
    parameters = parameters_of(name, numbers, _TAKEN)
    if not (isinstance(text, tuple) and len(text) == 2 and all(isinstance(t, str) for t in text)):
        raise TypeError(f"custom: text of {name} must be two strings, f(x) and f′(x)")
    return Activation(
        name, *text, INPUT, ((0.0, 0.0),) * 5, parameters=parameters, own_slope=True
    )  # fmt: skip


def _points(row: Activation, value: Function, slope: Function) -> Any:
    """f and f' where activations go wrong; an error where either is no elementwise function."""
    columns = []
    for what, function in (("value", value), ("slope", slope)):
        if not callable(function):
            raise TypeError(f"custom: {what} of {row.name} must be a function of tensors")
        named, numbers = f"{what} of {row.name}", row.resolve({})
        check_takes(named, function, tuple(parameter.name for parameter in row.parameters))
        for dtype in (torch.float32, torch.float64):
            y = try_out(named, function, 1, _POINTS, dtype, numbers)
        check_elementwise(named, function, 1, numbers)
        columns.append(y.flatten().tolist())
    return tuple(zip(*columns, strict=True))


def _check_order(
    name: str, numbers: tuple[str, ...], functions: tuple[Any, ...], pair: tuple[Any, ...]
) -> None:
    """TypeError where two name the same parameters in another order, since a call has no names."""
    named = {"parameters": numbers}
    for kind, given in (("", functions), ("Triton's ", pair)):
        for what, function in zip(("value", "slope"), given, strict=False):
            taken = positional(function) or ()
            named[kind + what] = tuple(taken[1 : 1 + len(numbers)])
    for (one, order), (other, reordered) in itertools.combinations(named.items(), 2):
        if order != reordered and sorted(order) == sorted(reordered):
            raise TypeError(
                f"custom: parameters of {name} go by position: {one} has them as "
                f"{', '.join(order)}, and {other} as {', '.join(reordered)}"
            )


def _pair(name: str, functions: object) -> tuple[Any, ...]:
    if functions is None:
        return ()
    if not (isinstance(functions, tuple) and len(functions) == 2):
        raise TypeError(f"custom: triton of {name} must be the pair (value, slope)")
    return functions
