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
#: A tensor or a list of more elements is named by its checksum.
LISTED = 16
CHECKSUM = "checksum of the data"
#: How a step is computed, and not which.
_MEANS = ("foreach", "fused", "capturable", "differentiable", "last_epoch")
#: Of an optimizer's group: its parameters, and the rate, which is read on its own.
_NO_OPTIONS = ("params", "param_names", "lr", "initial_lr")
#: What PyTorch's schedulers make of arguments that they do not keep.
_MADE_OF_ARGUMENTS = ("total_size", "step_ratio", "_schedule_phases", "_anneal_func_type")


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
    """Its class, the learning rates that its groups began with, and their other options.

    Among these are the bounds that a scheduler writes into the groups.
    """
    groups = optimizer.param_groups
    found: dict[str, Any] = {"class": type(optimizer).__name__}
    names = [name for options in (optimizer.defaults, *groups) for name in options]
    for name in dict.fromkeys(names):
        if name in _NO_OPTIONS:
            continue
        if any("max_momentum" in group for group in groups) and name in ("momentum", "betas"):
            # A scheduler cycles them.
            continue
        values = [plain(group.get(name, optimizer.defaults.get(name))) for group in groups]
        alike = all(value == values[0] for value in values)
        found |= _plain_parts({name: values[0] if alike else values})
    return {**found, "lr": [plain(group.get("initial_lr", group.get("lr"))) for group in groups]}


def of_scheduler(scheduler: Any) -> dict[str, Any] | None:
    """Its class, which arguments of its constructor it keeps, and those that it is made of."""
    if scheduler is None:
        return None
    found = {"class": type(scheduler).__name__, **_kept(scheduler)}
    made = {name: getattr(scheduler, name, None) for name in _MADE_OF_ARGUMENTS}
    found |= _plain_parts({name: value for name, value in made.items() if value is not None})
    parts = getattr(scheduler, "_schedulers", ())
    return found | {f"part {i}": of_scheduler(part) for i, part in enumerate(parts)}


def _kept(thing: Any) -> dict[str, Any]:
    """The arguments of its constructor that it keeps by their names, or as torch writes these."""
    found = {}
    for name in inspect.signature(type(thing).__init__).parameters:
        kept = [each for each in (name, f"_{name}", f"{name}s") if hasattr(thing, each)]
        if kept:
            found[name] = getattr(thing, kept[0])
    return _plain_parts(found)


def of_data(name: str, parts: list[Batches], columns: int) -> dict[str, Any]:
    """For each domain its kind, its size and, of tensors, a checksum of a sample."""
    called = [name] if len(parts) == 1 else [f"{name}[{i}]" for i in range(len(parts))]
    return {each: _of_domain(part, columns) for each, part in zip(called, parts, strict=True)}


def _of_domain(part: Batches, columns: int) -> dict[str, Any]:
    data: Any = getattr(part.loader, "dataset", None) if isinstance(part, Loaded) else part.data
    found: dict[str, Any] = {"class": type(data).__name__}
    if isinstance(part, Loaded):
        found = {"batches": part.per_pass, **_of_loader(part.loader)}
    if isinstance(data, TensorDataset):
        tensors = data.tensors[:columns]
        found["shapes"] = [list(tensor.shape) for tensor in tensors]
        found["dtypes"] = [str(tensor.dtype) for tensor in tensors]
        found[CHECKSUM] = [checksum(tensor) for tensor in tensors]
    elif hasattr(data, "__len__"):
        found["samples"] = len(data)
    return found


def _of_loader(loader: Any) -> dict[str, Any]:
    """Its class and how it makes batches: the samplers, by class and the arguments they keep."""
    found: dict[str, Any] = {"class": type(loader).__name__}
    found |= {name: plain(getattr(loader, name, None)) for name in ("batch_size", "drop_last")}
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", getattr(loader, "sampler", None))
    # One of the loader's own making has its batch_size and drop_last.
    samplers = {"batch_sampler": None if found["batch_size"] else batches, "sampler": sampler}
    for name, each in samplers.items():
        if each is not None:
            found[name] = {"class": type(each).__name__, **_kept(each)}
    return found


def checksum(tensor: Tensor) -> int:
    """Of at most `SAMPLED` elements, evenly spread; no copy is made of the rest."""
    places = torch.tensor(_places(tensor.numel()), dtype=torch.int64, device=tensor.device)
    where = torch.unravel_index(places, tensor.shape)
    picked = tensor.detach()[where].cpu().resolve_conj().resolve_neg().contiguous()
    return zlib.crc32(picked.view(torch.uint8).numpy().tobytes())


def _checksum_of_array(array: numpy.ndarray[Any, Any]) -> int:
    return zlib.crc32(array.flat[_places(array.size)].tobytes())


def _places(size: int) -> list[int]:
    """Of `size` elements, at most `SAMPLED`, evenly spread."""
    if size <= SAMPLED:
        return list(range(size))
    return [i * (size - 1) // (SAMPLED - 1) for i in range(SAMPLED)]


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, each with both values."""
    names = dict.fromkeys((*now, *saved))
    return [each for name in names for each in _differing(name, saved.get(name), now.get(name))]


def _differing(name: str, before: Any, after: Any) -> list[str]:
    if before == after:
        return []
    dicts = isinstance(before, dict) and isinstance(after, dict)
    if not dicts or before["class"] != after["class"]:
        return [f"{name} {_short(before)!r} (now {_short(after)!r})"]
    keys = [key for key in {**after, **before} if before.get(key) != after.get(key)]
    if keys != [CHECKSUM]:
        # Of another shape it is another one in any case.
        keys = [key for key in keys if key != CHECKSUM]
    parts = [_differing(f"{name} {key}", before.get(key), after.get(key)) for key in keys]
    return [each for part in parts for each in part]


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
    if isinstance(value, numpy.ndarray) and value.dtype.kind in "biuf":
        long = value.size > LISTED
        return f"array of checksum {_checksum_of_array(value)}" if long else plain(value.tolist())
    if isinstance(value, (list, tuple, range)):
        parts = [plain(value[i]) for i in _places(len(value))]
        if _UNKNOWN in parts:
            return _UNKNOWN
        long = len(value) > LISTED
        return f"{len(value)} of checksum {zlib.crc32(repr(parts).encode())}" if long else parts
    if isinstance(value, dict):
        pairs = [[plain(key), plain(part)] for key, part in value.items()]
        return _UNKNOWN if any(_UNKNOWN in pair for pair in pairs) else pairs
    return _UNKNOWN


def _plain_parts(parts: dict[str, Any]) -> dict[str, Any]:
    found = {name: plain(part) for name, part in parts.items() if name not in _MEANS}
    return {name: part for name, part in found.items() if part is not _UNKNOWN}


def _name_of(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", type(thing).__qualname__))
