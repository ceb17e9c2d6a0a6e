"""Batches of one domain: tensors or a dataset in an order of our own, or a loader as it comes.

Imports torch and NumPy alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate


class Ordered:
    """Batches of tensors or of a dataset; which samples they hold follows from (seed, step) alone.

    So nothing but the number of steps has to be saved for the order to continue. Each pass over the
    data has a new order. The last batch of a pass holds what is left, and under `processes` each
    batch is dealt out evenly, less the few that do not divide.
    """

    def __init__(
        self, data: Dataset[Any], batch_size: int, seed: list[int] | None, share: tuple[int, int]
    ) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.rank, self.processes = share
        self.samples = len(data)  # type: ignore[arg-type]
        self.per_pass = math.ceil(self.samples / batch_size)
        if self.samples % batch_size < self.processes and self.samples % batch_size:
            # What is left over is too little to give one to each process.
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
    """Batches of a loader, which decides on their order; begun anew at each epoch."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self._iterator: Iterator[Any] | None = None

    @property
    def per_pass(self) -> int | None:
        """The number of batches, if the loader knows it."""
        try:
            return len(self.loader)
        except TypeError:
            return None

    def begin(self, epoch: int) -> None:
        """Start a pass over the loader."""
        sampler: Any = getattr(self.loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        self._iterator = iter(self.loader)

    def next(self) -> Any:
        """The next batch; StopIteration at the end of the pass."""
        assert self._iterator is not None
        return next(self._iterator)

    def endless(self, epoch: int) -> Any:
        """The next batch, of another pass where this one is over."""
        try:
            return self.next()
        except StopIteration:
            self.begin(epoch)
        try:
            return self.next()
        except StopIteration:
            raise ValueError(
                "a loader has no batch, and each domain must be in every step"
            ) from None

    @property
    def generator(self) -> torch.Generator | None:
        """The loader's own generator of random numbers, whose state a checkpoint keeps."""
        return getattr(self.loader, "generator", None)


Batches = Ordered | Loaded


def domains(
    name: str, data: Any, columns: int, batch_size: int, seed: list[int] | None, share: Any = (0, 1)
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
        parts.append(_batches(called, each, columns, batch_size, own, share))
    return parts


def _batches(
    name: str, data: Any, columns: int, batch_size: int, seed: list[int] | None, share: Any
) -> Batches:
    if isinstance(data, (Tensor, numpy.ndarray)):
        data = (data,)
    if isinstance(data, tuple):
        data = TensorDataset(*_columns(name, data, columns))
    loader = isinstance(data, DataLoader) or not hasattr(data, "__getitem__")
    if isinstance(data, IterableDataset) or not (loader or hasattr(data, "__len__")):
        raise TypeError(f"{name}: wrap a dataset without a length in a DataLoader")
    if loader:
        if not hasattr(data, "__iter__"):
            kinds = "(x, y)" if columns == 2 else "x"
            raise TypeError(
                f"{name} must be tensors {kinds}, a Dataset or a DataLoader, "
                f"not {type(data).__name__}"
            )
        if iter(data) is data:
            raise TypeError(f"{name} is an iterator, good for one pass; give what can begin again")
        found: Batches = Loaded(data)
    else:
        found = Ordered(data, batch_size, seed, share)
    if found.per_pass == 0:
        few = f"; every process needs one ({share[1]} of them)" if share[1] > 1 else ""
        raise ValueError(f"{name} has no sample{few}")
    return found


def _columns(name: str, parts: tuple[Any, ...], columns: int) -> list[Tensor]:
    if len(parts) < columns or not all(isinstance(p, (Tensor, numpy.ndarray)) for p in parts):
        kinds = "(x, y) of inputs and labels" if columns == 2 else "x"
        raise TypeError(f"{name} must be {kinds}, tensors or arrays")
    tensors = [torch.as_tensor(part) for part in parts]
    lengths = [len(tensor) if tensor.dim() else 0 for tensor in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(f"{name}: {lengths[0]} inputs come with {lengths[1]} labels")
    return tensors


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
