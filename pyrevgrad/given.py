"""What a user's own activation or rule is given: whether it is what was given before, and fits.

Imports the activation table.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

import torch
from torch import Tensor

from .activations import Parameter

#: What is equal where it compares equal.
_PLAIN = (
    *(int, str, bytes, frozenset, set, range, slice, torch.device),
    types.BuiltinFunctionType,
)
#: What code does, without where it stands.
_DOES = (
    *("co_code", "co_consts", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_flags"),
    *("co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_exceptiontable"),
)
_ABSENT = object()
_THAT = ("that number", "those numbers")


@dataclass(frozen=True)
class Made:
    """What was made under a name, and of what."""

    given: tuple[Any, ...]
    result: Any


def made_before(
    made: dict[str, Made], name: str, given: tuple[Any, ...], what: str, replace: bool
) -> Any:
    """What was made under `name` of the same, or None; ValueError if it was of something else and
    is not to be replaced."""
    found = made.get(name)
    if found is None:
        return None
    if len(given) == len(found.given) and all(map(same, given, found.given)):
        return found.result
    if replace:
        return None
    raise ValueError(
        f"custom: {what} was made before of something else, which its users still have; "
        "choose another name, or pass replace=True"
    )


def check_name(name: object, what: str = "name") -> str:
    """`name`; TypeError or ValueError unless it is one that Python takes."""
    if not isinstance(name, str):
        raise TypeError(f"custom: {what} must be a string, not {type(name).__name__}")
    if not name.isidentifier() or iskeyword(name):
        raise ValueError(f"custom: {name!r} is no Python name")
    return name


def parameters_of(
    name: str, numbers: Mapping[str, float], taken: Sequence[str]
) -> tuple[Parameter, ...]:
    """The parameters of `name` as rows have them; an error for more than two, or one `taken`."""
    if len(numbers) > 2:
        raise ValueError(f"custom: {name} takes at most two parameters, got {len(numbers)}")
    for parameter in numbers:
        check_name(parameter, f"a parameter of {name}")
        if parameter in taken:
            raise ValueError(f"custom: {name} cannot have a parameter called {parameter!r}")
    return tuple(Parameter(key, Parameter(key, 0.0).check(name, n)) for key, n in numbers.items())


def try_out(
    what: str,
    function: Any,
    count: int,
    points: tuple[float, ...],
    dtype: torch.dtype,
    numbers: tuple[float, ...],
) -> Tensor:
    """What `function` makes of `count` tensors of `points`; another shape is tried as well.

    Raises
    ------
    TypeError
        No tensor of their shape and dtype.
    ValueError
        They are changed in place, or the result requires grad though they do not.
    """
    # Outside of what the caller may be in: inference tensors count no writes.
    with torch.inference_mode(False), torch.enable_grad():
        _tried(what, function, [_ordinary(dtype).roll(i, 0) for i in range(count)], numbers)
        given = [torch.tensor([points], dtype=dtype) for _ in range(count)]
        return _tried(what, function, given, numbers)


def check_elementwise(what: str, function: Any, count: int, numbers: tuple[float, ...]) -> None:
    """ValueError unless `function` makes of the numbers at each place of its `count` tensors what
    it makes of these alone and again."""
    # In float64, whose rounding is far below the tolerance, and where no usual function jumps.
    with torch.inference_mode(False), torch.enable_grad():
        given = [_ordinary(torch.float64).roll(i) for i in range(count)]
        first, again = (_tried(what, function, given, numbers).flatten() for _ in range(2))
        places = list(zip(*(tensor.flatten() for tensor in given), strict=True))
        parts = [
            _tried(what, function, [n.reshape(1, 1) for n in place], numbers) for place in places
        ]
        alone = torch.cat(parts).flatten()
    for other, how in ((again, "the second time"), (alone, f"of {_THAT[count > 1]} alone")):
        alike = torch.isclose(first, other, rtol=1e-4, atol=1e-6, equal_nan=True)
        if not alike.all():
            at = int((~alike).nonzero()[0])
            raise ValueError(
                f"custom: {what} must be elementwise and the same each time: of "
                f"{', '.join(f'{n:g}' for n in places[at])} among other numbers it made "
                f"{first[at]:g}, and {other[at]:g} {how}"
            )


def _ordinary(dtype: torch.dtype) -> Tensor:
    """Numbers of both signs, in a shape whose sizes all differ from 1."""
    return torch.linspace(-2.7183, 2.6458, 12, dtype=dtype).reshape(2, 3, 2)


def _tried(what: str, function: Any, given: list[Tensor], numbers: tuple[float, ...]) -> Tensor:
    """What `function` makes of `given`; the errors of `try_out`."""
    made = function(*given, *numbers)
    if any(tensor._version for tensor in given):
        raise ValueError(
            f"custom: {what} changes its arguments in place, and others read them: return a new "
            "tensor"
        )
    if not isinstance(made, Tensor):
        raise TypeError(f"custom: {what} returned {type(made).__name__}, not a Tensor")
    shape, dtype = given[0].shape, given[0].dtype
    if made.shape != shape or made.dtype != dtype:
        raise TypeError(
            f"custom: {what} must keep shape and dtype, and made "
            f"{made.dtype} {tuple(made.shape)} of {dtype} {tuple(shape)}"
        )
    if made.requires_grad:
        raise ValueError(
            f"custom: {what} reads a tensor that requires grad, which would get no "
            "gradient: detach it"
        )
    return made


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


def _triton(function: Any) -> Any:
    """The Python function inside Triton's, which is what it computes; else `function`."""
    return function.fn if hasattr(function, "arg_names") and hasattr(function, "fn") else function


