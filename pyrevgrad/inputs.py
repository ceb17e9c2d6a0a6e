"""What a call takes: the dtypes, layouts and live scales, and what may be overwritten.

Imports backends and pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .backends import HALF_TYPES, Pairs
from .pairs import Pair

_MASKED = torch.masked.MaskedTensor
_TYPES = (torch.float32, torch.float64, *HALF_TYPES)


def checked(x: Tensor, pairs: Pairs, scale: Tensor | None) -> Pair:
    """The pair for the dtype of `x`, or a TypeError or ValueError that says what is wrong."""
    if not _is_dense_float(x.dtype, x.layout, x.is_nested) or isinstance(x, _MASKED):
        name = pairs.full.row.name
        if name == "identity":
            name = "a reversal (or identity)"
        if x.dtype not in _TYPES:
            raise TypeError(
                f"{name} takes float16, bfloat16, float32 or float64 tensors, got {x.dtype}"
            )
        kind = f"layout {x.layout}"
        if isinstance(x, _MASKED):
            kind = "a masked tensor"
        elif x.is_nested:
            kind = "a nested tensor"
        raise TypeError(f"{name} takes dense tensors, got {kind}")
    if scale is not None:
        _check_live_scale(scale, x)
    return pairs.half if x.dtype in HALF_TYPES else pairs.full


def _is_dense_float(dtype: torch.dtype, layout: torch.layout, nested: bool) -> bool:
    return dtype in _TYPES and layout is torch.strided and not nested


# Asked once, while torch.compile traces.
_is_dense_float._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _check_live_scale(scale: Tensor, x: Tensor) -> None:
    """ValueError unless a tensor scale can be read beside `x` and wants no gradient."""
    if scale.device != x.device:
        raise ValueError(
            f"the tensor scale is on {scale.device} and x on {x.device}; they must share a device"
        )
    if scale.requires_grad:
        raise ValueError(
            "no gradient flows to scale, so a tensor scale must not require grad; pass .detach()"
        )


def _overlaps(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether an element of a tensor that is not contiguous may be several of its places."""
    if 0 in shape:
        return False
    axes = [(s, n) for s, n in zip(strides, shape, strict=True) if n > 1]
    for i, (stride, _) in enumerate(axes):
        # How far the axes that do not step further reach; no sorting, which no compiler traces.
        inner = axes[:i] + axes[i + 1 :]
        if stride <= sum([(n - 1) * s for s, n in inner if s <= stride]):
            return True
    return False


def refuse_overlap(x: Tensor, name: str) -> None:
    """ValueError where writing into `x` would write an element many times."""
    if not x.is_contiguous() and _overlaps(x.shape, x.stride()):
        kind = "an expanded tensor" if 0 in x.stride() else "a tensor that overlaps itself"
        raise ValueError(
            f"{name}: in place on {kind} would write one element many times; "
            "pass x.clone() or inplace=False"
        )


def refuse_leaf(tensors: Sequence[Tensor], name: str) -> None:
    """ValueError where one of `tensors` is a leaf whose gradient is wanted."""
    if any(tensor.is_leaf and tensor.requires_grad for tensor in tensors):
        raise ValueError(
            f"{name}: in place on a leaf that requires grad (or a view of one) would lose its "
            "value; use inplace=False"
        )
