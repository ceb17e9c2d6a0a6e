"""CDAN: the domain head judges features together with the label head's predictions.

Imports the networks and the check of heads beside it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import is_whole
from .networks import DANN
from .probabilities import refuse_probabilities


class OuterProduct(nn.Module):
    """``T(f, g) = f ⊗ g``: features (n, F) and probabilities (n, C) to (n, F·C).

    Long et al. (2018), equation 5. Element ``[i, a·C + b]`` is ``f[i, a] · g[i, b]``.

    Examples
    --------
    >>> OuterProduct()(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.25, 0.75]]))
    tensor([[0.2500, 0.7500, 0.5000, 1.5000]])
    """

    def forward(self, f: Tensor, g: Tensor) -> Tensor:
        """Every product of a feature and a probability."""
        return (f.unsqueeze(2) * g.unsqueeze(1)).flatten(1)


class RandomizedProduct(nn.Module):
    """``T(f, g) = (f·R_f) ⊙ (g·R_g) / √d``: as the outer product in expectation, with d outputs.

    Long et al. (2018), equation 7, for where F·C is large (the paper: above 4096). The matrices
    are drawn once, from the normal distribution, and saved with the model.

    Parameters
    ----------
    features, classes, outputs : int
        F, C and d, each >= 1.
    seed : int
        Of the matrices.

    Examples
    --------
    >>> RandomizedProduct(64, 10, 128)(torch.randn(5, 64), torch.randn(5, 10)).shape
    torch.Size([5, 128])
    """

    feature_matrix: Tensor
    class_matrix: Tensor

    def __init__(self, features: int, classes: int, outputs: int = 1024, seed: int = 0) -> None:
        super().__init__()
        for name, size in (("features", features), ("classes", classes), ("outputs", outputs)):
            if not is_whole(size) or operator.index(size) < 1:
                raise ValueError(f"{name} must be an int >= 1, got {size!r}")
        draw = torch.Generator().manual_seed(seed)
        self.register_buffer("feature_matrix", torch.randn(features, outputs, generator=draw))
        self.register_buffer("class_matrix", torch.randn(classes, outputs, generator=draw))

    def forward(self, f: Tensor, g: Tensor) -> Tensor:
        """The product of both projections."""
        projected = (f @ self.feature_matrix) * (g.to(f.dtype) @ self.class_matrix)
        return projected / math.sqrt(self.feature_matrix.shape[1])

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        sizes = (*self.feature_matrix.shape, self.class_matrix.shape[0])
        return f"features={sizes[0]}, classes={sizes[2]}, outputs={sizes[1]}"


class CDAN(DANN):
    """Conditional adversarial domain adaptation: Long et al. (2018), sections 3.1 to 3.3.

    As `DANN`, but that the domain head is given ``T(f, g)``, features f and the label head's
    probabilities g of all samples, so that domains are matched class by class. No gradient flows
    back through g. (Its plain gradient is therefore no derivative of its loss, and
    `check_reversal`, which measures derivatives, is for ``model.reversal`` here.)

    The label head runs twice a step, on the source for its loss and on the target for g: a batch
    normalisation in it is updated twice, the second time by the target.

    Parameters
    ----------
    features, label_head, domain_head, label_loss, **options
        As `DANN`; features (n, F), label logits (n, C), and a domain head that takes what
        `conditioning` gives. One logit z, (n, 1), stands for two classes: g is ``(σ(−z), σ(z))``,
        C is 2, and `label_loss` is one of your own. No sigmoid or softmax ends either head,
        whatever the loss.
    conditioning : torch.nn.Module
        `OuterProduct`, which gives F·C numbers a sample, if not given; or `RandomizedProduct`.
    entropy : bool
        CDAN+E: whether a sample weighs ``1 + exp(−H(g))`` in the domain loss, divided by its
        domain's mean, so that certain predictions count more. The weights are constants to the
        gradient, as in the Transfer-Learning-Library; in the authors' first program a gradient
        flows through them to the label head, reversed.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = CDAN(nn.Linear(2, 8), nn.Linear(8, 3), nn.Linear(8 * 3, 1))
    >>> model(torch.randn(4, 2), torch.tensor([0, 1, 2, 0]), torch.randn(6, 2)).loss.backward()
    """

    def __init__(
        self,
        features: nn.Module,
        label_head: nn.Module,
        domain_head: nn.Module,
        label_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        conditioning: nn.Module | None = None,
        entropy: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(features, label_head, domain_head, label_loss, **options)
        self.conditioning = OuterProduct() if conditioning is None else conditioning
        self.entropy = bool(entropy)

    def _domain_inputs(
        self, found: Tensor, sizes: list[int], logits: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        joined, _ = super()._domain_inputs(found, sizes, logits)
        with torch.no_grad():
            others = self.label_head(found[len(logits) :])
        z = torch.cat([logits.detach(), others])
        if joined.dim() != 2 or z.dim() != 2:
            raise ValueError(
                f"CDAN takes features (n, F) and label logits (n, C), got {tuple(joined.shape)} "
                f"and {tuple(z.shape)}"
            )
        refuse_probabilities("label_head", self.label_head, logits, "CDAN")
        g = torch.cat([-z, z], 1).sigmoid() if z.shape[1] == 1 else z.softmax(1)
        weights = None
        if self.entropy:
            certain = 1 + torch.exp((g * g.clamp_min(torch.finfo(g.dtype).tiny).log()).sum(1))
            weights = torch.cat([part / part.mean() for part in certain.split(sizes)])
        return self.conditioning(joined, g), weights
