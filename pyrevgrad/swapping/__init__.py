"""The drop-in swap: another backward for every activation of a model that somebody else wrote.

Its rooms import the public functions of pyrevgrad and torch; `pyrevgrad.swap` is its function.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..rules import Rule
from .conversion import Conversion, convert
from .declaring import declare
from .holding import Swap
from .refusals import ModelError, SwapError, SwapWarning
from .sites import Report, Site
from .verification import Verification

__all__ = [
    "Conversion",
    "ModelError",
    "Report",
    "Site",
    "Swap",
    "SwapError",
    "SwapWarning",
    "Verification",
    "assert_overridden",
    "convert",
    "declare",
    "swap",
]


def swap(model: nn.Module, rule: Rule, where: Any = None, strict: bool | str = True) -> Swap:
    """Give every activation of `model` the backward of `rule`, and prove it.

    Values stay PyTorch's own, bit for bit. Layers (``nn.ReLU``), functions (``F.relu``), methods
    (``x.relu_()``, ``x.clamp(min=0)``) and functions that a layer stores are all taken, each call
    with a backward of its own, wherever the model's modules run: in other threads, in
    data-parallel replicas, under both kinds of activation checkpointing.

    Parameters
    ----------
    model : torch.nn.Module
    rule : Rule
        `GUIDED`, `DECONVNET`, ``reverse(0.3)``, …
    where : optional
        None takes the rectifiers (relu, leaky_relu, relu6, elu, selu, celu, gelu, quick_gelu,
        silu, mish, hardswish, softplus, relu_squared); saturating activations such as sigmoid
        would lose their slope, and are left. ``"all"`` takes those too, but not the steps
        torch.round, torch.sign and torch.heaviside, which a predicate alone takes. A dotted name or
        pattern (``"layer1.*"``) or a type of module takes the rectifiers in the modules that match,
        and any activation layer that is named or typed itself. A predicate is given each `Site`. A
        sequence takes what any part takes. A mapping from these to rules, or to None to leave a
        place as it is, overrides `rule` in those places, first match first.
    strict : bool or "all"
        Raise SwapError, after each forward and at the end, when no activation was replaced or one
        that `where` asks for was not. ``"all"`` raises for what merely looks like an activation
        too, of which there is otherwise a SwapWarning.

    Returns
    -------
    Swap
        A context manager that puts everything back at its end; or call ``.revert()``.

    Raises
    ------
    TypeError, ValueError
        A `rule`, `where` or `strict` that is none of the above; a name that no module has.
    swapping.ModelError
        A compiled, scripted, exported or quantised model. A SwapError and a TypeError.
    SwapError
        See `strict`.

    Examples
    --------
    >>> import torch, pyrevgrad
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> x = torch.ones(1, 2, requires_grad=True)
    >>> with swap(model, pyrevgrad.GUIDED) as swapped:
    ...     model(x).backward()
    >>> len(swapped.report.replaced), swapped.report.replaced[0].backward
    (1, 1)
    """
    return Swap(model, rule, where, strict)


def assert_overridden(
    model: nn.Module, rule: Rule, *inputs: Any, where: Any = None, **named: Any
) -> Verification:
    """Raise SwapError unless `rule` can be put into `model` and changes its gradients as it says.

    The one-line form for test suites of ``swap(model, rule, where).verify(*inputs)``.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was found.
    rule : Rule
    *inputs, **named
        What the model takes.
    where : optional
        As `swap`.

    Returns
    -------
    Verification
        The numbers.

    Raises
    ------
    SwapError, TypeError, ValueError
        As `swap` and `Swap.verify`.

    Examples
    --------
    >>> import torch, pyrevgrad
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3))
    >>> proof = assert_overridden(model, pyrevgrad.GUIDED, torch.randn(4, 2))
    >>> proof.differing == proof.must_differ > 0
    True
    """
    with swap(model, rule, where) as swapped:
        return swapped.verify(*inputs, **named)
