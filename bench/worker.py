"""The measuring process, one for each way of allocating: settings on stdin, a JSON row a line out.

Imports the measuring rooms. Started by the suite's command, which sets the allocator's variables
before this process exists, since glibc reads them once.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch

from pyrevgrad import backends

from . import gate, kernels, machine, providers, traffic
from .cases import CURVED_CASES, Case, finder
from .placing import Turns
from .providers import COMPILED, Provider, Skipped
from .timing import Effort, Measured, figures, interleave, paired_ratios


def _emit(kind: str, row: dict[str, Any]) -> None:
    print(json.dumps({"kind": kind, **row}), flush=True)


def _timed(name: str, case: Case, dtype: str, times: dict[str, Measured]) -> dict[str, Any]:
    own, form = providers.fastest_form(name, times)
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
        **form,
    }
    # What is compiled is compared with ours compiled, too.
    for key, ours in (("speedup", "fused"), ("compiled_speedup", "fused+compile")):
        if ours in times and (ours == "fused" or name in providers.COMPILED):
            ratios = paired_ratios(own, times[ours])
            row |= figures(key, ratios) if ratios else {}
    return row


def offered(case: Case, dtype: str, settings: dict[str, Any]) -> list[Provider | Skipped]:
    """The providers of a case, those left out by the settings with the reason."""
    without = dict.fromkeys(settings["without"], "left out by --without")
    compiled = settings["compile"]
    if compiled is not None and [case.name, dtype, torch.get_num_threads()] not in compiled:
        reason = "compiled for few cases, each in seconds; --filter without --quick compiles any"
        without = dict.fromkeys(providers.COMPILED, reason) | without
    return providers.build(case, getattr(torch, dtype), without)


def at_size(
    made: list[Provider | Skipped], elements: int, settings: dict[str, Any]
) -> list[Provider | Skipped]:
    """The same at one size: slow ones have a largest, the other libraries a few."""
    largest, few = settings["largest"], settings["peer_sizes"]
    found: list[Provider | Skipped] = []
    for one in made:
        reason = ""
        if elements > largest.get(one.name, elements):
            reason = f"too slow for {elements} elements; timed up to {largest[one.name]}"
        elif one.name in providers.PEERS and elements not in few:
            reason = f"timed at {', '.join(map(str, few))} elements"
        left_out = reason and isinstance(one, Provider)
        found.append(Skipped(one.name, reason) if left_out else one)
    return found


def _cell(
    case: Case, made: list[Provider | Skipped], dtype: str, elements: int, settings: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """A row for each provider of one case at one size."""
    turns = Turns(providers.placed(elements, getattr(torch, dtype)))
    made = at_size(made, elements, settings)
    wanted, before = gate.expected(case, *turns.now), gate.copied(*turns.now)
    passed, left_out = gate.gated(made, case, *turns.now, wanted, before)
    # What a compilation leaves is no garbage, and looking through it takes a third of a second.
    gc.collect()
    gc.freeze()
    steps = {name: (lambda step=p.step: step(*turns.now)) for name, p in passed.items()}
    effort = settings["few_effort" if case.at_few_sizes else "effort"]
    times = interleave(steps, Effort(**effort), before_round=turns.next) if steps else {}
    # Once more, in the place that the last round left: what was timed must still be right.
    passed, late = gate.gated([*passed.values()], case, *turns.now, wanted, before)
    left_out |= late
    times = {name: times[name] for name in passed}
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
    return not first and case.name not in settings["at_all_threads"]


def measure_cases(settings: dict[str, Any]) -> None:
    """Every case, dtype and size at the current number of threads."""
    for name in settings["cases"]:
        case = Case(*name.split("/"))
        if _waits_for_one_thread(case, settings):
            continue
        for dtype in settings["dtypes"]:
            made = offered(case, dtype, settings)
            built = [p.name for p in made if isinstance(p, Provider) and p.name in COMPILED]
            if built:
                _emit("said", {"text": f"compiling {case.name}, {dtype}: {', '.join(built)}"})
            for elements in settings["few_sizes" if case.at_few_sizes else "sizes"]:
                for row in _cell(case, made, dtype, elements, settings):
                    _emit("timing", row)


def measure_kernels(settings: dict[str, Any]) -> None:
    """The kernels alone at the current number of threads."""
    matches = finder(settings["filter"]) if settings["filter"] else None
    selecting = [k for k in kernels.kernels(matches, compute=True) if k.selects]
    computing = [k for k in kernels.kernels(matches, compute=True) if not k.selects]
    effort = Effort(**settings["kernel_effort"])
    for dtype in settings["dtypes"]:
        for elements in settings["kernel_sizes"]:
            _emit("said", {"text": f"kernels alone, {dtype}, {elements} elements"})
            # No target speaks of a slope that is computed: one size and number of threads.
            first = torch.get_num_threads() == settings["threads"][0]
            chosen = list(selecting)
            if elements in settings["computing_sizes"] and (first or settings["filter"]):
                chosen += computing
            for row in kernels.measure(chosen, dtype, elements, effort):
                _emit("kernel", row)


def main() -> None:
    """Read the settings, measure, print."""
    settings = json.load(sys.stdin)
    _emit("machine", machine.describe())
    for threads in settings["threads"]:
        torch.set_num_threads(threads)
        measure_cases(settings)
        # Where the native library is not there, what would be timed is no kernel of ours.
        if settings["kernel_sizes"] and backends.native() is not None:
            measure_kernels(settings)


if __name__ == "__main__":
    main()
