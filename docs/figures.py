"""The speed figures of the README, read from what the benchmarks recorded. Imports nothing of ours.
"""

from __future__ import annotations

from pathlib import Path

NONE_YET = (
    "No figures are recorded yet. `make bench` measures this machine; what is recorded under "
    "`bench/results/` is printed here."
)


def text(results: Path) -> str:
    """The figures section: a table for each record, or a sentence that there is none."""
    return NONE_YET
