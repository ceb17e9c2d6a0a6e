"""Jacobians of a model's outputs, plain or modified, one column or all in one call.

Imports the swap, the targets and torch.func.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..rules import Rule
from ..swapping import Swap
from ..swapping.leaving import as_found
from ..swapping.refusals import check_model
from .targets import recording, values, whole
from .turns import alone


def jacobian(
    model: nn.Module,
    x: Tensor,
    output: int | tuple[int, ...] | None = None,
    *,
    rule: Rule | None = None,
    where: Any = None,
    chunk_size: int | None = None,
) -> Tensor:
    """∂ output[i] / ∂ x[i] for every sample i, by vmap of vjp.

    Parameters
    ----------
    model : torch.nn.Module
        (n, …) to (n, …), its samples independent of each other: no batch statistics. It is left as
        it was found.
    x : Tensor
        (n, …), floating point.
    output : int, tuple of int or None
        Which output of each sample; None for all.
    rule, where : optional
        Swap the model's activations meanwhile, as `pyrevgrad.swap`; as they are if not given.
    chunk_size : int, optional
        How many columns go back at once; all if not given.

    Returns
    -------
    Tensor
        (n, *x.shape[1:]) for one output, (n, *outputs, *x.shape[1:]) for all.

    Raises
    ------
    TypeError, ValueError
        `x` is not floating, the model does not return (n, …), or `output` does not fit.
    SwapError
        With a `rule`, as `pyrevgrad.swap`.

    Examples
    --------
    >>> layer = torch.nn.Linear(3, 2, bias=False)
    >>> torch.equal(jacobian(layer, torch.ones(5, 3))[4], layer.weight)
    True
    >>> jacobian(layer, torch.ones(5, 3), output=1).shape
    torch.Size([5, 3])
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() == 0:
        raise TypeError("x must be a floating point tensor of shape (n, …)")
    if isinstance(output, Rule):
        raise TypeError(f"output must be made of ints, got a rule; pass rule={output!r}")
    if rule is not None:
        check_model(model)
    with (
        alone(model) as modules,
        as_found(model, modules),
        nullcontext() if rule is None else Swap(model, rule, where, True, inputs_alone=True),
        recording(),
    ):
        pulled: tuple[Any, ...] = torch.func.vjp(lambda at: model(at.clone()), values(x))
        y, pullback = pulled[0], pulled[1]
        if not isinstance(y, Tensor):
            raise TypeError(
                f"the model must return one tensor, not {type(y).__name__}: wrap it in a module "
                "whose forward returns the one to differentiate, as model(x).logits"
            )
        if y.dim() == 0 or len(y) != len(x):
            raise ValueError(
                "the model must return one tensor with as many samples as x; a Jacobian between "
                "samples is torch.func.jacrev's"
            )
        shape = tuple(y.shape[1:])
        columns = _columns(y, shape, output)
        found = torch.func.vmap(lambda g: pullback(g)[0], chunk_size=chunk_size)(columns)
    if output is not None:
        return found[0].detach()
    return found.movedim(0, 1).reshape(len(x), *shape, *x.shape[1:]).detach()


def _columns(y: Tensor, shape: tuple[int, ...], output: int | tuple[int, ...] | None) -> Tensor:
    """The gradients that go back: one-hot in each sample's output, the same for all samples."""
    size = math.prod(shape)
    eye = torch.eye(size, dtype=y.dtype, device=y.device)
    if output is not None:
        given = output if isinstance(output, tuple) else (output,)
        index = tuple(whole("output", part) for part in given)
        if len(index) != len(shape):
            raise ValueError(f"output {output} does not index outputs of shape {shape}")
        for place, length in zip(index, shape, strict=True):
            if not -length <= place < length:
                raise ValueError(f"output {output} is out of range for outputs of shape {shape}")
        eye = eye.reshape(*shape, size)[index].unsqueeze(0)
    return eye.reshape(-1, 1, *shape).expand(-1, len(y), *shape)
