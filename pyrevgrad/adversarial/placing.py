"""Where a network has its reversal: one, and before all that learns in the domain head.

Imports the layers. A head that is a module of its own says only by its forward what comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import GradientReverseLayer, RevGrad, WarmStartGradientReverseLayer, is_theirs
from ..nn import FoldedReversal, GradientReversal

_REVERSALS = (
    GradientReversal,
    GradientReverseLayer,
    RevGrad,
    WarmStartGradientReverseLayer,
)


def the_folded_in(network: Any) -> tuple[nn.Module, FoldedReversal | None]:
    """The first layer of the domain head, and the folded reversal that this is or holds.

    Raises
    ------
    ValueError
        The network has another reversal anywhere.
    """
    first = network.domain_head
    while isinstance(first, nn.Sequential) and len(first):
        first = first[0]
    found = [part for part in first.modules() if isinstance(part, FoldedReversal)]
    folded = found[0] if found else None
    for name, part in network.named_modules():
        if part is not folded and _reverses(part):
            raise ValueError(
                f"{name} is a reversal, and the network brings its own, so that the two would "
                "undo each other: leave it out (a domain head may begin with a "
                "ReversedLinear or a ReversedConv2d)"
            )
    return first, folded


def refuse_another(head: nn.Module, scale: Tensor | None) -> None:
    """ValueError unless the one reversal in `head` is that whose λ is `scale`; None for no one.

    By the identity of λ and not of the layer, which torch.compile would not look at again.
    """
    found = [getattr(part, "scale", None) for part in head.modules() if _reverses(part)]
    wanted = 0 if scale is None else 1
    if len(found) != wanted or any(each is not scale for each in found):
        raise ValueError(
            "a reversal was put into domain_head, or taken from it, after the network was made, "
            "so that the features would get a gradient reversed twice, not at all or by a λ that "
            "the network does not set: make the network anew from the new domain head"
        )


def _reverses(part: nn.Module) -> bool:
    return isinstance(part, _REVERSALS) or is_theirs(part)


@contextmanager
def given_to(layer: nn.Module) -> Iterator[list[Tensor]]:
    """What `layer` is given meanwhile; nothing where a compiler is what calls it."""
    given: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # A compiled graph is one node, in which no layer is before another.
        if not torch.compiler.is_compiling():
            given.extend(inputs)

    hook = layer.register_forward_pre_hook(keep)
    try:
        yield given
    finally:
        hook.remove()


def refuse_learning_before(head: nn.Module, given: list[Tensor], start: Any) -> None:
    """ValueError where parameters of `head` stand between the node `start` and what was `given`.

    `start` made what the head judges, and `given` is what the reversal in it was given.

    They would learn by the reversed gradient, against the rest of the head. Layers that do not
    learn, such as a pooling, may come first.
    """
    own = {id(parameter): name for name, parameter in head.named_parameters()}
    ahead: list[Any] = [x.grad_fn for x in given]
    seen = {None, start}
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        name = own.get(id(getattr(node, "variable", None)))
        if name is not None:
            raise ValueError(
                f"domain_head.{name} comes before the reversal that the domain head brings, and "
                "would get its gradient reversed: put the ReversedLinear or ReversedConv2d first"
            )
        ahead += [following for following, _ in node.next_functions]
