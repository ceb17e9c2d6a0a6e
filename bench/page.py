"""The generated page: what was measured and how, the targets, every table, and what was lost.

Imports the standard library only; works from the rows alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]

_OPPONENTS = ("plain", "idiom", "idiom+compile", "eager-best", "copy", "reference")
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


def _where(row: Row) -> str:
    what = row.get("case") or row["kernel"]
    place = f"{what}, {size_text(row['elements'])}, {row['threads']} thr."
    return place


def _targets(run: dict[str, Any]) -> str:
    rows = []
    for found in run["targets"]:
        worst, verdict = found["worst_row"], "met" if found["met"] == found["of"] else "**missed**"
        ceiling = worst.get("ceiling")
        rows.append(
            [
                found["target"],
                found["dtype"],
                found["allocations"],
                f"{verdict} {found['met']}/{found['of']}",
                f"{found['worst']:.2f}",
                f"{found['floor']:.2f}",
                f"{ceiling:.2f}" if ceiling else "–",
                _where(worst),
            ]
        )
    for found in run["memory_targets"]:
        verdict = "met" if found["met"] == found["of"] else "**missed**"
        wrong = ", ".join(found["wrong"][:4]) or "–"
        count = f"{verdict} {found['met']}/{found['of']}"
        rows.append([found["target"], "all", "–", count, "–", "–", "–", wrong])
    head = ["target", "dtype", "allocations", "rows", "worst", "floor", "ceiling", "where"]
    return table(head, rows)


def _cell_text(row: Row | None) -> str:
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
    present = [provider for provider in _OPPONENTS if provider in shown]
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
                *[_cell_text(by_key.get((size, provider))) for provider in present],
            ]
        )
    return table(["elements", "fused", "faults", *[f"over {p}" for p in present]], lines)


def _detail(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def _relu_section(timings: list[Row]) -> list[str]:
    parts = []
    for case in dict.fromkeys(row["case"] for row in timings if not row["curved"]):
        own = [row for row in timings if row["case"] == case]
        parts.append(f"### {case}")
        first = True
        for key in dict.fromkeys((r["dtype"], r["threads"], r["allocations"]) for r in own):
            rows = [r for r in own if (r["dtype"], r["threads"], r["allocations"]) == key]
            title = f"{key[0]}, {_threads_text(key[1])}, {key[2]} allocations"
            body = _size_table(rows)
            parts.append(f"{title}\n\n{body}" if first else _detail(title, body))
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
                *[_cell_text(by_key.get((reverse, p))) for p in ("plain", "idiom", "eager-best")],
                *[_cell_text(by_key.get((guided, p))) for p in ("idiom", "eager-best", "plain")],
            ]
        )
    head = [
        "activation", "reversed, fused", "over plain", "over idiom", "over eager-best",
        "GUIDED over idiom", "over eager-best", "over plain",
    ]  # fmt: skip
    return table(head, lines)


def _curved_section(timings: list[Row]) -> list[str]:
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
            parts.append(f"{title}\n\n{body}" if first else _detail(title, body))
            first = False
    return parts


def _bandwidth_text(row: Row | None) -> str:
    return "–" if row is None else f"{row['gigabytes_per_s']:.3g} ({row['share']:.0%})"


def _kernel_section(kernels: list[Row]) -> list[str]:
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
                counted = next(r for r in found if r)["bytes_per_element"]
                lines.append(
                    [
                        name,
                        f"{counted:g}",
                        *[_bandwidth_text(row) for row in found],
                    ]
                )
            kind = "select and scale (floor 85 %)" if selects else "a slope to compute (no floor)"
            title = f"GB/s and the share of copy_: {kind}, {key[0]}, {_threads_text(key[1])}"
            body = table(["kernel", "B/element", *map(size_text, sizes)], lines)
            parts.append(f"{title}\n\n{body}" if first else _detail(title, body))
            first = False
    return parts


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:.2f}"


def _memory_section(run: dict[str, Any]) -> list[str]:
    parts = []
    if run["resident"]:
        parts.append("### Memory, each row in a process of its own (MiB)")
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
        parts.append(_detail(title, table(head, lines)))
    return parts


def _losses(timings: list[Row]) -> str:
    """A line for each case, opponent and dtype with a lost cell: how many, and the worst."""
    grouped: dict[tuple[str, str, str], list[Row]] = {}
    for row in timings:
        if "speedup" in row and row["provider"] not in ("fused", "copy"):
            key = (row["case"], row["provider"], row["dtype"])
            grouped.setdefault(key, []).append(row)
    lines = []
    for (case, provider, dtype), rows in grouped.items():
        lost = [row for row in rows if row["speedup"] < 1]
        if not lost:
            continue
        worst = min(lost, key=lambda row: row["speedup"])
        sizes = sorted({row["elements"] for row in lost})
        lines.append(
            [
                case,
                provider,
                dtype,
                f"{len(lost)}/{len(rows)}",
                ", ".join(map(size_text, sizes)),
                f"{worst['speedup']:.2f} ({worst['speedup_q1']:.2f}–{worst['speedup_q3']:.2f})",
                f"{size_text(worst['elements'])}, {worst['threads']} thr., {worst['allocations']}",
            ]
        )
    if not lines:
        return "None in this run."
    head = ["case", "slower than", "dtype", "cells", "at", "worst (quartiles)", "where"]
    return table(head, lines)


def _left_out(timings: list[Row]) -> str:
    reasons: dict[tuple[str, str], set[str]] = {}
    for row in timings:
        for kind in ("skipped", "refused"):
            if kind in row:
                reasons.setdefault((row["provider"], row[kind]), set()).add(row["case"])
    lines = []
    for (provider, reason), found in reasons.items():
        names = sorted(found)
        few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        lines.append(f"* `{provider}` on {few}: {reason}")
    return "\n".join(lines) or "Nothing."


_METHOD = """\
* **What is timed.** Forward and `torch.autograd.grad` on an input that is no leaf, as inside a
  network; x and g are made beforehand, and the results are freed inside the timing.
