"""The figures of a whole network: its time, the ratio to ours, and the most that ratio could be.

Imports timing. The ceiling of a provider is its time over that of the same network in which nothing
stands between the layers: whatever computes activations and reversals computes the layers too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import timing
from .timing import Measured

#: The network without activations and reversals, timed beside the providers.
IDLE = "no activations"
#: What a compiled provider's name ends with. Its layers run other code, so it has no ceiling.
COMPILED = "+compile"


def figures(measured: Mapping[str, Measured], name: str, ours: str) -> dict[str, Any]:
    """Seconds of `name`, their ratio to `ours` and the ceiling of that, each with its quartiles.

    A compiled provider is compared with ours compiled, and ours compiled with nothing.
    """
    own = measured[name]
    seconds = own.seconds
    row: dict[str, Any] = {
        "median_s": seconds.median,
        "q1_s": seconds.q1,
        "q3_s": seconds.q3,
        "runs": seconds.runs,
    }
    compiled = name.endswith(COMPILED)
    mine = ours + COMPILED if compiled else ours
    others = {"speedup": None if name == mine else mine}
    others["ceiling"] = None if compiled or name in (ours, IDLE) else IDLE
    for key, other in others.items():
        ratios = [] if other is None else timing.paired_ratios(own, measured[other])
        row |= timing.figures(key, ratios) if ratios else {key: None}
    return row
