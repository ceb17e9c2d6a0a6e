"""The kernels alone, on warm buffers: bandwidth as a share of ``copy_``'s in the same rounds.

Imports pyrevgrad's backends, cases, gate, placing, providers, timing and traffic. The operations
are called directly, with no autograd. Their outputs land in memory that the allocator has just got
back, so this runs where the allocator keeps its memory (the page faults are recorded and should be
0). The copy is of what the kernel reads, into the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrevgrad import backends, reference_backend
from pyrevgrad.rules import plan

from . import gate, traffic
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
#: Of the other kernels: a mask of x where the value is computed, and rules with gates of their own.
GATED = (
    Case("gelu", "GUIDED"),
    Case("silu", "guided_slope"),
    Case("gelu", "guided_product"),
    Case("relu", "rectgrad"),
)
COMPUTE = (*(Case(name, "reverse") for name in CURVED), *GATED)


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


def _poison(like: Tensor) -> None:
    """Leave nonsense in the memory that results will have: a kernel that writes nothing would else
    be handed what the last one wrote."""
    packed = torch.empty((like.numel() + 7) // 8, dtype=torch.uint8, device=like.device)
    spare = [torch.full_like(like, float("nan")) for _ in range(3)]
    spare += [torch.full_like(packed, 0b10100101) for _ in range(3)]
    del spare


def check(kernel: Kernel, x: Tensor, g: Tensor, wanted: tuple[Tensor, Tensor]) -> None:
    """Run `kernel` once; compare all that it writes with the reference.

    Parameters
    ----------
    wanted : pair of Tensor
        The value and the gradient of `gate.expected`.

    Raises
    ------
    GateError
        The value, the mask or the gradient is wrong.
    """
    run, forward = bound(kernel, x, g), kernel.direction == "forward"
    _poison(x)
    found = run()
    mask = None
    if isinstance(found, tuple):
        found, mask = found
    what, want, given = ("value", wanted[0], x) if forward else ("gradient", wanted[1], g)
    if found.dtype != want.dtype or not gate.agree(found, want, given):
        raise gate.GateError(f"the kernel {kernel.name} gives a wrong {what}")
    if mask is not None:
        pair = pair_of(kernel.case, x.dtype)
        right = reference_backend.Reference.value_and_mask(x, pair)[1]
        if not torch.equal(backends.choose(x, pair).unpacked(mask, x.shape, None), right):
            raise gate.GateError(f"the kernel {kernel.name} gives a wrong mask")


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
    """A row for each kernel: seconds, bandwidth, share of ``copy_``'s; or why it was refused."""
    made = [(x.detach(), g) for x, g in placed(elements, getattr(torch, dtype))]
    last: Case | None = None
    for kernel in chosen:
        if kernel.case != last:
            wanted, last = gate.expected(kernel.case, *made[0])["fused"], kernel.case
        try:
            check(kernel, *made[0], wanted)
            copy, own = _timed(Turns([steps(kernel, x, g) for x, g in made]), effort)
            check(kernel, *made[-1], wanted)
        except gate.GateError as error:
            told = {"selects": kernel.selects, "threads": torch.get_num_threads()}
            yield {"kernel": kernel.name, "dtype": dtype, "elements": elements, **told,
                   "refused": str(error)}  # fmt: skip
            continue
        yield row_of(kernel, dtype, elements, own, copy)


def _timed(turns: Turns[dict[str, Callable[[], object]]], effort: Effort) -> list[Measured]:
    both = {"copy": lambda: turns.now["copy"](), "kernel": lambda: turns.now["kernel"]()}
    return list(interleave(both, effort, before_round=turns.next).values())
