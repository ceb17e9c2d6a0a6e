"""Is a folded reversal the first layer of its head that learns? Imports torch alone.

A head that is a module of its own says only by its forward what comes first in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


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
