"""The processes that train together, or the one that trains alone. Imports torch alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Processes:
    """This process's rank, how many there are, and what they tell each other.

    Raises
    ------
    ValueError
        There are several and the model would train in each by itself, or is sharded over them.
    """

    def __init__(self, model: nn.Module) -> None:
        ready = dist.is_available() and dist.is_initialized()
        self.count = dist.get_world_size() if ready else 1
        self.rank = dist.get_rank() if ready else 0
        together = any(isinstance(it, DistributedDataParallel) for it in _layers_around(model))
        if self.count > 1 and not together:
            _refuse_sharded(model)
            raise ValueError(
                f"torch.distributed runs {self.count} processes, and the model would train in each "
                "by itself: wrap it in torch.nn.parallel.DistributedDataParallel"
            )

    @staticmethod
    def unwrapped(model: nn.Module) -> nn.Module:
        """The network inside DistributedDataParallel or torch.compile."""
        return _layers_around(model)[-1]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, in each of them."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values

    @torch.no_grad()
    def share_buffers(self, network: nn.Module) -> None:
        """Give every process the buffers of the first, as running statistics that it gathered."""
        if self.count == 1:
            return
        for buffer in network.buffers():
            told = buffer.clone(memory_format=torch.contiguous_format)
            # As bytes, which every backend can send.
            dist.broadcast(told.flatten().view(torch.uint8), 0)
            buffer.copy_(told)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in one of them."""
        if self.count == 1:
            return flag
        told = torch.tensor(float(flag), device=device)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told.item())

    def gathered(self, value: Any) -> list[Any]:
        """The value of each of them, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            dist.barrier()


def _layers_around(model: nn.Module) -> list[nn.Module]:
    """The model as it was given, and what is inside it, down to the network."""
    found = [model]
    while isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
        inside = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod
        assert isinstance(inside, nn.Module)
        model = inside
        found.append(model)
    return found


def _refuse_sharded(model: nn.Module) -> None:
    """ValueError where FSDP has sharded the model, which fit neither saves nor scores whole."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    if any(isinstance(it, (FSDPModule, FullyShardedDataParallel)) for it in model.modules()):
        raise ValueError(
            "fit does not train a model that FSDP has sharded, whose checkpoint would be of a part "
            "of the weights: wrap it in torch.nn.parallel.DistributedDataParallel, or write the "
            "loop yourself"
        )
