"""Layers written by hand, declared to be activations. Imports the table and the spellings."""

from __future__ import annotations

from torch import nn

from ..activations import find
from . import calls, places


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
    values on a model. Declared again, the last holds. A layer that works in place is refused, and
    so is one with parameters that require grad, which would get none; an attribution takes these.

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
        if calls.DECLARED.pop(layer, None) is None:
            raise ValueError(f"declare: nothing was declared of {layer.__name__}")
        return
    if layer in places.SILENT:
        raise TypeError(f"declare: {layer.__name__} of PyTorch is no activation of each element")
    find(activation).resolve(params)
    calls.DECLARED[layer] = activation, dict(params)
