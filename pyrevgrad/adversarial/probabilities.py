"""Heads that end in a sigmoid or softmax, where logits are taken. Imports the layers.

Such a head trains without an error and badly: of two domains it can never name the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from ..autograd import recorded_by_us
from ..nn import Activation, FoldedReversal

#: What makes probabilities, by the start of the name of its node in the graph.
_NODES = {"SigmoidBackward": "sigmoid", "HardsigmoidBackward": "hardsigmoid"}
_NODES |= {"SoftmaxBackward": "softmax"}
_LAYERS = {nn.Sigmoid: "sigmoid", nn.Hardsigmoid: "hardsigmoid", nn.Softmax: "softmax"}
_LAYERS |= {nn.Softmax2d: "softmax"}
_OURS = ("sigmoid", "hardsigmoid")
#: What changes the shape or the dtype of a tensor and no value.
_CARRIERS = (
    *("Squeeze", "Unsqueeze", "View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "ToCopy"),
    *("Select", "Transpose", "T", "Permute", "Slice", "Expand"),
)


def refuse_probabilities(name: str, head: nn.Module, logits: Tensor, taker: str) -> None:
    """ValueError where the last thing that `head` does is to make probabilities.

    `taker` is what takes logits of the head that `name` calls.

    Seen in the graph of what it made; the layers are asked only where the graph ends in a function
    that does not say what it computes, as a compiled one, or where there is none, as in a compiler.
    A head that goes on to anything else, as to the logarithm, is none of these.
    """
    found = _last(head, logits)
    if found is not None:
        raise ValueError(
            f"{name} ends in a {found}, so that it gives probabilities, and {taker} "
            f"takes logits: leave the {found} out (torch.{found.removeprefix('hard')} of the "
            "logits gives the probabilities)"
        )


def _last(head: nn.Module, logits: Tensor) -> str | None:
    node: Any = None if torch.compiler.is_compiling() else logits.grad_fn
    while node is not None and _name(node).removesuffix("Backward") in _CARRIERS:
        node = node.next_functions[0][0]
    if node is None or _name(node) == "CompiledFunctionBackward":
        plain = all(type(module).forward is nn.Sequential.forward for module in _sequences(head))
        return _in_layers(head) if plain else None
    if recorded_by_us(node) or isinstance(node, BackwardCFunction):
        return _in_layers(head)
    return _NODES.get(_name(node))


def _name(node: Any) -> str:
    return node.name().rstrip("0123456789")


def _sequences(head: nn.Module) -> Iterator[nn.Sequential]:
    """The layers in a row that `head` is, and those that its last layer is, and so on."""
    last = _uncompiled(head)
    while isinstance(last, nn.Sequential) and len(last):
        yield last
        last = _uncompiled(last[-1])


def _uncompiled(layer: Any) -> Any:
    """The layer that torch.compile wraps, or the layer itself."""
    return getattr(layer, "_orig_mod", layer)


def _in_layers(head: nn.Module) -> str | None:
    sequences = list(_sequences(head))
    last = _uncompiled(sequences[-1][-1] if sequences else head)
    if any(module._forward_hooks for module in (*sequences, last)):
        return None
    if isinstance(last, FoldedReversal):
        last = last.activation
    if isinstance(last, Activation):
        return last.name if last.name in _OURS else None
    return _LAYERS.get(type(last))