def positional(function: Any) -> list[str] | None:
    """The names of what `function` takes by position; None where it does not tell."""
    try:
        taken = inspect.signature(_triton(function)).parameters.values()
    except (TypeError, ValueError):
        return None
    return [p.name for p in taken if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def check_takes(what: str, function: Any, numbers: tuple[str, ...]) -> None:
    """TypeError unless `function` can be called with x and `numbers` by position, or tells not."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None, *numbers)
    except TypeError as error:
        raise TypeError(
            f"custom: {what} must take x, then its parameters ({', '.join(numbers) or 'none'}); it "
            f"takes {', '.join(signature.parameters) or 'none'}: name them in parameters="
        ) from error


def constants_of(function: Any) -> dict[str, Any]:
    """The plain globals that a Triton function reads, as they are now: it compiles them in."""
    found: dict[str, Any] = {}
    waiting, met = [_triton(function)], set()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, types.FunctionType) or id(one) in met:
            continue
        met.add(id(one))
        for name in sorted(names_in(one.__code__) & one.__globals__.keys()):
            held = one.__globals__[name]
            if _triton(held) is not held:
                waiting.append(_triton(held))
            elif not isinstance(held, types.ModuleType):
                found[f"{one.__module__}.{name}"] = held
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two arguments are the same; functions where they do the same with the same things,
    wherever they stand, as where a notebook's cell runs again; layers where they hold the same."""
    return _same(one, other, set())


def _same(one: Any, other: Any, met: set[tuple[int, int]]) -> bool:
    """As `same`; functions in `met` are being compared already and count as the same."""
    one, other = _triton(one), _triton(other)
    if one is other or (id(one), id(other)) in met:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, types.FunctionType):
        met.add((id(one), id(other)))
        return _same_function(one, other, met)
    if isinstance(one, types.CodeType):
        return _same_code(one, other, met)
    if isinstance(one, types.MethodType):
        return one.__self__ is other.__self__ and _same(one.__func__, other.__func__, met)
    if isinstance(one, functools.partial):
        parts = (one.func, one.args, one.keywords)
        return _same(parts, (other.func, other.args, other.keywords), met)
    return _same_value(one, other, met)


def _same_value(one: Any, other: Any, met: set[tuple[int, int]]) -> bool:
    """Whether two values of one type, which are no functions, are equal bit for bit."""
    if isinstance(one, tuple | list):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(_same(a, b, met) for a, b in pairs)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key], met) for key in one)
    if isinstance(one, float):
        # By its digits: 0.0 is not -0.0, and a NaN is itself.
        return one.hex() == other.hex()
    if isinstance(one, complex):
        return _same((one.real, one.imag), (other.real, other.imag), met)
    if type(one) in (Tensor, torch.nn.Parameter):
        return _same_tensor(one, other)
    if isinstance(one, torch.nn.Module):
        # One class, so what it computes is in what it holds: numbers, hooks, tensors, layers.
        return _same(vars(one), vars(other), met)
    if type(one).__name__ == "constexpr" and hasattr(one, "value"):
        return _same(one.value, other.value, met)
    # What is left compares as it will, a function of C by what it is bound to.
    return isinstance(one, _PLAIN) and bool(one == other)


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    kinds = [(t.shape, t.dtype, t.device, t.layout, t.requires_grad) for t in (one, other)]
    if kinds[0] != kinds[1] or one.layout is not torch.strided or one.is_meta:
        return False
    bits = [t.detach().reshape(-1).contiguous().view(torch.uint8) for t in (one, other)]
    return torch.equal(*bits)


def _same_function(one: Any, other: Any, met: set[tuple[int, int]]) -> bool:
    """Whether two functions of Python have the same code, defaults, closure and globals."""
    for part in ("__code__", "__defaults__", "__kwdefaults__"):
        if not _same(getattr(one, part), getattr(other, part), met):
            return False
    closed, closed_over = ([_content(c) for c in f.__closure__ or ()] for f in (one, other))
    if not _same(closed, closed_over, met):
        return False
    if one.__globals__ is other.__globals__:
        return True
    return all(
        _same(one.__globals__.get(name, _ABSENT), other.__globals__.get(name, _ABSENT), met)
        for name in names_in(one.__code__)
    )


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # Nothing is bound to the name yet.
        return _ABSENT


def _same_code(one: Any, other: Any, met: set[tuple[int, int]]) -> bool:
    """Whether two pieces of code do the same, wherever they stand."""
    return all(_same(getattr(one, part, None), getattr(other, part, None), met) for part in _DOES)


def names_in(code: types.CodeType) -> set[str]:
    """The globals (and attributes) that `code` and what is defined in it name."""
    inner = [names_in(held) for held in code.co_consts if isinstance(held, types.CodeType)]
    return {*code.co_names}.union(*inner)
