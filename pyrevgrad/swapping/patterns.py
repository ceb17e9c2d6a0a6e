"""Activations written by hand: x·σ(x), x·(x > 0), max(x, 0), max(x, c·x), recognised as likely.

It follows which tensors are functions of one other tensor alone. Imports torch.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket


@dataclass(frozen=True)
class _Origin:
    """The tensor that this one is a function of, what saturates between, what was added last.

    `factor` is c where it is c times that tensor. A constant has no source, and what it is as
    `added`, where that is known.
    """

    source: object
    gate: str | None = None
    added: float | None = None
    factor: float | None = 1.0


_CLAMPS = {"relu6", "hardtanh", "clamp", "clip"}
_FLOORED = {"clamp", "clip", "clamp_min"}
_GATES = {
    *_CLAMPS, "sigmoid", "expit", "tanh", "erf", "hardsigmoid", "softplus", "gt", "ge", "lt", "le",
    "greater", "greater_equal", "less", "less_equal", "heaviside", "ndtr",
}  # fmt: skip
_PRODUCTS = {"mul", "multiply", "rmul", "imul"}
_SUMS = {"add", "radd", "iadd"}
_COPIES = {"float", "half", "double", "bfloat16", "clone"}
_CASTS = {*_COPIES, "int", "long", "bool", "to", "type", "type_as", "detach"}
_CARRIERS = {
    *_SUMS, *_CASTS, "sub", "rsub", "isub", "div", "true_divide", "truediv", "rdiv", "rtruediv",
    "itruediv", "pow", "square", "neg", "exp", "log1p", "expm1", "logical_not", "bitwise_not",
    "invert", "cube",
}  # fmt: skip
_CHOICES = {"where", "masked_fill"}
_MAXIMA = {"maximum", "max", "fmax"}
#: What makes a tensor of one number, which says nothing of where data come from.
_CONSTANTS = {
    "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones",
    "new_full", "tensor", "scalar_tensor",
}  # fmt: skip
_ALL = _GATES | _PRODUCTS | _CARRIERS | _CHOICES | _MAXIMA | _FLOORED | _CONSTANTS


def _functions() -> dict[Any, str]:
    made: dict[Any, str] = {}
    for name in _ALL:
        for spelled in (name, f"{name}_", f"__{name}__"):
            for room in (Tensor, torch, torch.special, torch.nn.functional, torch._C._nn):
                function = getattr(room, spelled, None)
                if callable(function):
                    made[function] = name
    return made


_FUNCTIONS = _functions()


def followed(function: Any) -> str | None:
    """The name under which `Patterns.follow` knows a function or an operator of ATen's, or None."""
    name = _FUNCTIONS.get(function)
    if name is not None or not isinstance(function, OpOverload | OpOverloadPacket):
        return name
    packet = function if isinstance(function, OpOverloadPacket) else function._overloadpacket
    space, _, bare = packet._qualified_op_name.partition("::")
    return bare.rstrip("_") if space == "aten" and bare.rstrip("_") in _ALL else None


class Patterns:
    """What was computed from what, while the tensors live and are not written into."""

    def __init__(self) -> None:
        self._origins: dict[int, tuple[weakref.ref[Tensor], int, _Origin]] = {}

    def origins(self, args: Any, kwargs: Any) -> list[_Origin]:
        """Where the tensors that a function is given come from; to be asked before it runs, since
        it may write into one."""
        return [self._origin(tensor) for tensor in _tensors((*args, *kwargs.values()))]

    def follow(
        self, name: str, args: Any, kwargs: Any, origins: list[_Origin], result: Any
    ) -> str | None:
        """Note where `result` comes from; the name of a pattern if this call completes one."""
        if not isinstance(result, Tensor):
            return None
        if name in _CONSTANTS:
            self._keep(result, _Origin(None, added=_value_of(name, args, kwargs)))
            return None
        varying = [origin for origin in origins if origin.source is not None]
        if name in _MAXIMA:
            return _maximum(origins, (*args, *kwargs.values()), result)
        if name in _FLOORED and self._floors_at_zeros(args, kwargs, varying, result):
            return f"{name}(x, zeros) written by hand"
        if name == "clamp_min":
            return None
        if origins and not varying and name in _CASTS:
            self._keep(result, origins[0])
        if not varying or any(origin.source is not varying[0].source for origin in varying):
            return None
        gates = [origin.gate for origin in varying if origin.gate is not None]
        if name in _PRODUCTS or name in _CHOICES:
            filled = name == "masked_fill" and 0 not in _numbers(args, kwargs)
            each = gates and _of_each_element(args, kwargs, origins, result)
            if each and len(gates) < len(varying) and not filled:
                self._keep(result, _Origin(object()))
                shown = "where(gate of x, x, …)" if name in _CHOICES else f"x·{gates[0]}(x)"
                return f"{shown} written by hand"
            if name in _CHOICES:
                return None
        if name in _CLAMPS and varying[0].added is None:
            # A clamp of x itself is an activation or a bound; of x + 3, the gate of hardswish.
            return None
        gate = name if name in _GATES else (gates[0] if gates else None)
        added = _only_number(args, kwargs) if name in _SUMS else None
        factor = _factor(name, args, kwargs, origins)
        self._keep(result, _Origin(varying[0].source, gate, added, factor))
        if name in _CLAMPS and varying[0].added == 3.0 and _to_six(name, args, kwargs):
            return f"{name}(x + 3), the hard sigmoid written by hand"
        return None

    def _floors_at_zeros(self, args: Any, kwargs: Any, varying: list[_Origin], result: Any) -> bool:
        """Whether a clamp of data is from constant zeros up; one zero is the swap's to take."""
        floor = kwargs.get("min", args[1] if len(args) > 1 else None)
        if not isinstance(floor, Tensor) or floor.numel() == 1 or not _of_data(varying, result):
            return False
        kept = self._kept(floor)
        return kept is not None and _is_zero(kept)

    def parameter_of(self, tensor: Tensor) -> Tensor | None:
        """The parameter that `tensor` was computed of alone, if it was."""
        kept = self._kept(tensor)
        if kept is None or not isinstance(kept.source, weakref.ref):
            return None
        return kept.source()

    def _kept(self, tensor: Tensor) -> _Origin | None:
        reference, version, origin = self._origins.get(id(tensor), (None, 0, None))
        same = reference is not None and reference() is tensor and version == _version(tensor)
        return origin if same else None

    def _origin(self, tensor: Tensor) -> _Origin:
        kept = self._kept(tensor)
        if kept is None:
            # A token and not the id, which another tensor may take over.
            own = isinstance(tensor, torch.nn.Parameter)
            base = _in_another_shape(tensor)
            if base is None:
                kept = _Origin(weakref.ref(tensor) if own else object())
            else:
                kept = self._origin(base)
            self._keep(tensor, kept)
        return kept

    def _keep(self, tensor: Tensor, origin: _Origin) -> None:
        key, origins = id(tensor), self._origins

        def forget(reference: Any) -> None:
            if origins.get(key, (None,))[0] is reference:
                del origins[key]

        origins[key] = (weakref.ref(tensor, forget), _version(tensor), origin)


