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
        There are several and the model would train in each by itself.
    """

    def __init__(self, model: nn.Module) -> None:
        ready = dist.is_available() and dist.is_initialized()
        self.count = dist.get_world_size() if ready else 1
        self.rank = dist.get_rank() if ready else 0
        if self.count > 1 and not isinstance(model, DistributedDataParallel):
            raise ValueError(
                f"torch.distributed runs {self.count} processes, and the model would train in each "
                "by itself: wrap it in torch.nn.parallel.DistributedDataParallel"
            )

    @staticmethod
    def unwrapped(model: nn.Module) -> nn.Module:
        """The network inside DistributedDataParallel or torch.compile."""
        while isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
            inside = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod
            assert isinstance(inside, nn.Module)
            model = inside
        return model

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
