"""Batches of one domain: tensors or a dataset in an order of our own, or a loader as it comes.

Imports the random states beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from .checkpoints import random_state, set_random_state

_CPU = torch.device("cpu")


class Ordered:
    """Batches of tensors or of a dataset; which samples they hold follows from (seed, step) alone.

    So nothing but the number of steps has to be saved for the order to continue. Each pass over the
    data has a new order. The last batch of a pass holds what is left, if that is `least` samples,
    and under `processes` each batch is dealt out evenly, less the few that do not divide.
    """

    def __init__(
        self,
        data: Dataset[Any],
        batch_size: int,
        seed: list[int] | None,
        share: tuple[int, int],
        least: int = 1,
    ) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.rank, self.processes = share
        self.samples = len(data)  # type: ignore[arg-type]
        self.per_pass = math.ceil(self.samples / batch_size)
        left = self.samples % batch_size
        alone = self.per_pass > 1 and left < least * self.processes
        if left and (left < self.processes or alone):
            # What is left over is too little to give `least` to each process.
            self.per_pass -= 1
        self._order: tuple[int, Tensor] | None = None

    def at(self, step: int) -> Any:
        """The batch of training step `step`."""
        passes, place = divmod(step, self.per_pass)
        order = self._order_of(passes)
        picked = order[place * self.batch_size : (place + 1) * self.batch_size]
        whole = len(picked) - len(picked) % self.processes
        return self._collated(picked[:whole][self.rank :: self.processes])

    def _order_of(self, passes: int) -> Tensor:
        if self.seed is None:
            return torch.arange(self.samples)
        if self._order is None or self._order[0] != passes:
            drawn = numpy.random.SeedSequence([*self.seed, passes]).generate_state(1, "uint64")
            generator = torch.Generator().manual_seed(int(drawn[0] >> 1))
            self._order = passes, torch.randperm(self.samples, generator=generator)
        return self._order[1]

    def _collated(self, picked: Tensor) -> Any:
        if isinstance(self.data, TensorDataset):
            return tuple(tensor[picked] for tensor in self.data.tensors)
        return default_collate([self.data[int(i)] for i in picked])


class Loaded:
    """Batches of a loader, which decides on their order; one pass follows another.

    A pass may go on over the end of an epoch. To continue within it, the loader begins again with
    the random states that it began with, and the batches that were taken are passed over.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.passes = self.taken = 0
        self._iterator: Iterator[Any] | None = None
        self._began_with: dict[str, Any] = {}

    @property
    def per_pass(self) -> int | None:
        """The number of batches, if the loader knows it."""
        try:
            return len(self.loader)
        except TypeError:
            return None

    def begin(self) -> None:
        """Start a pass over the loader."""
        sampler: Any = getattr(self.loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(self.passes)
        states = [generator.get_state() for generator in self.generators]
        self._began_with = {"random": random_state(_CPU), "generators": states}
        self._iterator = iter(self.loader)
        self.passes, self.taken = self.passes + 1, 0

    def next(self) -> Any:
        """The next batch; StopIteration at the end of the pass."""
        assert self._iterator is not None
        try:
            batch = next(self._iterator)
        except StopIteration:
            self._iterator = None
            raise
        self.taken += 1
        return batch

    def endless(self) -> Any:
        """The next batch, of another pass where this one is over."""
        if self._iterator is not None:
            with suppress(StopIteration):
                return self.next()
        # At once, so that no other draw comes between the pass's beginning and its order.
        self.begin()
        try:
            return self.next()
        except StopIteration:
            raise ValueError(
                "a loader has no batch, and each domain must be in every step"
            ) from None

    def settle(self) -> None:
        """End a pass all of whose batches were taken, so that none is read again on resuming."""
        if self._iterator is not None and self.taken == self.per_pass:
            next(self._iterator, None)
            self._iterator = None

    @property
    def generators(self) -> list[torch.Generator]:
        """The generators of its own, whose states a checkpoint keeps."""
        batches = getattr(self.loader, "batch_sampler", None)
        sampler = getattr(self.loader, "sampler", None)
        holders = (self.loader, sampler, batches, getattr(batches, "sampler", None))
        found = [getattr(holder, "generator", None) for holder in holders]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())

    def state(self) -> dict[str, Any]:
        """Where in which pass it stands."""
        if self._iterator is None:
            return {"passes": self.passes, "taken": 0}
        return {"passes": self.passes, "taken": self.taken, **self._began_with}

    def go_to(self, state: dict[str, Any]) -> None:
        """Stand where `state` did; random states are then those after passing batches over."""
        self.passes = state["passes"]
        if not state["taken"]:
            return
        set_random_state(state["random"], _CPU)
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.set_state(saved)
        self.passes -= 1
        self.begin()
        for _ in range(state["taken"]):
            try:
                self.next()
            except StopIteration:
                raise ValueError(
                    f"a loader ended after {self.taken} batches, where {state['taken']} had been "
                    "taken of it: it cannot continue"
                ) from None


Batches = Ordered | Loaded