def _in_another_shape(tensor: Tensor) -> Tensor | None:
    """The tensor of which this is a view that has all its numbers in their order, or None.

    Not a transpose, of which a product with that tensor is none of each element.
    """
    base = tensor._base if type(tensor) is Tensor and tensor._is_view() else None
    if base is None or base.numel() != tensor.numel() or base.dtype != tensor.dtype:
        return None
    return base if base.is_contiguous() and tensor.is_contiguous() else None


def _of_each_element(args: Any, kwargs: Any, origins: list[_Origin], result: Tensor) -> bool:
    """Whether what varies is as large as the result, and nothing of it is met by all the rest."""
    given = zip(_tensors((*args, *kwargs.values())), origins, strict=True)
    varying = (tensor for tensor, origin in given if origin.source is not None)
    return all(tensor.numel() == result.numel() for tensor in varying)


def _is_zero(origin: _Origin) -> bool:
    """Whether a tensor is a constant zero."""
    return origin.source is None and origin.added == 0


def _of_data(varying: list[_Origin], result: Tensor) -> bool:
    """Whether this is real numbers, and of more than parameters and constants."""
    of_data = any(not isinstance(origin.source, weakref.ref) for origin in varying)
    return of_data and result.is_floating_point()


def _maximum(origins: list[_Origin], operands: Any, result: Tensor) -> str | None:
    """The pattern that is the greater of two tensors, if it is one."""
    if len(origins) != 2 or not _of_data([o for o in origins if o.source is not None], result):
        return None
    if any(map(_is_zero, origins)) or _with_zero(operands):
        return "max(x, 0) written by hand"
    one, other = origins
    if one.source is None or one.source is not other.source:
        return None
    if one.factor is None or other.factor is None:
        return None
    if not _of_each_element(operands, {}, origins, result):
        return None
    # max(x, -x) is |x|.
    leaky = abs(one.factor) != abs(other.factor)
    return "max(x, c·x) written by hand" if leaky else None


def _factor(name: str, args: Any, kwargs: Any, origins: list[_Origin]) -> float | None:
    """c where `name` makes c·x of x, known to be a number."""
    before = [origin.factor for origin in origins if origin.source is not None]
    if len(before) != 1 or before[0] is None:
        return None
    if name in _COPIES:
        return before[0]
    constants = [origin.added for origin in origins if origin.source is None]
    numbers = [*_numbers(args, kwargs), *constants]
    if name not in _PRODUCTS or len(numbers) != 1 or numbers[0] is None:
        return None
    return before[0] * numbers[0]


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _version(tensor: Tensor) -> int:
    """How often a tensor was written into; nobody counts that of inference tensors."""
    if type(tensor) in (Tensor, torch.nn.Parameter):
        return 0 if tensor.is_inference() else tensor._version
    # A subclass may refuse to be asked.
    with torch._C.DisableTorchFunctionSubclass():
        return 0 if tensor.is_inference() else tensor._version


def _numbers(args: Any, kwargs: Any) -> list[float]:
    """The numbers among the arguments, in order."""
    given = (*args, *kwargs.values())
    return [part for part in given if isinstance(part, int | float) and not isinstance(part, bool)]


def _value_of(name: str, args: Any, kwargs: Any) -> float | None:
    """What a constant holds, if it is a number that is given."""
    if "zeros" in name or "ones" in name:
        return 0.0 if "zeros" in name else 1.0
    return _only_number(args, kwargs)


def _only_number(args: Any, kwargs: Any) -> float | None:
    """The number among the arguments, if it is one."""
    numbers = _numbers(args, kwargs)
    return float(numbers[0]) if len(numbers) == 1 else None


def _to_six(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a clamp is between 0 and 6."""
    return name == "relu6" or _numbers(args, kwargs) == [0, 6]


def _with_zero(operands: Any) -> bool:
    """Whether one of two operands of a maximum is a constant zero."""
    if len(operands) < 2 or not all(isinstance(part, Tensor) for part in operands[:2]):
        return False
    return any(
        part.numel() == 1 and not part.requires_grad and part.device.type == "cpu" and part == 0
        for part in operands[:2]
    )
