"""The measuring process, one for each way of allocating: settings on stdin, a JSON row a line out.

Imports the measuring rooms. Started by ``python -m bench``, which sets the allocator's variables
before this process exists, since glibc reads them once.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch

from . import kernels, machine, providers, traffic
from .cases import CURVED_CASES, QUICK_CURVED, Case
from .providers import GateError, Provider, Skipped
from .timing import Effort, Measured, interleave, paired_ratio


def _emit(kind: str, row: dict[str, Any]) -> None:
    print(json.dumps({"kind": kind, **row}), flush=True)


def _gate(
    made: list[Provider | Skipped], case: Case, x: torch.Tensor, g: torch.Tensor
) -> tuple[dict[str, Provider], dict[str, dict[str, str]]]:
    """The providers that may be timed, and what is to be said of the others."""
    wanted = providers.expected(case, x, g)
    passed: dict[str, Provider] = {}
    left_out: dict[str, dict[str, str]] = {}
    for provider in made:
        if isinstance(provider, Skipped):
            left_out[provider.name] = {"skipped": provider.reason}
            continue
        try:
            providers.check(provider, case, x, g, wanted[provider.name])
        except GateError as error:
            left_out[provider.name] = {"refused": str(error)}
        except Exception as error:
            first_line = str(error).strip().splitlines()[:1]
            reason = f"{type(error).__name__}: {first_line[0] if first_line else ''}"
            left_out[provider.name] = {"skipped": f"it raised {reason}"}
        else:
            passed[provider.name] = provider
    return passed, left_out


def _timed(name: str, case: Case, dtype: str, times: dict[str, Measured]) -> dict[str, Any]:
    own = times[name]
    seconds = own.seconds
    row: dict[str, Any] = {
        "rounds": seconds.runs,
        "repetitions": own.repetitions,
        "median_s": seconds.median,
        "q1_s": seconds.q1,
        "q3_s": seconds.q3,
        "faults": own.faults,
        "bytes_per_element": traffic.bytes_per_element(name, case, dtype),
        "ceiling": traffic.ceiling(name, case, dtype),
    }
    ratio = paired_ratio(own, times["fused"]) if "fused" in times else None
    if ratio is not None:
        row |= {"speedup": ratio.median, "speedup_q1": ratio.q1, "speedup_q3": ratio.q3}
    return row


def _cell(
    case: Case, made: list[Provider | Skipped], dtype: str, elements: int, settings: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """A row for each provider of one case at one size."""
    x, g = providers.tensors(elements, getattr(torch, dtype))
    largest = settings["largest_curved" if case.is_curved else "largest"]
    made = [
        Skipped(p.name, f"too slow for {elements} elements; timed up to {largest[p.name]}")
        if elements > largest.get(p.name, elements) and isinstance(p, Provider)
        else p
        for p in made
    ]
    passed, left_out = _gate(made, case, x, g)
    steps = {name: (lambda step=p.step: step(x, g)) for name, p in passed.items()}
    effort = settings["curved_effort"] if case.is_curved else settings["effort"]
    times = interleave(steps, Effort(**effort)) if steps else {}
    for name in providers.NAMES:
        found = left_out[name] if name in left_out else _timed(name, case, dtype, times)
        yield {
            "case": case.name,
            "curved": case in CURVED_CASES,
            "provider": name,
            "dtype": dtype,
            "threads": torch.get_num_threads(),
            "allocations": settings["allocations"],
            "elements": elements,
            **found,
        }


def _waits_for_one_thread(case: Case, settings: dict[str, Any]) -> bool:
    """Whether a case is left to the first number of threads: few curved ones speak for all."""
    first = torch.get_num_threads() == settings["threads"][0]
    return not (first or settings["filter"]) and (
        case in CURVED_CASES and case.activation not in QUICK_CURVED
    )


def measure_cases(settings: dict[str, Any]) -> None:
    """Every case, dtype and size at the current number of threads."""
    for name in settings["cases"]:
        case = Case(*name.split("/"))
        if _waits_for_one_thread(case, settings):
            continue
        for dtype in settings["dtypes"]:
            without = dict.fromkeys(settings["without"], "left out by --without")
            compiled = settings["compile"]
            if compiled is not None and [name, dtype, torch.get_num_threads()] not in compiled:
                reason = "compiled for the cases whose targets speak of it; by --filter for any"
                without.setdefault("idiom+compile", reason)
            made = providers.build(case, getattr(torch, dtype), without)
            for elements in settings["curved_sizes" if case.is_curved else "sizes"]:
                for row in _cell(case, made, dtype, elements, settings):
                    _emit("timing", row)


def measure_kernels(settings: dict[str, Any]) -> None:
    """The kernels alone at the current number of threads."""
    matches = re.compile(settings["filter"]).search if settings["filter"] else None
    selecting = [k for k in kernels.kernels(matches, compute=True) if k.selects]
    computing = [k for k in kernels.kernels(matches, compute=True) if not k.selects]
    effort = Effort(**settings["kernel_effort"])
    for dtype in settings["dtypes"]:
        for elements in settings["kernel_sizes"]:
            chosen = selecting + (computing if elements in settings["computing_sizes"] else [])
            for row in kernels.measure(chosen, dtype, elements, effort):
                _emit("kernel", row)


def main() -> None:
    """Read the settings, measure, print."""
    settings = json.load(sys.stdin)
    _emit("machine", machine.describe())
    for threads in settings["threads"]:
        torch.set_num_threads(threads)
        measure_cases(settings)
        if settings["kernel_sizes"]:
            measure_kernels(settings)


if __name__ == "__main__":
    main()
