"""What the swaps have seen of a graph, and where they must not look. Imports torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch._C import _functorch as functorch
from torch.utils._pytree import tree_leaves

#: Marks a node of the autograd graph as one that a swap has seen, in its metadata.
SEEN = "pyrevgrad: seen by a swap"


def mark(y: Any) -> None:
    """Note on the node that made `y`, at each level of torch.func, that a swap has seen it."""
    while isinstance(y, Tensor):
        if y.grad_fn is not None:
            y.grad_fn.metadata[SEEN] = True  # type: ignore[index]
        if not functorch.is_functorch_wrapped_tensor(y):
            return
        y = functorch.get_unwrapped(y)


def node_of(y: Tensor) -> Any:
    """The node that made `y`, at the outermost level of torch.func that has one; None if none."""
    while y.grad_fn is None and functorch.is_functorch_wrapped_tensor(y):
        y = functorch.get_unwrapped(y)
    return y.grad_fn


def differentiated(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The gradient that a model takes in its forward, by ``torch.autograd.grad``.

    The nodes of its own graph are marked as seen: silu's has a sigmoid's, which nobody called.
    """
    found = function(*args, **kwargs)
    made = _nodes(found)
    if made:
        known: set[Any] = set()
        _reach(_nodes((args, kwargs)), known)
        for node in _reach(made, known):
            node.metadata[SEEN] = True
    return found


def _nodes(values: Any) -> list[Any]:
    """The nodes that made the tensors in `values`, at each level of torch.func."""
    nodes: list[Any] = []
    for y in tree_leaves(values):
        while isinstance(y, Tensor):
            nodes += [] if y.grad_fn is None else [y.grad_fn]
            y = functorch.get_unwrapped(y) if functorch.is_functorch_wrapped_tensor(y) else None
    return nodes


def _reach(nodes: list[Any], known: set[Any]) -> list[Any]:
    """What is reached from `nodes` and not known yet, which is known after it."""
    waiting, found = list(nodes), []
    while waiting:
        node = waiting.pop()
        if node is not None and node not in known:
            known.add(node)
            found.append(node)
            waiting += [parent for parent, _ in node.next_functions]
    return found


class _Quiet(threading.local):
    on = False


_quiet = _Quiet()


def is_quiet() -> bool:
    """Whether this thread is in a block of `quiet`."""
    return _quiet.on


@contextmanager
def quiet() -> Iterator[None]:
    """A block in which this thread's calls are one activation's own, and no swap looks at them."""
    before, _quiet.on = _quiet.on, True
    try:
        yield
    finally:
        _quiet.on = before


def unsuspected(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a declared layer's own forward returns, and no swap looks at what it calls.

    Its nodes are marked as seen, from what it returns back to what it was given.
    """
    known: set[Any] = {
        part.grad_fn for part in (*args, *kwargs.values()) if isinstance(part, Tensor)
    }
    with quiet():
        y = function(*args, **kwargs)
    for node in _reach([y.grad_fn] if isinstance(y, Tensor) else [], known):
        node.metadata[SEEN] = True
    return y
