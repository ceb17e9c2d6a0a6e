"""A CUDA device that is not there, for a torch without CUDA: what tests/nodes_on_cuda.py runs on.

The process loads the library of tests/cuda_device_on_host.cpp before torch, whose hooks are asked
for once, and calls `install`; both hold as long as it lives. Every operation on such a tensor runs
the CPU's kernel on the same memory, the package's own included; all that stands above the kernels
(the dispatcher, the choice of backends, autograd's engine with a thread for each device) is what
runs on a real one. Imports the package and torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pyrevgrad import backends, masks

#: Devices that run the kernels; asked of any other, the library says TOO_OLD.
SERVED = (0, 1)
TOO_OLD = "a device of 2009 cannot run what the library holds"
#: What was asked of the library, in order.
ASKED: list[int] = []
_LIBRARIES: list[torch.library.Library] = []


def on(index: int, tensor: Tensor) -> Tensor:
    """The same memory, as a tensor of cuda:`index`, or of the CPU where that is -1."""
    labelled: Tensor = torch.ops.cuda_on_host.labelled.default(tensor.detach(), index)
    return labelled


def _on_cpu(operation: Any, *arguments: Any, **options: Any) -> Any:
    devices = {torch.device("cuda", 0)}

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_cuda:
            devices.clear()
            devices.add(value.device)
            return on(-1, value)
        if isinstance(value, torch.device) and value.type == "cuda":
            return torch.device("cpu")
        return value

    arguments, options = tree_map(moved, (arguments, options))
    made = operation(*arguments, **options)
    index = devices.pop().index
    return tree_map(lambda value: on(index, value) if isinstance(value, Tensor) else value, made)


def _unpacked(mask: Tensor, shape: torch.Size, strides: Any) -> Tensor:
    # By operations of PyTorch's that resize a tensor of their own, which is not to be done here.
    return on(mask.get_device(), masks.unpacked(on(-1, mask), shape, strides))


def _problem(index: int) -> str:
    ASKED.append(index)
    return "" if index in SERVED else TOO_OLD


def install_more() -> None:
    """Also what PyTorch makes of other operations of its own: out-of-place forms and copies."""
    aten = torch.library.Library("aten", "IMPL")

    def served(name: str) -> None:
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
        aten.impl(name, lambda *given, **named: _on_cpu(operation, *given, **named), "CUDA")

    def copy_(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        on(-1, to).copy_(on(-1, source) if source.is_cuda else source)
        return to

    composed = torch._C._dispatch_get_registrations_for_dispatch_key(
        "CompositeExplicitAutogradNonFunctional"
    )
    for name in (*composed, "aten::abs"):
        if name.startswith("aten::") and not name.partition(".")[0].endswith("_"):
            served(name.removeprefix("aten::"))
    aten.impl("copy_", copy_, "CUDA")
    _LIBRARIES.append(aten)


def install() -> None:
    """Let cuda:0 to cuda:7 be served, as far as SERVED says."""
    every = torch.library.Library("_", "IMPL")
    every.fallback(_on_cpu, "CUDA")
    ours = torch.library.Library("pyrevgrad", "FRAGMENT")
    ours.define("cuda_problem(int device) -> str")
    ours.impl("cuda_problem", _problem, "CompositeExplicitAutograd")
    _LIBRARIES.extend((every, ours))
    torch.cuda._lazy_init = lambda: None  # type: ignore[assignment]
    backends.native().cuda_missing = ""
    backends.native().unpacked = _unpacked
