"""Layers that keep their input for the gradient of their weights alone: here they do not keep it.

The gradient of the input is what an attribution asks for, and a convolution's needs the weights and
the sizes, no input. PyTorch keeps the input all the same (Bhatia & Dangel 2024, arXiv 2404.12406).
Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
_BATCH_NORM = F.batch_norm
_MAX_POOL = torch._C._nn.max_pool2d_with_indices
_MAX_POOL_BACKWARD = torch.ops.aten.max_pool2d_with_indices_backward
_WINDOW = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
#: Linear in the input, or, as a maximum whose places are kept, with a gradient that needs no value.
SPARED = {
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
_MODIFIED = (
    "a weight that the gradient is computed with has been modified by an inplace operation since "
    "the forward"
)
#: PyTorch's function of tensors whose gradients are an error, from C++.
_without_gradient = torch._C._functions.DelayedError(NOT_KEPT.encode(), 1)


#: Smaller inputs are kept: to pass them by takes longer than they are worth.
LEAST_BYTES = 1 << 17


#: Channels that a pool lays side by side, of which a vector register is a part, and the bytes of a
#: piece: it and its maxima stay in a second-level cache.
CHANNELS, PIECE_BYTES = 16, 1 << 20


class _Shape(NamedTuple):
    """What is kept in place of a tensor: enough to make one whose numbers nobody reads."""

    size: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def blank(self) -> Tensor:
        return torch.empty_strided(self.size, self.strides, dtype=self.dtype, device=self.device)


class _BatchNorm(Function):
    """Batch normalisation by running statistics, linear in x: ``gx = g·w / √(var + eps)``.

    PyTorch's backward reads x too, and so keeps it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Any, bias: Any, rest: Any
    ) -> Tensor:
        momentum, ctx.eps, ctx.owner = rest
        ctx.version = _version(ctx.owner)
        ctx.save_for_backward(var, weight)
        return _BATCH_NORM(x, mean, var, weight, bias, False, momentum, ctx.eps)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        var, weight = ctx.saved_tensors
        if _version(ctx.owner) != ctx.version:
            raise RuntimeError(_MODIFIED)
        # The forward about a mean of zero is that product, in one operation.
        zero = torch.zeros_like(var)
        gx = torch.batch_norm(g, weight, None, zero, var, False, 0.0, ctx.eps, True)
        return gx, None, None, None, None, None


