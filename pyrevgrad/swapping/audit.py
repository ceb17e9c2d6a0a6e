"""What the graph of a forward says: activations that ran inside the model and that no swap saw.

A check of the interception by other means: scripted functions, compiled regions, lambdas in other
threads and custom Functions leave their nodes here, and what was in place on a view does not.
Imports torch, the activations and what the swaps have seen.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils._pytree import tree_leaves

from ..activations import ACTIVATIONS
from .seeing import SEEN

#: The kinds of activation by the nodes that they leave, without PyTorch's number. What no row
#: serves is a rectifier.
NODES = {
    "ReluBackward": "relu",
    "LeakyReluBackward": "leaky_relu",
    "EluBackward": "elu",
    "CeluBackward": "celu",
    "GeluBackward": "gelu",
    "SiluBackward": "silu",
    "MishBackward": "mish",
    "HardswishBackward": "hardswish",
    "SoftplusBackward": "softplus",
    "ThresholdBackward": "threshold",
    "RreluWithNoiseBackward": "rrelu",
    "PreluKernelBackward": "prelu",
    "HardtanhBackward": "hardtanh",
    "HardsigmoidBackward": "hardsigmoid",
    "HardshrinkBackward": "hardshrink",
    "SoftshrinkBackward": "softshrink",
    "LogSigmoidBackward": "logsigmoid",
    "SigmoidBackward": "sigmoid",
    "TanhBackward": "tanh",
}
#: A clamp by numbers, which is relu by another name where the lower one is 0. Not by tensors, which
#: asking for would unpack, nor clamp_min's, which losses leave.
CLAMP = "ClampBackward1"
#: Nodes of whole regions that were built elsewhere.
REGIONS = {
    "CompiledFunctionBackward": (
        "a region compiled by torch.compile; call the model itself, which runs uncompiled"
    ),
    "DifferentiableGraphBackward": "a scripted function",
}
UNSEEN = (
    "a {name} is in the graph, made by a call that the swap cannot see: in a scripted function, a "
    "thread of its own outside any module, or before the swap"
)
#: Whose custom Functions are no activations: PyTorch's checkpoints and hooks, and our own.
_OURS = ("torch.", "pyrevgrad.")

#: PyTorch's own classes of nodes that are no activation's, once met.
_ORDINARY: set[type] = set()


@dataclasses.dataclass(frozen=True)
class Finding:
    """A node that no swap saw: its kind, what it is, whether it is an activation for certain, one
    that damps negative inputs, and a custom Function's."""

    kind: str
    text: str
    certain: bool
    rectifier: bool = True
    custom: bool = False


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in containers, in their subclasses, in dataclasses and in namespaces."""
    waiting, met = [value], set()
    while waiting:
        for leaf in tree_leaves(waiting.pop()):
            if isinstance(leaf, Tensor):
                yield leaf
            # What refers back to what holds it, as the nodes of a tree, is met once.
            elif id(leaf) not in met:
                met.add(id(leaf))
                waiting.append(_parts(leaf))


def _parts(leaf: Any) -> list[Any]:
    """What is in a container that PyTorch takes for a leaf."""
    if isinstance(leaf, Mapping):
        return list(leaf.values())
    if isinstance(leaf, list | tuple | set | frozenset):
        return list(leaf)
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        return [getattr(leaf, part.name, None) for part in dataclasses.fields(leaf)]
    return list(vars(leaf).values()) if isinstance(leaf, SimpleNamespace) else []


@functools.lru_cache(maxsize=4096)
def bare(name: str) -> str:
    """A node's name without its namespace and PyTorch's number."""
    return name.rpartition("::")[2].rstrip("0123456789")


def unseen(inputs: Any, outputs: Any) -> list[Finding]:
    """The activations between `inputs` and `outputs` that no swap has marked."""
    known = {tensor.grad_fn for tensor in tensors_in(inputs)}
    waiting = [tensor.grad_fn for tensor in tensors_in(outputs)]
    found: dict[Finding, None] = {}
    while waiting:
        node = waiting.pop()
        if node is None or node in known:
            continue
        known.add(node)
        if type(node) not in _ORDINARY:
            finding = _judged(node)
            if finding is not None:
                found[finding] = None
        waiting += [parent for parent, _ in node.next_functions]
    return list(found)


def _judged(node: Any) -> Finding | None:
    name = bare(node.name())
    custom = isinstance(node, BackwardCFunction)
    if not (custom or name in NODES or name in REGIONS or node.name() == CLAMP):
        if type(node).__name__ == node.name().rpartition("::")[2]:
            _ORDINARY.add(type(node))
        return None
    if SEEN in node.metadata:
        return None
    if name in REGIONS:
        return Finding(name, REGIONS[name], True)
    if name in NODES:
        kind = NODES[name]
        rectifier = kind not in ACTIVATIONS or ACTIVATIONS[kind].rectifier
        rectifier = rectifier or (kind == "hardtanh" and node._saved_min_val == 0)
        return Finding(kind, UNSEEN.format(name=name), True, rectifier)
    if node.name() == CLAMP:
        if node._saved_min != 0:
            return None
        return Finding("clamp", UNSEEN.format(name=f"{name} of min=0"), False)
    if getattr(type(node), "_forward_cls", type(node)).__module__.startswith(_OURS):
        return None
    function = name.removesuffix("Backward")
    return Finding(function, f"a custom autograd.Function called {function}", False, custom=True)