* **Rounds.** Every round times each provider once, in a shuffled order, with as many repetitions
  as fill one sample. A provider several times slower than the others sits out some rounds. The
  figure is the median over the rounds; a ratio is taken within each round, and its median is
  printed: a machine that slows down slows all of a round.
* **Gate.** Before it is timed, each provider's value and gradient on the very same tensors are
  compared with the reference's (above 2²⁰ elements the first and last 2¹⁹), and it must leave its
  inputs alone. One that fails prints no time.
* **Allocations.** Each in a process of its own. *fresh*: glibc's first threshold pinned, so that
  every result of 128 KiB or more is mapped anew and its pages fault in. *reused*: glibc told to
  keep its memory (thresholds raised). Left alone (`--allocations default`), glibc raises its
  threshold to the largest block freed, up to 32 MiB, and lies between the two. `faults`: page
  faults in one call of `fused`.
* **Ceiling**, in brackets behind a ratio: the speed-up that the bytes read and written would give
  by themselves, derived provider by provider in `bench/traffic.py`. An opponent that computes
  slowly, or waits for page faults, is beaten by more; a ceiling below 1 says that no kernel could
  win.
* **Providers.** `fused`: the native backend. `reference`: the same rule in plain PyTorch. `idiom`:
  what people write. `idiom+compile`: the same under `torch.compile`, compiled once for all sizes.
  `eager-best`: the strongest eager form known. `plain`: PyTorch's activation with its ordinary
  backward. `copy`: x and g cloned, the price of moving the bytes.
* The targets name no size for the curved activations; they are judged from 2¹⁶ up, as relu's.
"""


def _machine_section(run: dict[str, Any]) -> str:
    machine, settings = run["machine"], run["settings"]
    dirty = {True: ", with uncommitted changes", False: "", None: ""}[machine["dirty"]]
    lines = [
        f"* {machine['processor']}, {machine['processors']} processors; {machine['system']}, "
        f"{machine['libc']}; transparent huge pages: {machine['transparent_huge_pages']}",
        f"* Python {machine['python']}, torch {machine['torch']} ({machine['torch_kernels']}), "
        f"pyrevgrad {machine['pyrevgrad']} ({machine['native']}; {machine['autograd']}), "
        f"commit {machine['commit'] or 'unknown'}{dirty}",
        f"* {run['date']}, {run['minutes']:.1f} minutes, `{run['command']}`; load average "
        f"{run['load'][0]} at the start, {run['load'][1]} at the end",
        f"* threads {settings['threads']}, dtypes {', '.join(settings['dtypes'])}",
    ]
    start = run["load"][0]
    if start is not None and start > 0.5:
        lines.append("* **The machine was not quiet when this run started: expect noise.**")
    return "\n".join(lines)


def page(run: dict[str, Any], pictures: list[str], prefix: str) -> str:
    """The whole page; `prefix` leads from it to the pictures' folder."""
    timings = run["timings"]
    kind = "quick run: fewer sizes and rounds" if run["quick"] else "full run"
    shown = "\n\n".join(f"![{name[:-4]}]({prefix}{name})" for name in pictures)
    parts = [
        "# What a modified backward costs",
        "Generated by `python -m bench`; do not edit. Every ratio is *their time ÷ ours* in one "
        f"run: above 1, `fused` is faster. This is a {kind}.",
        _machine_section(run),
        "## Targets",
        "*rows*: how many cells of size × threads × case met the floor, and the worst of them.",
        _targets(run),
        "## Pictures" if pictures else "",
        shown,
        "## Losses",
        "Where `fused` was slower than an opponent (a copy aside), and in how many cells.",
        _losses(timings),
        "## Tables",
        *_relu_section(timings),
        *_curved_section(timings),
        *_kernel_section(run["kernels"]),
        *_memory_section(run),
        "## Left out",
        _left_out(timings),
        "## Method",
        _METHOD,
    ]
    return "\n\n".join(part for part in parts if part).rstrip() + "\n"
