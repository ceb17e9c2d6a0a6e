"""What a run measures and for how long, from the options of its command.

Imports cases, machine, providers and timing. The sizes are those that the targets speak of, and
between.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from . import cases, machine, providers
from .timing import Effort

#: At the largest sizes, where torch asks for huge pages too.
_SPEAK_FOR_LARGE = ("relu/GUIDED", "relu/guided_scaled", "relu/reverse", "gelu/reverse")


def _powers(*exponents: int) -> list[int]:
    return [1 << exponent for exponent in exponents]


def _compiled(
    chosen: Sequence[cases.Case],
    dtypes: Sequence[str],
    threads: Sequence[int],
    options: argparse.Namespace,
) -> list[list[Any]] | None:
    """The (case, dtype, threads) whose idiom is compiled too: a compilation takes seconds.

    One in the quick form; the cases whose targets speak of it in the full one; all (None) under a
    filter.
    """
    if options.quick:
        return [[chosen[0].name, dtypes[0], threads[0]]]
    if options.filter:
        return None
    known = (*cases.RELU_CASES, *cases.SLOW_COMPILED)
    found = [[case.name, dtypes[0], threads[0]] for case in known]
    # Of two guided cases one speaks for the other dtypes.
    return found + [[cases.RELU_CASES[0].name, dtype, threads[0]] for dtype in dtypes[1:]]


def _at_all(case: cases.Case, quick: bool) -> bool:
    """Whether a case is measured with every number of threads: few curved ones speak for all."""
    return case in cases.RELU_CASES or (case.activation in cases.QUICK_CURVED and not quick)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the measuring processes are told, the way of allocating aside.

    Raises
    ------
    ValueError
        No case matches the filter, and the message lists the cases; or there are more threads than
        processors.
    """
    quick = options.quick
    chosen = cases.select(options.filter, quick)
    sizes = options.sizes or (_powers(10, 16, 20) if quick else _powers(*range(10, 25, 2)))
    few = options.sizes or (_powers(10, 20) if quick else _powers(10, 16, 20))
    kernel = options.sizes or (_powers(20) if quick else _powers(16, 20, 22, 24))
    available = machine.usable_processors()
    threads = options.threads or [n for n in (1, 2) if n <= available]
    if max(threads) > available:
        there = f"{available} processor{'s' * (available > 1)}"
        raise ValueError(f"--threads {max(threads)}: this process may run on {there}")
    dtypes = options.dtype or ["float32", "bfloat16"]
    return {
        "cases": [case.name for case in chosen],
        "filter": options.filter,
        "without": options.without,
        "threads": threads,
        "at_all_threads": [case.name for case in chosen if options.filter or _at_all(case, quick)],
        "dtypes": dtypes,
        "sizes": sizes,
        "few_sizes": few,
        "peer_sizes": sizes if options.filter else few,
        "kernel_sizes": kernel,
        # No target speaks of a slope that is computed: the quick form leaves it out.
        "computing_sizes": [size for size in kernel if size == 1 << 20 and not quick],
        # Several times slower than anything else, and no opponent or (compiled) hopeless there.
        "largest": {
            "reference": 1 << (16 if quick else 18),
            "numpy": 1 << (16 if quick else 18),
            "idiom+compile": 1 << 20,
            # From there a hook's second allocation costs more than the Function that it saves.
            providers.HOOK: 1 << 16,
        },
        "compile": _compiled(chosen, dtypes, threads, options),
        "effort": asdict(Effort(0.1, 3, 41, 5e-4) if quick else Effort(0.25, 5, 61, 2e-3)),
        "few_effort": asdict(Effort(0.05, 3, 41, 5e-4) if quick else Effort(0.08, 5, 41, 1e-3)),
        "kernel_effort": asdict(Effort(0.05, 5, 41, 5e-4) if quick else Effort(0.1, 7, 61, 1e-3)),
    }


def again(told: dict[str, Any]) -> dict[str, Any]:
    """`told` for the quick form's second way of allocating: it compiles once, since each process
    would spend ten seconds on it, and on two threads it times the first way alone."""
    return told | {"compile": [], "threads": told["threads"][:1]}


def large(told: dict[str, Any]) -> dict[str, Any]:
    """`told` for few cases on one thread, at the least and the largest size of which results ask
    for huge pages."""
    sizes = [size for size in told["sizes"] if size >= 1 << 20]
    return told | {
        "cases": [name for name in told["cases"] if name in _SPEAK_FOR_LARGE],
        "threads": told["threads"][:1],
        "dtypes": told["dtypes"][:1],
        "sizes": sizes[:1] + sizes[1:][-1:],
        "few_sizes": [size for size in told["few_sizes"] if size >= 1 << 20],
        "compile": [],
    }
