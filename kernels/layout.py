"""Where elements lie: dense layouts, and copies only where a kernel cannot walk in memory order.

Imports torch alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_dense(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements fill one stretch of memory, each once, in some order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(strides, sizes, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def dense(x: Tensor) -> Tensor:
    """`x` itself where it is dense, else a copy with the strides of torch.empty_like."""
    if x.is_contiguous() or is_dense(x.shape, x.stride()):
        return x
    return torch.empty_like(x).copy_(x)


def laid_out(x: Tensor, strides: Sequence[int]) -> Tensor:
    """`x` itself where it lies by `strides`, else a copy that does."""
    if all(
        size == 1 or own == wanted
        for size, own, wanted in zip(x.shape, x.stride(), strides, strict=True)
    ):
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def contiguous_strides(shape: Sequence[int]) -> list[int]:
    """The strides of a contiguous tensor of `shape`."""
    strides, following = [], 1
    for size in reversed(shape):
        strides.append(following)
        following *= max(size, 1)
    return strides[::-1]
