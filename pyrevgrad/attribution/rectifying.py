"""RectGrad: only what matters most goes back. Imports the methods and the reference's slopes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function

from .. import backends
from ..reference import eager
from ..rules import EXACT, Rule, rectgrad
from ..swapping.calls import Call, plain
from ..swapping.interception import substitute
from .methods import ModifiedGradient, is_relu


class _ByPercentile(Function):
    """f(x) whose backward passes f′(x)·g where y·g is above a percentile of its sample."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        value: Callable[[Tensor], Tensor],
        pair: Any,
        percentile: float,
        samples: int,
        shown: str,
    ) -> Tensor:
        y = value(x)
        ctx.save_for_backward(x, y)
        ctx.pair, ctx.percentile, ctx.samples, ctx.shown = pair, percentile, samples, shown
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, y = ctx.saved_tensors
        if not g.numel():
            return g, None, None, None, None, None
        first = x.shape[0] if x.dim() else 1
        # Here and not in the forward: what is not on a path to the inputs need not be of samples.
        if ctx.samples not in (1, first):
            raise ValueError(
                f"RectGrad takes a percentile in each sample, and {ctx.shown} meets {first} along "
                f"the first dimension of its input where the model was given {ctx.samples} samples;"
                " give one sample a call, or a threshold"
            )
        with torch.no_grad():
            importance = (y * g).reshape(ctx.samples, -1)
            threshold = percentile_of(importance, ctx.percentile)
            passes = ~(importance <= threshold).view(g.shape)
        gx = eager.gradient_of_input(g, x, ctx.pair, None)
        return torch.where(passes, gx, 0.0), None, None, None, None, None


def percentile_of(rows: Tensor, percentile: float) -> Tensor:
    """The percentile of each row, linear between two ranks, as numpy.percentile: (n, 1)."""
    rank = (rows.shape[1] - 1) * percentile / 100
    low = int(rank)
    ordered = rows.sort(1).values
    high = min(low + 1, rows.shape[1] - 1)
    return torch.lerp(ordered[:, low : low + 1], ordered[:, high : high + 1], rank - low)


@dataclass(frozen=True, eq=False, repr=False)
class _Percentile(Rule):
    """`rectgrad` as reports name it where its threshold is a percentile."""

    gradient_gate: str | None = "output"
    percentile: float = 98.0

    def __repr__(self) -> str:
        return f"rectgrad(percentile {self.percentile!r})"


class RectGrad(ModifiedGradient):
    """RectGrad (Kim et al. 2019, arXiv 1902.04893, section 4): f′(x)·g where y·g > τ.

    Parameters
    ----------
    model, where, layer
        As `GuidedBackprop`.
    percentile : float
        τ is this percentile of y·g in each layer and sample, linear between ranks: 98 in the paper.
        Where it is below 0, see `pyrevgrad.rectgrad`. A sample is an index of the activation's
        first dimension, or all of it where the inputs are one sample; where the first dimension
        is the sequence, as by default in `torch.nn.TransformerEncoder`, give one sample a call.
    threshold : float, optional
        A constant τ for all layers, in the unit of y·g, instead of a percentile.

    Raises
    ------
    ValueError
        `percentile` is outside [0, 100]; in a call of many samples, an activation that the map
        depends on and whose first dimension is not as long.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Linear(50, 3))
    >>> RectGrad(model, percentile=80).attribute(torch.randn(2, 4), target=0).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        model: nn.Module,
        percentile: float = 98.0,
        threshold: float | None = None,
        where: Any = is_relu,
        layer: nn.Module | str | None = None,
    ) -> None:
        if not 0 <= percentile <= 100:
            raise ValueError(f"percentile must be in [0, 100], got {percentile!r}")
        rule = _Percentile(percentile=percentile) if threshold is None else rectgrad(threshold)
        super().__init__(model, rule, where, layer)
        self.percentile = percentile if threshold is None else None

    def _substitution(self, samples: int) -> Callable[..., Tensor]:
        if self.percentile is None:
            return substitute
        # Replicas have a part of the samples each.
        parallel = any(isinstance(part, nn.DataParallel) for part in self.model.modules())
        return functools.partial(self._by_percentile, None if parallel else samples)

    def _by_percentile(self, samples: int | None, call: Call, x: Tensor, rule: Rule) -> Tensor:
        if not isinstance(rule, _Percentile):
            # A mapping in `where` gives this activation a rule of its own.
            return substitute(call, x, rule)
        first = x.shape[0] if x.dim() else 1
        samples = first if samples is None else samples
        pairs = backends.pairs_of(call.kind, EXACT, call.params)
        value = call.value or plain(call.kind, call.params)
        assert self.percentile is not None
        at = x.clone() if call.inplace else x
        of = float(self.percentile), samples, call.shown
        y = _ByPercentile.apply(at, value, pairs.full, *of)
        return x.copy_(y) if call.inplace else y
