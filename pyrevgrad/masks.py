"""Packed masks, whoever packed them: one bit an element, in memory order, lowest bit first.

Imports torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def unpacked(mask: Tensor, shape: torch.Size, strides: Any) -> Tensor:
    """The bits as booleans of `shape`, laid out as `strides` says; contiguous if None."""
    lanes = torch.arange(8, dtype=torch.uint8, device=mask.device)
    bits = (mask.unsqueeze(1) >> lanes & 1).flatten()[: shape.numel()].bool()
    return bits.view(shape) if strides is None else bits.as_strided(shape, strides)


def mask_strides(x: Tensor) -> tuple[int, ...]:
    """The memory order that an in-place mask of `x` has: that of a dense copy."""
    return torch.empty_like(x, device="meta").stride()
