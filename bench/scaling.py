"""Cost against size and against layout: what the section of scaling holds.

Imports allocations, answers, layouts, machine, sizes and timing. Timed in processes of their own, a
way of allocating each. ``python -m bench.scaling`` prints the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from . import answers, layouts, machine, sizes
from .allocations import USUAL, environment
from .timing import Effort

Row = dict[str, Any]


def own_rows(quick: bool, allocations: str) -> list[Row]:
    """The rows of this process: of reused memory on one and two threads and in all layouts."""
    effort = Effort(0.05, 3, 21, 3e-4) if quick else Effort(0.1, 5, 41, 1e-3)
    cold = Effort(0.2, 5, 21, 0.0) if quick else Effort(0.2, 9, 41, 0.0)
    chosen = [n for n in (sizes.QUICK_SIZES if quick else sizes.SIZES) if machine.holds(n)]
    threads = [n for n in (1, 2) if n <= machine.usable_processors()]
    rows: list[Row] = []
    for count in threads if allocations == "reused" else threads[:1]:
        torch.set_num_threads(count)
        rows += sizes.rows(chosen, effort, allocations)
        if allocations == "reused":
            rows += layouts.rows(layouts.SHAPES[1:3] if quick else layouts.SHAPES, effort)
    torch.set_num_threads(1)
    return [*rows, *sizes.rows(chosen, cold, allocations, sizes.Caches())]


def measure(quick: bool) -> list[Row]:
    """The rows, each way of allocating timed in a process of its own."""
    rows: list[Row] = []
    for allocations in USUAL:
        variables = environment(allocations)
        variables.pop("OMP_NUM_THREADS", None)
        rows += answers.of("scaling", ["--own", allocations, *["--quick"] * quick], variables)
    return rows


def section(rows: list[Row]) -> str:
    """The section of the tables."""
    return "\n\n".join(
        [
            "## Scaling",
            "Forward and backward. Fitted by t = a + b·n with weights 1/t², so that every size "
            "counts alike, in reused memory with warm caches; the deviation is measured ÷ fitted "
            "− 1. A cache that a size leaves shows as a step in the nanoseconds an element, ours "
            "and plain's. *Cold*: before every call a buffer twice the last cache's size is read.",
            *sizes.section(rows),
            "Layouts of relu/GUIDED, float32, the gradient laid out as y. *transposed* is dense in "
            "another order of memory; a *strided slice* (every second column) has gaps, and its "
            "result has none.",
            layouts.section(rows),
        ]
    )


def summary(rows: list[Row]) -> str:
    """The fitted lines, what caches and memory cost, and the layout that costs ours most."""
    parts = [
        "## Scaling",
        "Forward and backward fitted by t = a + b·n over all sizes, weights 1/t²; a size that "
        "leaves a cache shows as a deviation, ours and plain's.",
        *sizes.summary(rows),
        layouts.summary(rows),
    ]
    return "\n\n".join(part for part in parts if part)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; or the rows of this process, for `measure`."""
    parser = answers.parser("scaling", __doc__.split("\n")[0], "fewer sizes, shapes and rounds")
    parser.add_argument("--own", choices=USUAL, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.own:
        print(json.dumps(own_rows(options.quick, options.own)))
        return 0
    return answers.show(options, measure, section)


if __name__ == "__main__":
    sys.exit(main())