class _MaxPool(Function):
    """Maxima over windows of planes, by PyTorch's kernel for channels that lie side by side.

    That kernel is the faster one, and finds the same places. A few channels at a time are laid out
    for it, which then are in the cache. The places are kept as four bytes instead of eight.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: tuple[Any, ...]) -> Tensor:
        n, c, height, width = x.shape
        groups = x.view(n * c // CHANNELS, CHANNELS, height, width)
        y = places = x.new_empty(0)
        step = max(1, PIECE_BYTES // (CHANNELS * height * width * x.itemsize))
        for start in range(0, len(groups), step):
            piece = groups[start : start + step].contiguous(memory_format=torch.channels_last)
            try:
                values, found = _MAX_POOL(piece, *window)
            except RuntimeError:
                # A window that does not fit: PyTorch's sentence names the sizes of x.
                _MAX_POOL(x, *window)
                raise
            if not start:
                y = x.new_empty((len(groups), *values.shape[1:]))
                places = torch.empty_like(y, dtype=torch.int32)
            y[start : start + step] = values
            places[start : start + step] = found
        shape = (n, c, *y.shape[2:])
        ctx.save_for_backward(places.view(shape))
        ctx.size, ctx.window = x.size(), window
        return y.view(shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (places,) = ctx.saved_tensors
        # Of x, its sizes alone are read.
        x = g.new_empty(()).expand(ctx.size)
        return _MAX_POOL_BACKWARD(g, x, *ctx.window, places.long()), None


def call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``function(*args, **kwargs)``, which keeps its input only if the input's gradient needs it.

    Where the weights' gradient may be needed for that of the model's input, as of weights that are
    computed, nothing changes. That of a parameter is then a RuntimeError, NOT_KEPT, and not a
    wrong number.
    """
    x: Any = args[0] if args else None
    if type(x) not in _PLAIN_TYPES or not (x.requires_grad and torch.is_grad_enabled()):
        return function(*args, **kwargs)
    if x.numel() * x.itemsize < LEAST_BYTES:
        return function(*args, **kwargs)
    guarded = _guarded(args[1:])
    named = dict(zip(kwargs, _guarded(kwargs.values()) or (), strict=False))
    if guarded is None or len(named) < len(kwargs) or _is_special(x):
        return function(*args, **kwargs)
    if function is _BATCH_NORM:
        return _normalised(x, guarded, named, kwargs.get("weight"))
    window = _window(x, guarded, named) if function is F.max_pool2d else None
    if window is not None:
        return _MaxPool.apply(x, window)
    place = x.untyped_storage().data_ptr()
    # PyTorch sees no change in place of what a hook kept, so it is looked for here.
    others = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, Tensor)]
    if any(other.untyped_storage().data_ptr() == place for other in others):
        return function(*args, **kwargs)
    needed: list[tuple[Tensor, int]] = []

    def pack(tensor: Tensor) -> Tensor | _Shape:
        kept = tensor.untyped_storage().data_ptr()
        if kept != place:
            # Not a bias, which no gradient reads.
            owners = [other for other in others if other.untyped_storage().data_ptr() == kept]
            needed.extend((owner, owner._version) for owner in owners)
            return tensor
        return _Shape(tensor.size(), tensor.stride(), tensor.dtype, tensor.device)

    def unpack(kept: Tensor | _Shape) -> Tensor:
        if isinstance(kept, _Shape):
            return kept.blank()
        if any(owner._version != version for owner, version in needed):
            raise RuntimeError(_MODIFIED)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return function(x, *guarded, **named)


def _version(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor._version


def _normalised(x: Tensor, statistics: list[Any], named: dict[str, Any], weight: Any) -> Tensor:
    """Batch normalisation, in evaluation without x being kept; of half types PyTorch's, which
    rounds later. `weight` is the parameter itself, whose changes are counted."""
    mean, var = statistics[:2] if len(statistics) == 2 else (None, None)
    if named.get("training", True) or var is None or var.dtype != x.dtype or x.itemsize < 4:
        return _BATCH_NORM(x, *statistics, **named)
    rest = named.get("momentum", 0.1), named.get("eps", 1e-5), weight
    return _BatchNorm.apply(x, mean, var, named.get("weight"), named.get("bias"), rest)


def _window(x: Tensor, given: list[Any], named: dict[str, Any]) -> tuple[Any, ...] | None:
    """What `_MaxPool` takes of the arguments of a pool; None where PyTorch's own serves."""
    found = {**dict(zip(_WINDOW, given, strict=False)), **named}
    planes = x.dim() == 4 and x.is_cpu and x.itemsize >= 4 and x.is_contiguous() and x.numel()
    if not planes or x.is_contiguous(memory_format=torch.channels_last):
        return None
    if x.shape[0] * x.shape[1] % CHANNELS or x.shape[2] * x.shape[3] >= 1 << 31:
        return None
    size = found.get("kernel_size")
    if found.pop("return_indices", False) or size is None or not found.keys() <= set(_WINDOW):
        return None
    stride = found.get("stride")
    return (
        *(size, size if stride is None or stride == [] else stride, found.get("padding", 0)),
        *(found.get("dilation", 1), found.get("ceil_mode", False)),
    )


def _guarded(values: Iterable[Any]) -> list[Any] | None:
    """The arguments with parameters whose gradient is an error; None where one is computed."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            if type(value) not in _PLAIN_TYPES or (value.requires_grad and not value.is_leaf):
                return None
            value = _without_gradient(value) if value.requires_grad else value
        found.append(value)
    return found


def _is_special(x: Tensor) -> bool:
    """Whether transforms, tracers, autocast or hooks of others, as checkpointing's, are at work."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch.is_autocast_enabled(x.device.type)
        or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
        or not torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
    )
