"""Domain heads that end in a sigmoid or softmax, where the loss takes logits. Imports the layers.

Such a head trains without an error and badly: of two domains it can never name the first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..nn import Activation, ReversedLinear

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


def refuse_probabilities(head: nn.Module, logits: Tensor) -> None:
    """ValueError where the last thing that `head` does is to make probabilities.

    Seen in the graph of what it made, and in the last of its layers in a row; a head that goes on
    to anything else, as to the logarithm, is none of these.
    """
    if torch.compiler.is_compiling():
        return
    found = _in_graph(logits.grad_fn) or _in_layers(head)
    if found is not None:
        raise ValueError(
            f"domain_head ends in a {found}, so that it gives probabilities, and the domain loss "
            f"takes logits: leave the {found} out (torch.{found.removeprefix('hard')} of the "
            "logits gives the probabilities)"
        )


def _in_graph(node: Any) -> str | None:
    while node is not None:
        name = node.name().rstrip("0123456789")
        if name in _NODES:
            return _NODES[name]
        if name.removesuffix("Backward") not in _CARRIERS:
            return None
        node = node.next_functions[0][0]
    return None


def _in_layers(head: nn.Module) -> str | None:
    last: Any = head
    while isinstance(last, nn.Sequential) and len(last):
        last = last[-1]
    if isinstance(last, ReversedLinear):
        last = last.activation
    if isinstance(last, Activation):
        return last.name if last.name in _OURS else None
    return _LAYERS.get(type(last))
