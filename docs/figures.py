"""The speed figures of the README, read from what the benchmarks recorded.

Imports the standard library only; `bench/report.py` writes the records.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

NONE_YET = (
    "No figures are recorded yet. `make bench` measures this machine; what is recorded under "
    "`bench/results/` is printed here."
)
#: What the README shows of a record; the benchmark's own page shows all of it.
CASES = {
    "relu/GUIDED": "`GUIDED` relu",
    "relu/reverse": "reversed relu",
    "gelu/reverse": "reversed gelu",
}
POWERS = {1 << 16: "2¹⁶", 1 << 20: "2²⁰", 1 << 24: "2²⁴"}
OPPONENTS = {
    "idiom": "the eager idiom",
    "best+compile": "the strongest compiled form",
    "eager-best": "the strongest eager form",
    "plain": "PyTorch's own",
}
ALLOCATIONS = ("fresh", "reused")
HEAD = ["pair", "elements", "time"]

Row = dict[str, Any]


def text(results: Path, floors: Callable[[Path], str]) -> str:
    """The figures section: the newest record's table, what `floors` says of its folder and where
    there is more, or a sentence that there is none."""
    found = sorted(results.glob("*/results.json")) if results.is_dir() else []
    runs = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in found}
    if not runs:
        return NONE_YET
    newest = max(runs, key=lambda folder: runs[folder]["date"])
    parts = [part(runs[newest]), floors(newest)]
    if (newest / "networks.json").is_file():
        parts.append(networks(json.loads((newest / "networks.json").read_text(encoding="utf-8"))))
    if (newest / "speedup.png").is_file():
        picture = f"bench/results/{newest.name}/speedup.png"
        parts.append(f"![Their time over ours, from 2¹⁰ to 2²⁴ elements]({picture})")
        names = [f"`{name}`, {words}" for name, words in OPPONENTS.items()]
        parts.append(f"Opponents in the picture: {'; '.join(names)}.")
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
    """One record: where and with what, and the table."""
    intro = (
        f"{where_and_when(run)}. "
        "Forward and backward of float32 on one thread, and the opponent's time over ours: above "
        "1 ours is faster. The first number has results in fresh memory, whose pages the system "
        "must first map, the second in reused memory; in brackets, what counting bytes promises. "
        "The *idiom* is what people write (masks and products, or a multiplication behind the "
        "activation), the *strongest* forms the fewest kernels that we know of; *PyTorch's own* "
        "has the ordinary backward, which does less."
    )
    timed = {row["provider"] for row in run["timings"] if "speedup" in row}
    opponents = [name for name in OPPONENTS if name in timed]
    head = [*HEAD, *(f"over {OPPONENTS[name]}" for name in opponents)]
    rows = [
        line(case, size, chosen, opponents)
        for case in CASES
        for size in POWERS
        if any(chosen := [chosen_rows(run, case, size, way) for way in ALLOCATIONS])
    ]
    rule = ["---", *["--:"] * (len(head) - 1)]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))
    return f"{intro}\n\n{table}"


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


def line(case: str, size: int, ways: list[dict[str, Row]], opponents: list[str]) -> list[str]:
    """One line of the table; `ways` are its rows in fresh and in reused memory."""
    times = " / ".join(time(rows["fused"]["median_s"]) if rows else "–" for rows in ways)
    ratios = [ratio([rows.get(name, {}) for rows in ways]) for name in opponents]
    return [CASES[case], POWERS[size], times, *ratios]


def time(seconds: float) -> str:
    """In microseconds or milliseconds."""
    return f"{seconds * 1e6:.3g} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def ratio(rows: list[Row]) -> str:
    """An opponent's time over ours in fresh and in reused memory, its ceiling in brackets."""
    timed = [row for row in rows if "speedup" in row]
    if not timed:
        return "–"
    said = " / ".join(f"{row['speedup']:.2f}" if "speedup" in row else "–" for row in rows)
    ceiling = timed[0].get("ceiling")
    return f"{said} ({ceiling:.2f})" if ceiling else said


def networks(run: Row) -> str:
    """Guided backpropagation of whole networks, beside its bytes' ceiling and the floor."""
    told = []
    for row in run["rows"]:
        if row["provider"] in ("plain", "captum") and row["speedup"]:
            floor = f", floor {row['floor']:g}" if row["floor"] else ""
            over = OPPONENTS.get(row["provider"], row["provider"])
            told.append(f"{row['network']} {ratio([row])} over {over}{floor}")
    return f"Guided backpropagation of whole networks: {'; '.join(told)}."
