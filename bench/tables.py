"""The page's tables: speed-ups beside ceilings, bandwidth beside a copy's, bytes beside plans.

Imports the standard library only; works from the rows alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]

OPPONENTS = (
    *("plain", "idiom", "eager-best", "idiom+compile", "best+compile"),
    *("captum", "zennit", "grad-cam", "pytorch-revgrad"),
    *("fused-triton", "reference", "numpy", "copy"),
)
_DIGITS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def size_text(elements: int) -> str:
    """A power of two as such.

    Examples
    --------
    >>> size_text(1024), size_text(1000)
    ('2¹⁰', '1000')
    """
    exponent = elements.bit_length() - 1
    return f"2{str(exponent).translate(_DIGITS)}" if elements == 1 << exponent else str(elements)


def time_text(seconds: float) -> str:
    """Three figures and a unit."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def _threads_text(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right."""
    rule = [":--", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def cell_text(row: Row | None) -> str:
    if row is None:
        return "–"
    if "refused" in row:
        return "refused"
    if "speedup" not in row:
        return "–"
    ceiling = f" ({row['ceiling']:.2f})" if row.get("ceiling") else ""
    return f"{row['speedup']:.2f}{ceiling}"


def _size_table(rows: list[Row]) -> str:
    """Sizes down, providers across: the speed-up of fused over each, its ceiling in brackets."""
    by_key = {(row["elements"], row["provider"]): row for row in rows}
    shown = {row["provider"] for row in rows if "speedup" in row or "refused" in row}
    present = [provider for provider in OPPONENTS if provider in shown]
    lines = []
    for size in sorted({row["elements"] for row in rows}):
        fused = by_key.get((size, "fused"), {})
        time = "–"
        if "median_s" in fused:
            time = time_text(fused["median_s"])
        lines.append(
            [
                size_text(size),
                time,
                f"{fused.get('faults', 0):.0f}",
                *[cell_text(by_key.get((size, provider))) for provider in present],
            ]
        )
    return table(["elements", "fused", "faults", *[f"over {p}" for p in present]], lines)


def detail(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def relu_section(timings: list[Row]) -> list[str]:
    parts = []
    for case in dict.fromkeys(row["case"] for row in timings if not row["curved"]):
        own = [row for row in timings if row["case"] == case]
        parts.append(f"### {case}")
        first = True
        for key in dict.fromkeys((r["dtype"], r["threads"], r["allocations"]) for r in own):
            rows = [r for r in own if (r["dtype"], r["threads"], r["allocations"]) == key]
            title = f"{key[0]}, {_threads_text(key[1])}, {key[2]} allocations"
            body = _size_table(rows)
            parts.append(f"{title}\n\n{body}" if first else detail(title, body))
            first = False
    return parts


def _curved_table(rows: list[Row], size: int) -> str:
    by_key = {(r["case"], r["provider"]): r for r in rows if r["elements"] == size}
    lines = []
    for name in dict.fromkeys(row["case"].split("/")[0] for row in rows):
        reverse, guided = f"{name}/reverse", f"{name}/GUIDED"
        fused = by_key.get((reverse, "fused"), {})
        lines.append(
            [
                name,
                time_text(fused["median_s"]) if "median_s" in fused else "–",
                *[cell_text(by_key.get((reverse, p))) for p in ("plain", "idiom", "eager-best")],
                *[cell_text(by_key.get((guided, p))) for p in ("idiom", "eager-best", "plain")],
            ]
        )
    head = [
        "activation", "reversed, fused", "over plain", "over idiom", "over eager-best",
        "GUIDED over idiom", "over eager-best", "over plain",
    ]  # fmt: skip
    return table(head, lines)


def curved_section(timings: list[Row]) -> list[str]:
    curved = [row for row in timings if row["curved"]]
    if not curved:
        return []
    parts = [
        "### Curved activations",
        "The floor is 1 for reversed over plain, and 1.5 for GUIDED over its idiom.",
    ]
    sizes = sorted({row["elements"] for row in curved})
    shown = 2**20 if 2**20 in sizes else sizes[-1]
    keys = dict.fromkeys((r["dtype"], r["threads"], r["allocations"]) for r in curved)
    first = True
    for key in keys:
        rows = [r for r in curved if (r["dtype"], r["threads"], r["allocations"]) == key]
        for size in sorted(sizes, key=lambda n: n != shown):
            title = (
                f"{key[0]}, {size_text(size)} elements, {_threads_text(key[1])}, "
                f"{key[2]} allocations"
            )
            body = _curved_table(rows, size)
            parts.append(f"{title}\n\n{body}" if first else detail(title, body))
            first = False
    return parts


def _bandwidth_text(row: Row | None) -> str:
    if row is None or "refused" in row:
        return "–" if row is None else "refused"
    return f"{row['gigabytes_per_s']:.3g} ({row['share']:.0%})"


def kernel_section(kernels: list[Row]) -> list[str]:
    if not kernels:
        return []
    parts = ["### Kernels alone, on warm buffers"]
    first = True
    for selects in (True, False):
        for key in dict.fromkeys((r["dtype"], r["threads"]) for r in kernels):
            own = [
                r for r in kernels
                if (r["dtype"], r["threads"]) == key and r["selects"] is selects
            ]  # fmt: skip
            if not own:
                continue
            sizes = sorted({row["elements"] for row in own})
            by_key = {(row["kernel"], row["elements"]): row for row in own}
            lines = []
            for name in dict.fromkeys(row["kernel"] for row in own):
                found = [by_key.get((name, size)) for size in sizes]
                counted = [f"{r['bytes_per_element']:g}" for r in found if r and "share" in r]
                lines.append(
                    [
                        name,
                        (counted or ["–"])[0],
                        *[_bandwidth_text(row) for row in found],
                    ]
                )
            kind = "select and scale (floor 85 %)" if selects else "a slope to compute (no floor)"
            title = f"GB/s and the share of copy_: {kind}, {key[0]}, {_threads_text(key[1])}"
            body = table(["kernel", "B/element", *map(size_text, sizes)], lines)
            parts.append(f"{title}\n\n{body}" if first else detail(title, body))
            first = False
    return parts


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:.2f}"


def resident_section(run: dict[str, Any]) -> list[str]:
    """Resident memory beside the plan's bytes."""
    parts = []
    if run["resident"]:
        parts.append("## Memory, each row in a process of its own (MiB)")
        lines = []
        for row in run["resident"]:
            start = [row["case"], row["provider"], row["dtype"], size_text(row["elements"])]
            planned = _mebibytes(row["plan"]) if row["provider"] == "fused" else "–"
            if "kept" in row:
                lines.append([*start, planned, _mebibytes(row["kept"]), _mebibytes(row["peak"])])
            else:
                lines.append([*start, planned, row["skipped"], "–"])
        head = ["case", "provider", "dtype", "elements", "plan()", "kept, resident", "peak"]
        parts.append(table(head, lines))
        if any(row["provider"] == "fused+compile" for row in run["resident"]):
            parts.append(
                "`plan()` speaks of `fused` as it is called: compiled on the CPU, a formula that "
                "the compiler can fuse keeps y, and no mask, which the next layer often keeps too."
            )
    return parts


def kept_section(run: dict[str, Any]) -> list[str]:
    """Bytes kept by the saved-tensor hooks, of every pair of the tables."""
    parts = []
    if run["kept"]:
        shown = [r for r in run["kept"] if r["dtype"] == run["kept"][0]["dtype"]]
        columns = ("plan", "fused", "idiom", "plain")
        lines = [
            [
                r["case"],
                *[f"{r[k] / r['elements']:.3f}" if k in r else "–" for k in columns],
                str(r["idle"]),
            ]
            for r in shown
        ]
        head = ["case", "plan()", *columns[1:], "fused, no gradient needed"]
        title = f"Bytes kept per element by the saved-tensor hooks, {shown[0]['dtype']}, every pair"
        parts.append(detail(title, table(head, lines)))
    return parts
