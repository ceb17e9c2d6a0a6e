"""What the kernels compile to, for a GPU that need not be there: registers, and PTX accesses.

Imports the backend of the kernels. Under Triton's interpreter nothing is compiled.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import MockTensor

from . import backend, sweep

SM_90 = GPUTarget("cuda", 90, 32)
_THREADS = 32 * sweep.WARPS
_ACCESS = re.compile(r"\b(ld|st)\.(?!param)(\w+)((?:\.\w+)*)")
_TYPE_BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}


class _NoDevice:
    """A driver for compilation alone. Its device is -1, so that no real one shares its cache."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    @staticmethod
    def get_current_device() -> int:
        return -1

    @staticmethod
    def get_current_stream(device: int) -> int:
        return 0


@contextmanager
def _compiling_for(target: GPUTarget) -> Iterator[None]:
    try:
        before = driver.active
    except RuntimeError:
        before = None
    driver.set_active(_NoDevice(target))
    try:
        yield
    finally:
        # None has the next user look for a device.
        driver.set_active(before)


@dataclass(frozen=True)
class Compiled:
    """One compiled kernel.

    Attributes
    ----------
    ptx : str
    accesses : Counter
        How many loads and stores of each kind, as ("ld" or "st", space, bytes).
    cubin : bytes
    """

    ptx: str
    accesses: Counter[tuple[str, str, int]]
    cubin: bytes

    def resources(self) -> dict[str, int]:
        """REG, STACK, SHARED, LOCAL of a thread or block, as cuobjdump reads the binary."""
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            command = [str(tool), "--dump-resource-usage", file.name]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return {
            name: int(value)
            for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", printed)
        }


def _accesses(ptx: str) -> Counter[tuple[str, str, int]]:
    found: Counter[tuple[str, str, int]] = Counter()
    for kind, space, rest in _ACCESS.findall(ptx):
        words = rest.split(".")
        width = _TYPE_BYTES[re.sub(r"\D", "", words[-1])]
        vector = next((int(word[1:]) for word in words if re.fullmatch(r"v\d", word)), 1)
        found[kind, space, width * vector] += 1
    return found


def _compiled(kernel: Any, tensors: Any, arguments: Any, target: GPUTarget) -> Compiled:
    if backend.INTERPRETED:
        raise RuntimeError("under TRITON_INTERPRET nothing is compiled")
    with _compiling_for(target):
        made = kernel.warmup(*tensors, 1 << 20, **arguments, num_warps=sweep.WARPS, grid=(1,))
    ptx = made.asm["ptx"]
    return Compiled(ptx, _accesses(ptx), made.asm["cubin"])


class _Misaligned(MockTensor):
    @staticmethod
    def data_ptr() -> int:
        return 8


def compiled_forward(
    pair: Any, dtype: torch.dtype, target: GPUTarget = SM_90, aligned: bool = True
) -> Compiled:
    """The kernel that a forward of `pair` launches where a gradient is needed.

    `aligned`: whether the tensor starts at a multiple of 16 bytes, as fresh storage does.
    """
    masked = pair.keeps == "mask"
    x = MockTensor(dtype) if aligned else _Misaligned(dtype)
    mask = MockTensor(torch.uint8) if masked else None
    arguments = backend.forward_arguments(pair, masked, dtype.itemsize)
    return _compiled(sweep.forward, (x, x, mask), arguments, target)


def compiled_backward(
    pair: Any, dtype: torch.dtype, scale: torch.dtype | None = None, target: GPUTarget = SM_90
) -> Compiled:
    """The kernel that a backward of `pair` launches; `scale`: with a tensor scale of that type."""
    g = MockTensor(dtype)
    kept = {"nothing": None, "mask": MockTensor(torch.uint8)}.get(pair.keeps, g)
    live = None if scale is None else MockTensor(scale)
    arguments = backend.backward_arguments(pair, dtype.itemsize)
    return _compiled(sweep.backward, (g, kept, g, live), arguments, target)


def expected_accesses(dtype: torch.dtype, reads: int, writes: int, mask: str = "") -> Counter[Any]:
    """What a kernel's PTX should hold: a body of 16-byte accesses, a tail of single elements.

    Parameters
    ----------
    reads, writes : int
        How many tensors of `dtype` it reads and writes.
    mask : {"", "ld", "st"}
        Whether it reads or writes a mask: a byte of each thread, in the body and in the tail.
    """
    body = sweep.BLOCK * dtype.itemsize // (16 * _THREADS)
    tail = sweep.BLOCK // _THREADS
    found: Counter[Any] = Counter()
    for kind, tensors in (("ld", reads), ("st", writes)):
        found[kind, "global", 16] += tensors * body
        found[kind, "global", dtype.itemsize] += tensors * tail
    if mask:
        found[mask, "global", 1] += 2
    return found
