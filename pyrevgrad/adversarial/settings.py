"""What must be the same in a training that continues, as plain values, and what differs.

Imports the batches and the network beside it.
"""

from __future__ import annotations

import functools
import inspect
import zlib
from numbers import Integral, Real
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from .batches import Batches, Loaded
from .networks import DANN

#: Bounds what is read of the data, however large they are.
SAMPLED = 4096
#: A tensor of more elements is named by its checksum.
LISTED = 16
CHECKSUM = "checksum of the data"
#: How a step is computed, and not which.
_MEANS = ("foreach", "fused", "capturable", "differentiable", "last_epoch")


def of_network(network: DANN) -> dict[str, Any]:
    """The options of a network, λ where it is a number, and the constants of its schedule."""
    options = ("domain_weight", "domain_average", "together", "ignore_index", "entropy")
    found: dict[str, Any] = {"model": type(network).__qualname__}
    found |= {name: plain(getattr(network, name)) for name in options if hasattr(network, name)}
    found["label_loss"] = of_loss(network.label_loss)
    if hasattr(network, "conditioning"):
        found["conditioning"] = _name_of(network.conditioning)
    found["schedule"] = of_scheduler(network.schedule)
    if network.schedule is None:
        found["scale"] = plain(network.reversal.scale)
    return found


def of_loss(loss: Any) -> dict[str, Any]:
    """Its class or name, and its arguments: those of its constructor that it keeps, or a partial's.

    Class weights are among them, which the network's saved state would overwrite.
    """
    if isinstance(loss, functools.partial):
        return {**of_loss(loss.func), **_plain_parts(loss.keywords)}
    return {"class": _name_of(loss), **_kept(loss)}


def of_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its class, the learning rates that its groups began with, and their other options."""
    groups = optimizer.param_groups
    found: dict[str, Any] = {"class": type(optimizer).__name__}
    for name, default in optimizer.defaults.items():
        if any("max_momentum" in group for group in groups) and name in ("momentum", "betas"):
            # A scheduler cycles them.
            continue
        values = [plain(group.get(name, default)) for group in groups]
        alike = all(value == values[0] for value in values)
        found |= _plain_parts({name: values[0] if alike else values})
    return {**found, "lr": [plain(group.get("initial_lr", group.get("lr"))) for group in groups]}


def of_scheduler(scheduler: Any) -> dict[str, Any] | None:
    """Its class, and which arguments of its constructor it keeps."""
    return None if scheduler is None else {"class": type(scheduler).__name__, **_kept(scheduler)}


def _kept(thing: Any) -> dict[str, Any]:
    names = inspect.signature(type(thing).__init__).parameters
    return _plain_parts({name: getattr(thing, name) for name in names if hasattr(thing, name)})


def of_data(name: str, parts: list[Batches], columns: int) -> dict[str, Any]:
    """For each domain its kind, its size and, of tensors, a checksum of a sample."""
    called = [name] if len(parts) == 1 else [f"{name}[{i}]" for i in range(len(parts))]
    return {each: _of_domain(part, columns) for each, part in zip(called, parts, strict=True)}


def _of_domain(part: Batches, columns: int) -> dict[str, Any]:
    data: Any = getattr(part.loader, "dataset", None) if isinstance(part, Loaded) else part.data
    found: dict[str, Any] = {"class": type(data).__name__}
    if isinstance(part, Loaded):
        found = {"class": type(part.loader).__name__, "batches": part.per_pass}
        found["batch_size"] = plain(getattr(part.loader, "batch_size", None))
    if isinstance(data, TensorDataset):
        tensors = data.tensors[:columns]
        found["shapes"] = [list(tensor.shape) for tensor in tensors]
        found["dtypes"] = [str(tensor.dtype) for tensor in tensors]
        found[CHECKSUM] = [checksum(tensor) for tensor in tensors]
    elif hasattr(data, "__len__"):
        found["samples"] = len(data)
    return found


def checksum(tensor: Tensor) -> int:
    """Of at most `SAMPLED` elements, evenly spread; no copy is made of the rest."""
    count = min(tensor.numel(), SAMPLED)
    places = torch.linspace(0, tensor.numel() - 1, count, dtype=torch.float64).long()
    where = torch.unravel_index(places.to(tensor.device), tensor.shape)
    picked = tensor.detach()[where].cpu().resolve_conj().resolve_neg().contiguous()
    return zlib.crc32(picked.view(torch.uint8).numpy().tobytes())


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, each with both values."""
    found: list[str] = []
    for name in dict.fromkeys((*now, *saved)):
        before: Any = saved.get(name)
        after: Any = now.get(name)
        if before == after:
            continue
        dicts = isinstance(before, dict) and isinstance(after, dict)
        if dicts and before["class"] == after["class"]:
            found += _inside(name, before, after)
        else:
            found.append(_said(name, _short(before), _short(after)))
    return found


def _inside(name: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    keys = [key for key in {**after, **before} if before.get(key) != after.get(key)]
    if keys != [CHECKSUM]:
        # Of another shape it is another one in any case.
        keys = [key for key in keys if key != CHECKSUM]
    return [_said(f"{name} {key}", before.get(key), after.get(key)) for key in keys]


def _said(name: str, before: Any, after: Any) -> str:
    return f"{name} {before!r} (now {after!r})"


def _short(value: Any) -> Any:
    return value.get("class") if isinstance(value, dict) else value


_UNKNOWN = object()


def plain(value: Any) -> Any:
    """Numbers, text and their lists as Python's own, whatever holds them; else `_UNKNOWN`."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numpy.generic):
        return plain(value.item())
    if isinstance(value, Tensor):
        long = value.numel() > LISTED
        return f"tensor of checksum {checksum(value)}" if long else plain(value.tolist())
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, (list, tuple)):
        parts = [plain(part) for part in value]
        return _UNKNOWN if _UNKNOWN in parts else parts
    if isinstance(value, dict):
        pairs = [[plain(key), plain(part)] for key, part in value.items()]
        return _UNKNOWN if any(_UNKNOWN in pair for pair in pairs) else pairs
    return _UNKNOWN


def _plain_parts(parts: dict[str, Any]) -> dict[str, Any]:
    found = {name: plain(part) for name, part in parts.items() if name not in _MEANS}
    return {name: part for name, part in found.items() if part is not _UNKNOWN}


def _name_of(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", type(thing).__qualname__))