def domains(
    name: str,
    data: Any,
    columns: int,
    batch_size: int,
    seed: list[int] | None,
    share: Any = (0, 1),
    *,
    least: int = 1,
    dtype: torch.dtype | None = None,
) -> list[Batches]:
    """What a user gave as `name`, a domain or a list of them, as batches.

    Parameters
    ----------
    columns : int
        2 for inputs and labels, 1 for inputs alone.
    seed : list of int or None
        What the order follows from; None for the order given.
    share : (int, int)
        The rank of this process, and how many there are.
    least : int
        Samples without which the last batch of a pass is left out, where it is not the only one.
    dtype : torch.dtype, optional
        What NumPy's float64 becomes, which nobody chose.

    Raises
    ------
    TypeError, ValueError
        Data of another kind, without samples, or whose parts differ in length.
    """
    given = data if isinstance(data, list) else [data]
    if not given:
        raise ValueError(f"{name} has no domain: domain-adversarial training needs one at least")
    parts: list[Batches] = []
    for i, each in enumerate(given):
        called = name if len(given) == 1 else f"{name}[{i}]"
        own = None if seed is None else [*seed, i]
        if _is_sample(each):
            raise TypeError(
                f"{called} is one sample, and a list is of domains: a domain is tensors "
                f"{_kinds(columns)} of many samples, a Dataset or a DataLoader"
            )
        found = _tensors(called, each, columns, dtype)
        parts.append(_batches(called, found, columns, (batch_size, own, share, least)))
    return parts


def _is_sample(data: Any) -> bool:
    """Whether it is a dict, or parts of which one has no dimension to be a batch's."""
    if isinstance(data, Mapping):
        # A dataset may be one, whose keys are the samples' places.
        return 0 not in data
    if isinstance(data, tuple) and any(isinstance(p, (int, float, numpy.generic)) for p in data):
        return True
    parts = data if isinstance(data, tuple) else (data,)
    return any(isinstance(p, (Tensor, numpy.ndarray)) and not p.ndim for p in parts)


def _kinds(columns: int) -> str:
    return "(x, y)" if columns == 2 else "x"


def _tensors(name: str, data: Any, columns: int, dtype: torch.dtype | None) -> Any:
    """Arrays and tensors as a dataset; whatever else as it is."""
    if isinstance(data, (Tensor, numpy.ndarray)):
        data = (data,)
    if isinstance(data, tuple):
        return TensorDataset(*_columns(name, data, columns, dtype))
    return data


def _batches(name: str, data: Any, columns: int, order: tuple[Any, ...]) -> Batches:
    loader = isinstance(data, DataLoader) or not hasattr(data, "__getitem__")
    if isinstance(data, IterableDataset) or not (loader or hasattr(data, "__len__")):
        raise TypeError(f"{name}: wrap a dataset without a length in a DataLoader")
    if loader:
        if not hasattr(data, "__iter__"):
            raise TypeError(
                f"{name} must be tensors {_kinds(columns)}, a Dataset or a DataLoader, "
                f"not {type(data).__name__}"
            )
        if iter(data) is data:
            raise TypeError(f"{name} is an iterator, good for one pass; give what can begin again")
        found: Batches = Loaded(data)
    else:
        found = Ordered(data, *order)
    if found.per_pass == 0:
        _, processes = order[2]
        few = f"; every process needs one ({processes} of them)" if processes > 1 else ""
        raise ValueError(f"{name} has no sample{few}")
    return found


def _columns(
    name: str, parts: tuple[Any, ...], columns: int, dtype: torch.dtype | None
) -> list[Tensor]:
    if len(parts) < columns or not all(isinstance(p, (Tensor, numpy.ndarray)) for p in parts):
        kinds = "(x, y) of inputs and labels" if columns == 2 else "x"
        raise TypeError(f"{name} must be {kinds}, tensors or arrays")
    for part in parts:
        if isinstance(part, Tensor) and (part.layout != torch.strided or part.is_nested):
            kind = "nested" if part.is_nested else str(part.layout).removeprefix("torch.")
            raise TypeError(
                f"{name} is a {kind} tensor, whose samples cannot be picked by their places: make "
                "it dense or give a Dataset"
            )
    tensors = [tensor_of(part, dtype) for part in parts]
    lengths = [len(tensor) if tensor.dim() else 0 for tensor in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(f"{name}: {lengths[0]} inputs come with {lengths[1]} labels")
    return tensors


def tensor_of(part: Tensor | numpy.ndarray[Any, Any], dtype: torch.dtype | None) -> Tensor:
    """An array as a tensor, of `dtype` where it is NumPy's float64; a tensor as it is."""
    tensor = torch.as_tensor(part)
    if isinstance(part, numpy.ndarray) and part.dtype == "float64" and dtype is not None:
        return tensor.to(dtype)
    return tensor


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """The dtype of the first parameter that is floating point."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def parts_of(name: str, batch: Any, device: torch.device, labelled: bool = True) -> list[Tensor]:
    """Inputs on `device` and labels where they are, to be checked before they follow.

    Raises
    ------
    TypeError
        A batch that is not made of tensors, or of too few.
    """
    found = [batch] if isinstance(batch, Tensor) else batch
    wanted = 2 if labelled else 1
    if not isinstance(found, (tuple, list)) or len(found) < wanted:
        kinds = "(x, y)" if labelled else "x or (x, ...)"
        raise TypeError(f"a batch of {name} must be {kinds}, not {type(batch).__name__}")
    parts = list(found[:wanted])
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(f"a batch of {name} must hold tensors, not {type(part).__name__}")
    return [parts[0].to(device, non_blocking=True), *parts[1:]]
