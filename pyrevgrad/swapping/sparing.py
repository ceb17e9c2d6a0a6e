"""Layers that keep their input for the gradient of their weights alone: here they do not keep it.

The gradient of the input is what an attribution asks for, and a convolution's needs the weights and
the sizes, no input. PyTorch keeps the input all the same (Bhatia & Dangel 2024, arXiv 2404.12406).
Imports torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
_BATCH_NORM = F.batch_norm
#: Linear in the input, or, as a maximum whose places are kept, with a gradient that needs no value.
_SPARED = {
    _BATCH_NORM,
    F.linear,
    *(getattr(torch, f"conv{kind}{n}d") for kind in ("", "_transpose") for n in (1, 2, 3)),
    *(getattr(F, f"{kind}max_pool{n}d") for kind in ("", "adaptive_") for n in (1, 2, 3)),
    *(getattr(F, f"{kind}avg_pool{n}d") for kind in ("", "adaptive_") for n in (1, 2, 3)),
    *(getattr(F, f"max_pool{n}d_with_indices") for n in (1, 2, 3)),
    *(getattr(torch, f"max_pool{n}d") for n in (1, 2, 3)),
}


#: What autograd raises where the gradient of a weight is asked for after all.
NOT_KEPT = "pyrevgrad: the gradient of a parameter was asked for, and what it needs was not kept"
#: PyTorch's function of tensors whose gradients are an error, from C++.
_without_gradient = torch._C._functions.DelayedError(NOT_KEPT.encode(), 1)  # type: ignore[attr-defined]


class _Shape(NamedTuple):
    """What is kept in place of a tensor: enough to make one whose numbers nobody reads."""

    size: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def blank(self) -> Tensor:
        return torch.empty_strided(self.size, self.strides, dtype=self.dtype, device=self.device)


def call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``function(*args, **kwargs)``, which keeps its input only if the input's gradient needs it.

    Where the weights' gradient may be needed for that of the model's input, as of weights that are
    computed, nothing changes. That of a parameter is then a RuntimeError, NOT_KEPT, and not a wrong number.
    """
    if function not in _SPARED or not _is_plain(function, args, kwargs):
        return function(*args, **kwargs)
    x, *rest = args
    place = x.untyped_storage().data_ptr()

    def pack(tensor: Tensor) -> Tensor | _Shape:
        if tensor.untyped_storage().data_ptr() != place:
            return tensor
        return _Shape(tensor.size(), tensor.stride(), tensor.dtype, tensor.device)

    def unpack(kept: Tensor | _Shape) -> Tensor:
        return kept.blank() if isinstance(kept, _Shape) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return function(
            x,
            *map(_guarded, rest),
            **{name: _guarded(value) for name, value in kwargs.items()},
        )


def _guarded(value: Any) -> Any:
    if isinstance(value, Tensor) and value.requires_grad:
        return _without_gradient(value)
    return value


def _is_plain(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether this is an eager call on an input with a gradient, with parameters or constants."""
    x = args[0] if args else None
    if type(x) not in _PLAIN_TYPES or not (x.requires_grad and torch.is_grad_enabled()):
        return False
    if function is _BATCH_NORM and kwargs.get("training", True):
        return False
    for value in (*args[1:], *kwargs.values()):
        if isinstance(value, Tensor) and (
            type(value) not in _PLAIN_TYPES or (value.requires_grad and not value.is_leaf)
        ):
            return False
    return not (
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch.is_autocast_enabled(x.device.type)
        # Hooks of others, as of checkpointing, would not see what ours take.
        or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    )
