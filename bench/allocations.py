"""The ways of allocating: what glibc's allocator is told before a measuring process exists.

Imports the standard library only. glibc reads its variables once, when a process starts.
"""

from __future__ import annotations

import os

_FRESH = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}
#: `fresh` pins the threshold that glibc starts with: every result of 128 KiB or more is mapped anew
#: and its pages fault in. (Left alone, glibc raises the threshold to the largest block freed so
#: far, up to 32 MiB, and a benchmark's loop soon reuses its memory.) `reused`: nothing is mapped by
#: itself and nothing is given back. `default`: glibc left alone. `huge`: fresh, and torch told to
#: ask for huge pages for every tensor.
ALLOCATIONS: dict[str, dict[str, str]] = {
    "fresh": _FRESH,
    "reused": {
        "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(64 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
    },
    "default": {},
    "huge": {**_FRESH, "THP_MEM_ALLOC_ENABLE": "1"},
}

#: What every run measures, if not told otherwise.
USUAL = ("fresh", "reused")


def environment(allocations: str) -> dict[str, str]:
    """The variables of a process that allocates so."""
    ours = ("MALLOC_", "THP_MEM_ALLOC_ENABLE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | ALLOCATIONS[allocations]
