"""Layers written by hand, declared to be activations.

Imports the tables of activations and of layers, and places.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..activations import find
from . import layers, places
from .refusals import SwapError
from .seeing import quiet


def declare(layer: type[nn.Module], activation: str | None, **params: float) -> None:
    """Say that a class of layers computes one activation, so that a swap takes it as one.

    For activations that somebody wrote by hand, as ``x * torch.sigmoid(1.702 * x)``, which a swap
    can only suspect. From then on every swap and attribution takes the class and its subclasses:
    `where=None` if the activation is a rectifier, any by name or type. The layer's own forward
    still computes the value; the slope, where a rule needs it, is the activation's.

    Parameters
    ----------
    layer : type
        A class of `torch.nn.Module` whose forward takes one tensor and returns f of each element.
    activation : str or None
        A name of the activation table, or one that `pyrevgrad.custom` made. None takes back what
        was declared of `layer`.
    **params : float
        The activation's parameters.

    Raises
    ------
    TypeError, ValueError
        `layer` is no class of modules, or one of PyTorch's that is no elementwise activation; a
        name or parameter that the table does not have; nothing was declared that None takes back.

    Notes
    -----
    Nothing is run to see whether it is true: `pyrevgrad.assert_overridden` compares gradients and
    values on a model. Declared again, the last holds. A layer that works in place is refused unless
    its attribute `inplace` says so, and so is one with parameters that require grad, which would
    get none; an attribution takes these.

    Examples
    --------
    >>> import torch, pyrevgrad
    >>> class HandSiLU(nn.Module):
    ...     def forward(self, x):
    ...         return x * torch.sigmoid(x)
    >>> declare(HandSiLU, "silu")
    >>> model = nn.Sequential(nn.Linear(2, 3), HandSiLU(), nn.Linear(3, 1))
    >>> proof = pyrevgrad.assert_overridden(model, pyrevgrad.GUIDED, torch.randn(4, 2))
    >>> proof.sites[0].site.spelling, proof.sites[0].site.kind
    ('HandSiLU', 'silu')
    """
    if not (isinstance(layer, type) and issubclass(layer, nn.Module) and layer is not nn.Module):
        raise TypeError(f"declare takes a class of layers, not {layer!r}")
    if activation is None:
        if layers.DECLARED.pop(layer, None) is None:
            raise ValueError(f"declare: nothing was declared of {layer.__name__}")
        return
    if layer in places.SILENT:
        raise TypeError(f"declare: {layer.__name__} of PyTorch is no activation of each element")
    find(activation).resolve(params)
    layers.DECLARED[layer] = activation, dict(params)


class LayerValue:
    """What the forward of a declared layer makes of a tensor, given by the keyword in `names`."""

    def __init__(
        self, function: Callable[..., Any], module: Any, kind: str, names: tuple[str, ...]
    ) -> None:
        self._function, self._module, self._names = function, module, names
        self._said = f"{type(module).__name__} is declared to be {kind}"
        #: Whether it may write into what it is given, and whether it did.
        self.may_write, self.wrote = bool(getattr(module, "inplace", False)), False

    def __call__(self, x: Tensor) -> Tensor:
        # A copy, lest the layer write into what backward reads.
        copied = x.clone()
        version = None if copied.is_inference() else copied._version
        with quiet():
            if self._names:
                y = self._function(self._module, **dict.fromkeys(self._names, copied))
            else:
                y = self._function(self._module, copied)
        self.wrote = version is not None and copied._version != version
        if self.wrote and not self.may_write:
            raise SwapError(
                f"{self._said} and works in place; declare a layer that returns a new tensor, or "
                "that says so by its attribute inplace"
            )
        same = isinstance(y, Tensor) and y.shape == x.shape
        casts = torch.is_autocast_enabled(x.device.type)
        if not (same and (casts or y.dtype == x.dtype)):
            raise SwapError(
                f"{self._said}, and its forward did not return a tensor of its input's shape and "
                "dtype"
            )
        return cast(Tensor, y)
