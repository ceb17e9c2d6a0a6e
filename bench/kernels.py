"""The kernels alone, on warm buffers: bandwidth as a share of ``copy_``'s in the same rounds.

Imports pyrevgrad's backends, cases, placing, providers, timing and traffic. The operations are
called directly, with no autograd. Their outputs land in memory that the allocator has just got
back, so this runs where the allocator keeps its memory (the page faults are recorded and should be
0). The copy is of what the kernel reads, into the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrevgrad import backends
from pyrevgrad.rules import plan

from . import traffic
from .cases import CURVED, Case
from .placing import Turns
from .providers import pair_of, placed
from .timing import Effort, Measured, figures, interleave, paired_ratios

#: Rows whose gradient selects and scales; the target speaks of these.
SELECT = (
    Case("relu", "guided_scaled"),
    Case("relu", "reverse"),
    Case("relu", "DECONVNET"),
    Case("leaky_relu", "reverse"),
    Case("hardtanh", "clipped_straight_through"),
)
COMPUTE = tuple(Case(name, "reverse") for name in CURVED)


@dataclass(frozen=True)
class Kernel:
    """One operation of one direction, what it moves, and whether the target speaks of it."""

    case: Case
    direction: str
    selects: bool

    @property
    def name(self) -> str:
        """Such as ``relu/reverse backward``."""
        return f"{self.case.name} {self.direction}"

    def bytes_per_element(self, dtype: str) -> float:
        """The least it reads and writes."""
        if self.direction == "forward":
            return traffic.fused_forward(self.case, dtype)
        return traffic.fused_backward(self.case, dtype)


def bound(kernel: Kernel, x: Tensor, g: Tensor) -> Callable[[], object]:
    """The operation of `kernel` with its arguments, as the binding would call it."""
    pair = pair_of(kernel.case, x.dtype)
    native = backends.choose(x, pair)
    if kernel.direction == "forward":
        if pair.keeps == "mask":
            return lambda: native.value_and_mask(x, pair)
        return lambda: native.value(x, pair)
    kept: Tensor | None = None
    if pair.keeps == "mask":
        kept = native.value_and_mask(x, pair)[1]
    elif pair.keeps == "output":
        kept = native.value(x, pair)
    elif pair.keeps == "input":
        kept = x
    return lambda: native.backward(g, kept, pair, None)


def steps(kernel: Kernel, x: Tensor, g: Tensor) -> dict[str, Callable[[], object]]:
    """The operation, and a copy of what it reads into fresh storage, as its result is."""
    source = x if kernel.direction == "forward" else g
    return {
        "copy": lambda: torch.empty_like(source).copy_(source),
        "kernel": bound(kernel, x, g),
    }


def kernels(pattern: Callable[[str], object] | None, compute: bool) -> Iterator[Kernel]:
    """The kernels whose case `pattern` finds; those that compute a slope too where asked."""
    for selects, cases in ((True, SELECT), (False, COMPUTE if compute else ())):
        for case in cases:
            if pattern is None or pattern(case.name):
                yield Kernel(case, "forward", selects)
                yield Kernel(case, "backward", selects)


def row_of(
    kernel: Kernel, dtype: str, elements: int, own: Measured, copy: Measured
) -> dict[str, Any]:
    moved = kernel.bytes_per_element(dtype)
    copied = 2 * traffic.item_size(dtype)
    seconds = own.seconds
    return {
        "kernel": kernel.name,
        "selects": kernel.selects,
        "keeps": plan(kernel.case.activation, kernel.case.rule, f"torch.{dtype}").keeps,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "elements": elements,
        "bytes_per_element": moved,
        "median_s": seconds.median,
        "q1_s": seconds.q1,
        "q3_s": seconds.q3,
        "rounds": seconds.runs,
        "faults": own.faults,
        "gigabytes_per_s": moved * elements / seconds.median / 1e9,
        "copy_gigabytes_per_s": copied * elements / copy.seconds.median / 1e9,
        # (moved / own time) ÷ (copied / copy time), the times paired per round
        **figures("share", paired_ratios(copy, own), moved / copied),
    }


def measure(
    chosen: list[Kernel], dtype: str, elements: int, effort: Effort
) -> Iterator[dict[str, Any]]:
    """A row for each kernel: seconds, bandwidth, share of ``copy_``'s."""
    made = [(x.detach(), g) for x, g in placed(elements, getattr(torch, dtype))]
    for kernel in chosen:
        copy, own = _timed(Turns([steps(kernel, x, g) for x, g in made]), effort)
        yield row_of(kernel, dtype, elements, own, copy)


def _timed(turns: Turns[dict[str, Callable[[], object]]], effort: Effort) -> list[Measured]:
    both = {"copy": lambda: turns.now["copy"](), "kernel": lambda: turns.now["kernel"]()}
    return list(interleave(both, effort, before_round=turns.next).values())
