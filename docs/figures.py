"""The speed figures of the README, read from what the benchmarks recorded.

Imports the standard library only; `bench/report.py` writes the records.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NONE_YET = (
    "No figures are recorded yet. `make bench` measures this machine; what is recorded under "
    "`bench/results/` is printed here."
)
#: What the README shows of a record; the benchmark's own page shows all of it.
CASES = {
    "relu/GUIDED": "`GUIDED` relu",
    "relu/guided_scaled": "`GUIDED.scaled(-0.5)` relu",
    "relu/reverse": "reversed relu",
    "gelu/reverse": "reversed gelu",
    "gelu/GUIDED": "`GUIDED` gelu",
}
POWERS = {1 << 16: "2¹⁶", 1 << 20: "2²⁰", 1 << 24: "2²⁴"}
OPPONENTS = {
    "idiom": "the eager idiom",
    "idiom+compile": "the idiom, compiled",
    "best+compile": "the strongest compiled form",
    "eager-best": "the strongest eager form",
    "plain": "PyTorch's own",
}
ALLOCATIONS = ("fresh", "reused")
HEAD = ["pair", "elements", "results in", "time"]

Row = dict[str, Any]


def text(results: Path) -> str:
    """The figures section: the newest record's table and where there is more, or a sentence that
    there is none."""
    found = sorted(results.glob("*/results.json")) if results.is_dir() else []
    runs = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in found}
    if not runs:
        return NONE_YET
    newest = max(runs, key=lambda folder: runs[folder]["date"])
    parts = [part(runs[newest])]
    if (results.parent / "README.md").is_file():
        link = "[bench/README.md](bench/README.md)"
        parts.append(f"The method, wins, losses and whole networks: {link}.")
    for folder, run in runs.items():
        if folder != newest:
            link = f"[its page](bench/results/{folder.name}/README.md)"
            parts.append(f"{where_and_when(run)}: {link}.")
    return "\n\n".join(parts)


def where_and_when(run: Row) -> str:
    """Of one record."""
    machine = run["machine"]
    changes = ", with changes" if machine["dirty"] else ""
    return (
        f"{'A quick run' if run['quick'] else 'Measured'} on {run['date'][:10]}: "
        f"{machine['processor']}, torch {machine['torch']}, commit "
        f"{(machine['commit'] or 'unknown')[:9]}{changes}"
    )


def part(run: Row) -> str:
    """One record: where and with what, the table, the targets."""
    intro = (
        f"{where_and_when(run)}. "
        "Forward and backward, float32, one thread; how many times as fast as each opponent, in "
        "brackets the most that the byte counts allow. Fresh memory faults its pages in, reused "
        "memory does not; from 4 MiB (2²⁰) `fused` asks for huge pages, which fault less."
    )
    timed = {row["provider"] for row in run["timings"] if "speedup" in row}
    opponents = [name for name in OPPONENTS if name in timed]
    head = [*HEAD, *(f"over {OPPONENTS[name]}" for name in opponents)]
    rows = [
        line(chosen, allocations, opponents)
        for case in CASES
        for size in POWERS
        for allocations in ALLOCATIONS
        if (chosen := chosen_rows(run, case, size, allocations))
    ]
    rule = ["---", *["--:"] * (len(head) - 1)]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))
    return "\n\n".join([intro, table, targets(run)])


def chosen_rows(run: Row, case: str, size: int, allocations: str) -> dict[str, Row]:
    """The rows of one line by provider; none where ours was not timed."""
    wanted = {
        "case": case, "elements": size, "allocations": allocations, "threads": 1,
        "dtype": "float32",
    }  # fmt: skip
    found = {
        row["provider"]: row
        for row in run["timings"]
        if all(row[key] == value for key, value in wanted.items())
    }
    return found if "median_s" in found.get("fused", {}) else {}


def line(rows: dict[str, Row], allocations: str, opponents: list[str]) -> list[str]:
    """One line of the table."""
    ours = rows["fused"]
    seconds = ours["median_s"]
    time = f"{seconds * 1e6:.3g} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"
    start = [CASES[ours["case"]], POWERS[ours["elements"]], f"{allocations} memory", time]
    return [*start, *(ratio(rows.get(name)) for name in opponents)]


def ratio(row: Row | None) -> str:
    """An opponent's time over ours, its ceiling in brackets."""
    if row is None or "speedup" not in row:
        return "–"
    ceiling = f" ({row['ceiling']:.2f})" if row.get("ceiling") else ""
    return f"{row['speedup']:.2f}{ceiling}"


def targets(run: Row) -> str:
    """How many of the project's targets this run met, and which it missed."""
    judged = [*run["targets"], *run["memory_targets"]]
    below = [found for found in judged if found["met"] < found["of"]]
    said = f"{len(judged) - len(below)} of {len(judged)} targets met in every row."
    if not below:
        return said
    lines = [
        f"* {found['target']}{where(found)}: met in {found['met']} of {found['of']} rows"
        + (f", level with it within noise in {found['level']}" if found.get("level") else "")
        for found in below
    ]
    return f"{said} The others:\n\n" + "\n".join(lines)


def where(found: Row) -> str:
    """The dtype and the way of allocating that a target was judged in, if it was."""
    return f" ({found['dtype']}, {found['allocations']})" if "dtype" in found else ""
