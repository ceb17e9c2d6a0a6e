"""Activation checkpointing: what is recomputed in a backward meets the swaps of its forward.

While a swap lives, `torch.utils.checkpoint` is given functions that remember the swaps. Imports
torch and interception.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch.utils.checkpoint as checkpoint

from .interception import _resumed, resumed_swaps
from .seeing import is_quiet, quiet

_lock = threading.Lock()
_originals: tuple[Any, Any] | None = None
_watching = 0
#: The living swaps, outermost first. Replaced whole, so that who walks along it sees no change.
LIVE: tuple[Any, ...] = ()


def remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, to be called in a backward as if the swaps that hold now still held alone."""
    resumed, was_quiet = resumed_swaps(), is_quiet()
    swaps = LIVE if resumed is None else tuple(resumed)
    places = [
        (interceptor, tuple(here), interceptor.called_from() if here else None)
        for interceptor, here in ((s.interceptor, s.interceptor.thread.places) for s in swaps)
    ]

    def recompute(*args: Any, **kwargs: Any) -> Any:
        before = resumed_swaps()
        _resumed.swaps = frozenset(swaps)
        held = []
        try:
            for swap in swaps:
                swap.hold()
                held.append(swap)
            with quiet() if was_quiet else nullcontext():
                return _inside(places, lambda: function(*args, **kwargs))
        finally:
            for swap in reversed(held):
                swap.release()
            _resumed.swaps = before

    return recompute


def _inside(places: list[Any], function: Callable[[], Any]) -> Any:
    if not places:
        return function()
    (interceptor, stack, origin), *rest = places
    return interceptor.resume(list(stack), lambda: _inside(rest, function), origin)


def _patch() -> None:
    global _originals
    reentrant = checkpoint.CheckpointFunction.forward
    other = checkpoint._checkpoint_without_reentrant_generator
    _originals = (reentrant, other)

    def forward(ctx: Any, run_function: Any, preserve_rng_state: Any, *args: Any) -> Any:
        outputs = reentrant(ctx, run_function, preserve_rng_state, *args)
        ctx.run_function = remembering(run_function)
        return outputs

    def generator(function: Any, *args: Any, **kwargs: Any) -> Any:
        return other(remembering(function), *args, **kwargs)

    _put(staticmethod(forward), generator)


def _unpatch() -> None:
    global _originals
    assert _originals is not None
    _put(staticmethod(_originals[0]), _originals[1])
    _originals = None


def _put(reentrant: Any, other: Any) -> None:
    checkpoint.CheckpointFunction.forward = reentrant  # type: ignore[method-assign]
    checkpoint._checkpoint_without_reentrant_generator = other


def begin() -> None:
    """Let checkpoints remember the swaps that hold, until as many `end`."""
    global _watching
    with _lock:
        if not _watching:
            _patch()
        _watching += 1


def end() -> None:
    """Undo one `begin`."""
    global _watching
    with _lock:
        _watching -= 1
        if not _watching:
            _unpatch()
