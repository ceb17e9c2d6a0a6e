"""What is built, what would serve which tensor, and why.

Imports backends and what they rest on.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

import torch

from . import backends, triton_backend
from .activations import ACTIVATIONS
from .binding import WHY


def _cpu_serving() -> str:
    if backends.forced() == "triton" and not triton_backend.interpreted():
        return "none: triton was asked for and serves CUDA tensors"
    return backends.forced() or ("native" if backends.native() else "reference")


def _cuda_serving() -> str:
    if backends.forced() == "reference":
        return "reference"
    native = backends.native()
    problem = backends.native_missing() if native is None else str(native.cuda_missing)
    # Asking a device would take hold of it, which only a program that uses CUDA should do.
    if not problem and torch.cuda.is_initialized():
        problem = str(native.cuda_problem(torch.cuda.current_device()))
    if not problem and backends.forced() != "triton":
        return f"native; {native.cuda_build()}"
    if backends.forced() == "native":
        return f"none: {problem}"
    module, missing = triton_backend.load()
    if module is not None:
        return "triton"
    if backends.forced():
        return f"none: {missing}"
    return f"reference, as triton is not in use, nor native: {problem}"


def _bytes(count: int) -> str:
    return f"{count} bytes" if count % 2**20 else f"{count >> 20} MiB"


def configuration() -> dict[str, str]:
    """What is built, what would run where, and why, as (topic, sentence)."""
    from . import __version__

    native = backends.native()
    built = f"missing: {backends.native_missing()}"
    if native is not None:
        built = f"built; {native.capability} kernels"
        if native.asks_for_huge_pages:
            built += "; huge pages for results of 4 MiB a thread or more"
        if native.streams_from:
            built += f"; results from {_bytes(native.streams_from)} past the caches"
    cpu = _cpu_serving()
    compiled = backends.forced() or "reference, to be fused"
    if native is not None and not backends.forced():
        slow = [name for name, row in ACTIVATIONS.items() if row.slow_compiled]
        compiled += (
            "; on the CPU native, opaque, where only a mask of x would do, and of "
            f"{', '.join(slow)} from {backends.OPAQUE_FROM} elements or of a dynamic size"
        )
    if compiled == "triton":
        compiled = "none: triton does not serve it"
    lines = {
        "pyrevgrad": __version__,
        "python": f"{platform.python_version()} on {platform.machine()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "native": built,
        "autograd": WHY if native is not None else "Python functions",
        "triton": triton_backend.description(),
        "asked for": backends.forced() or "nothing: the fastest that serves a tensor runs",
        "cpu tensors": cpu,
        "cuda tensors": _cuda_serving(),
        "mps, xpu, meta tensors": "reference",
        "torch.compile": compiled,
        "torch.func": "reference",
    }
    if native is not None:
        absent = sorted(set(ACTIVATIONS) - set(native.codes))
        if absent:
            lines["native lacks"] = ", ".join(absent) + " (reference)"
    return lines


def show_config(file: Any = None) -> None:
    """Print what is built, which backend would serve which tensor, and why.

    Parameters
    ----------
    file : text stream, optional
        Standard output if not given.

    Examples
    --------
    >>> show_config()  # doctest: +ELLIPSIS
    pyrevgrad ...
    """
    lines = configuration()
    width = max(map(len, lines))
    for topic, sentence in lines.items():
        print(f"{topic:<{width}}  {sentence}", file=file or sys.stdout)
