"""Bytes kept for backward, by saved-tensor hooks and by resident memory, beside `plan()`.

Imports pyrevgrad, torch, cases, idioms and machine. The resident figures come each from a process
of its own: ``python -m bench.memory CASE PROVIDER DTYPE ELEMENTS`` prints one as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyrevgrad
from pyrevgrad.rules import plan

from . import answers, idioms
from .arguments import count
from .cases import Case

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def kept_bytes(apply: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """The bytes of the distinct storages that `apply` saves for backward.

    Examples
    --------
    >>> import torch, pyrevgrad
    >>> x = torch.ones(64, requires_grad=True)
    >>> kept_bytes(lambda x: pyrevgrad.relu(x, pyrevgrad.GUIDED), x)
    8
    """
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = apply(x)
    del y
    return sum(storages.values())


def planned_bytes(case: Case, dtype: torch.dtype, elements: int) -> int:
    """What `plan()` says is kept, its last byte padded."""
    return math.ceil(plan(case.activation, case.rule, dtype).bytes_per_element * elements)


#: Whose resident memory is compared.
PROVIDERS = ("fused", "idiom", "plain", "fused+compile", "idiom+compile", "plain+compile")


def applies(case: Case) -> dict[str, Callable[[Tensor], Tensor]]:
    """The providers whose memory is compared, as functions of x; those that a compiler builds
    aside."""
    function, rule = getattr(pyrevgrad, case.activation), case.rule
    known = {
        "fused": lambda x: function(x, rule),
        "idiom": idioms.idiom(case.activation, case.rule_name, rule),
        "plain": idioms.plain(case.activation),
    }
    return {name: apply for name, apply in known.items() if apply is not None}


def _apply(case: Case, provider: str) -> Callable[[Tensor], Tensor]:
    """A provider as a function of x, compiled where its name says so."""
    found = applies(case)[provider.removesuffix("+compile")]
    return torch.compile(found, fullgraph=True) if provider.endswith("+compile") else found


def hooked(cases: list[Case], dtypes: list[str], elements: int = 4099) -> Iterator[dict[str, Any]]:
    """A row for each case and dtype: bytes kept by the hooks beside the plan's.

    The number of elements is no multiple of 8, so that a mask's last byte counts.
    """
    for case in cases:
        for name in dtypes:
            dtype = getattr(torch, name)
            x = torch.randn(elements).to(dtype).requires_grad_() * 1
            with torch.no_grad():
                idle = kept_bytes(applies(case)["fused"], x)
            yield {
                "case": case.name,
                "dtype": name,
                "elements": elements,
                "plan": planned_bytes(case, dtype, elements),
                "idle": idle,
                **{p: kept_bytes(apply, x) for p, apply in applies(case).items()},
            }


def view_row(elements: int = 4099) -> dict[str, Any]:
    """The same for `reverse_gradient`, whose plan is that of identity: nothing."""
    x = torch.randn(elements, requires_grad=True) * 1
    reverse = pyrevgrad.reverse_gradient
    with torch.no_grad():
        idle = kept_bytes(reverse, x)
    kept = kept_bytes(reverse, x)
    return {
        "case": "reverse_gradient",
        "dtype": "float32",
        "elements": elements,
        "plan": math.ceil(plan("identity", pyrevgrad.reverse()).bytes_per_element * elements),
        "idle": idle,
        "fused": kept,
    }


def _status(field: str) -> int:
    """A field of this process's status in bytes."""
    found = re.search(rf"^{field}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"no {field} in {_STATUS}")
    return int(found.group(1)) * 1024


def _settle() -> None:
    """Give free memory back, so that what is resident is in use."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_above(step: Callable[[], object], times: int = 5) -> int:
    """The most bytes resident in `step` above those before it, the median of a few steps: what the
    allocator still holds of an earlier one is not seen."""
    found = []
    for _ in range(times):
        _settle()
        base = _status("VmRSS")
        _CLEAR.write_text("5")  # the peak starts again from here
        step()
        found.append(_status("VmHWM") - base)
    return statistics.median_low(found)


def resident(case: Case, provider: str, dtype: str, elements: int) -> dict[str, Any]:
    """Bytes resident after forward, and the peak of forward and backward, above the leaf's.

    Nothing but the graph holds x or y when the first figure is read: x is no leaf and is let go,
    and the sum behind the activation keeps no tensor. So it is what backward needs, no more.
    """
    apply = _apply(case, provider)
    leaf = torch.zeros(elements, dtype=getattr(torch, dtype), requires_grad=True)
    g = torch.ones(elements, dtype=leaf.dtype)

    def forward_and_backward() -> tuple[int, int]:
        _settle()
        base = _status("VmRSS")
        _CLEAR.write_text("5")  # the peak starts again from here
        x = leaf * 1
        total = apply(x).sum()
        del x
        _settle()
        kept = _status("VmRSS") - base
        del total
        x = leaf * 1
        torch.autograd.grad(apply(x), x, g)
        return kept, _status("VmHWM") - base

    forward_and_backward()  # code, thread stacks and caches come in once
    kept, peak = forward_and_backward()
    return {"kept": kept, "peak": peak}


def in_own_process(
    case: Case, provider: str, dtype: str, elements: int, environment: dict[str, str]
) -> dict[str, Any]:
    """A row of `resident`, or why there is none."""
    row: dict[str, Any] = {
        "case": case.name,
        "provider": provider,
        "dtype": dtype,
        "elements": elements,
        "plan": planned_bytes(case, getattr(torch, dtype), elements),
    }
    if not (_STATUS.exists() and _CLEAR.exists()):
        return row | {"skipped": "resident memory is read from /proc, which is not here"}
    words = [case.name, provider, dtype, str(elements)]
    try:
        return row | answers.of("memory", words, environment)
    except answers.FailedError as error:
        return row | {"skipped": f"the process failed: {error}"}


def main() -> int:
    """Print one row of `resident` as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=main.__doc__)
    parser.add_argument("case", help="activation/rule")
    parser.add_argument("provider", choices=PROVIDERS)
    parser.add_argument("dtype", help="such as float32")
    parser.add_argument("elements", type=count)
    told = parser.parse_args()
    torch.set_num_threads(1)
    case = Case(*told.case.split("/"))
    print(json.dumps(resident(case, told.provider, told.dtype, told.elements)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
