"""The functions a user calls: any activation with any rule, and gradient reversal.

Imports the tables, backends and autograd. The named functions are generated from the
activation table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import autograd, backends
from .activations import ACTIVATIONS, Activation
from .rules import EXACT, Rule, reverse

if TYPE_CHECKING:
    from ._named import *  # noqa: F403

__all__ = ["activation", "reverse_gradient", *ACTIVATIONS]


def activation(
    x: Tensor, name: str, rule: Rule = EXACT, *, inplace: bool = False, **params: float
) -> Tensor:
    """``y = f(x)`` whose backward is `rule`: ``gx = gate(x, g) ? (scale · slope(x)) · g : +0``.

    Parameters
    ----------
    x : Tensor
        Any shape and strides; float16, bfloat16, float32 or float64.
    name : str
        A name of the activation table, such as ``"relu"`` or ``"gelu_tanh"``.
    rule : Rule
        What the backward does; the ordinary one if not given.
    inplace : bool
        Overwrite `x`.
    **params : float
        The activation's parameters by PyTorch's names.

    Returns
    -------
    Tensor
        Fresh storage with the strides of ``torch.empty_like(x)`` (axes of one place and empty
        tensors aside), or `x` itself if in place.

    Raises
    ------
    TypeError
        `x` is not a dense real floating tensor; `name` or `rule` has the wrong type; a parameter
        that `name` does not take, or that is not a number.
    ValueError
        An unknown name; a parameter out of bounds; a tensor scale on another device or that
        requires grad; in place on a leaf that requires grad or on an expanded tensor.
    BackendError
        The backend that was asked for does not serve `x`.
    TracingError
        A modified rule is exported or traced while a gradient can be needed.

    Examples
    --------
    >>> import torch
    >>> from pyrevgrad import GUIDED
    >>> x = torch.tensor([-1.0, 2.0, 3.0], requires_grad=True)
    >>> y = activation(x, "relu", rule=GUIDED)
    >>> y.backward(torch.tensor([1.0, -1.0, 1.0]))
    >>> x.grad
    tensor([0., 0., 1.])
    """
    pairs = backends.pairs_of(name, rule, params)
    return autograd.call(x, pairs, pairs.tensor, inplace)


def reverse_gradient(x: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """The identity, a view of `x`, whose backward is ``gx = −scale · g``.

    Gradient reversal of Ganin & Lempitsky (2015), section 3.2. Nothing is saved and no kernel
    runs forward. An in-place operation on the result is refused by PyTorch, since it is a view.

    Parameters
    ----------
    x : Tensor
        Any shape and strides; float16, bfloat16, float32 or float64.
    scale : float or 0-dim Tensor
        λ. A tensor on the device of `x` is read when backward runs.

    Returns
    -------
    Tensor
        A view of `x`.

    Raises
    ------
    TypeError, ValueError
        As `activation`; a scale that is neither a number nor a 0-dim floating tensor.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> reverse_gradient(x, 0.5).sum().backward()
    >>> x.grad
    tensor([-0.5000, -0.5000])
    """
    pairs = _reversal(scale)
    return autograd.call_view(x, pairs, pairs.tensor)


_REVERSALS: dict[float, backends.Pairs] = {}


def _reversal(scale: float | Tensor) -> backends.Pairs:
    """The pairs of a reversal, kept by λ: to make and check the rule costs more than the call."""
    if type(scale) is not float:
        return backends.pairs_of("identity", reverse(scale), {})
    # By its digits, as `checks.check_number` has it, which refuses a NaN below.
    if torch.compiler.is_compiling() and (digits := scale.hex()) != "nan":
        return _constant_reversal(digits)
    return _known_reversal(scale)


def _known_reversal(scale: float) -> backends.Pairs:
    pairs = _REVERSALS.get(scale)
    if pairs is None:
        pairs = backends.pairs_of("identity", reverse(scale), {})
        # 0.0 equals -0.0, whose gradient has the other sign.
        if scale != 0:
            if len(_REVERSALS) >= backends.MOST_KEPT:
                _REVERSALS.clear()
            _REVERSALS[scale] = pairs
    return pairs


def _constant_reversal(digits: str) -> backends.Pairs:
    return _known_reversal(float.fromhex(digits))


# As `backends.pairs_of` has them.
_constant_reversal._dynamo_marked_constant = True  # type: ignore[attr-defined]


def named(row: Activation) -> Callable[..., Tensor]:
    """The function that a user calls for one row."""

    def function(
        x: Tensor, rule: Rule = EXACT, *, inplace: bool = False, **params: float
    ) -> Tensor:
        pairs = backends.pairs_of(row.name, rule, params)
        return autograd.call(x, pairs, pairs.tensor, inplace)

    takes = "".join(
        f"\n    {p.name} : float\n        {p.bound.capitalize()}; {p.default:g} if not given."
        for p in row.parameters
    )
    function.__name__ = function.__qualname__ = row.name
    function.__doc__ = f"""``y = {row.value}`` whose backward is `rule`; f′(x) = {row.slope}.

    Parameters
    ----------
    x : Tensor
        Any shape and strides; float16, bfloat16, float32 or float64.
    rule : Rule
        What the backward does; the ordinary one if not given.
    inplace : bool
        Overwrite `x`.{takes}

    Returns
    -------
    Tensor
        As `activation`, whose errors this raises.

    Examples
    --------
    >>> import pyrevgrad, torch
    >>> pyrevgrad.activation(torch.zeros(2), "{row.name}").shape
    torch.Size([2])
    """
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [
        inspect.Parameter(p.name, keyword, default=p.default, annotation="float")
        for p in row.parameters
    ]
    signature = inspect.signature(function)
    shown = [p for p in signature.parameters.values() if p.name != "params"]
    function.__signature__ = signature.replace(parameters=[*shown, *own])  # type: ignore[attr-defined]
    return function


for _row in ACTIVATIONS.values():
    globals()[_row.name] = named(_row)
