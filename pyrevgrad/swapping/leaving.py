"""A model left as it was found: its buffers, their version counters and the random state.

Imports torch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class _Drawing(threading.local):
    seed: int | None = None


_drawing = _Drawing()


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """A block in which what `as_found` encloses draws random numbers from `seed` on."""
    before, _drawing.seed = _drawing.seed, seed
    try:
        yield
    finally:
        _drawing.seed = before


@contextmanager
def as_found(model: nn.Module, modules: list[nn.Module] | None = None) -> Iterator[None]:
    """Put buffers and random state back at the end, the buffers' version counters too.

    A graph that the user holds meanwhile has saved some of them, and takes a new version for a
    change. Who has listed the model's modules gives them.
    """
    buffers = [
        (module._buffers, name, buffer)
        for module in modules or modules_once(model)
        for name, buffer in module._buffers.items()
    ]
    kept = tuple(b for *_, b in buffers if b is not None and _may_change(b))
    with torch.no_grad():
        copies = _clones(kept)
    devices = set()
    if torch.cuda.is_initialized():
        devices = {t.device.index for t in model.parameters() if t.is_cuda}
    versions = torch.autograd._unsafe_preserve_version_counter(kept)
    with torch.random.fork_rng(devices=sorted(devices)), versions:
        # None for such a block within this one, whose draws would repeat these.
        seed, _drawing.seed = _drawing.seed, None
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            for index in devices:
                torch.cuda.default_generators[index].manual_seed(seed)
        try:
            yield
        finally:
            _drawing.seed = seed
            for owner, name, buffer in buffers:
                owner[name] = buffer
            if kept:
                with torch.no_grad():
                    _copy(kept, copies)


def modules_once(model: nn.Module) -> list[nn.Module]:
    """Each module once, without the nested generators of ``model.modules()``."""
    found = {model: None}
    waiting = [model]
    while waiting:
        for child in waiting.pop()._modules.values():
            if child is not None and child not in found:
                found[child] = None
                waiting.append(child)
    return list(found)


def _may_change(buffer: Tensor) -> bool:
    """Not an inference tensor, which has no version either, and not an expanded one."""
    if buffer.is_inference():
        return False
    if buffer.layout is not torch.strided or 0 not in buffer.stride():
        return True
    return all(step or size < 2 for size, step in zip(buffer.shape, buffer.stride(), strict=True))


def _copy(into: tuple[Tensor, ...], values: list[Tensor]) -> None:
    if any(tensor.is_neg() or tensor.is_conj() for tensor in into):
        for tensor, value in zip(into, values, strict=True):
            tensor.copy_(value)
    else:
        torch._foreach_copy_(into, values)


def _clones(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    if tensors and hasattr(torch, "_foreach_clone"):
        return list(torch._foreach_clone(tensors))
    return [tensor.clone() for tensor in tensors]
