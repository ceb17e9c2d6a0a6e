"""What a run comes to, short enough for one page: wins, losses, floors, bandwidth.

Imports tables, targets and verdicts; works from the rows alone. Every cell stands in the full
tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from . import targets, verdicts
from .tables import OPPONENTS, size_text, table

Row = dict[str, Any]
#: From so many elements a call costs more than its dispatch, and the floors begin to speak.
LARGE = 1 << 16
#: Ours, or not compared with ours as it is: a copy, and what has a table of its own.
_APART = ("fused", "copy", "fused+compile", "plain+compile")
#: Slow by design: nobody would be won over by beating them.
_FOR_SCALE = ("reference", "numpy")


def group(case: str) -> str:
    """The kind of case that a row is counted with."""
    activation, _, rule = case.partition("/")
    if activation == "relu":
        return "relu, guided" if rule.lower().startswith("guided") else f"relu, {rule}"
    return f"curved, {rule}"


def _compared(timings: Iterable[Row]) -> list[Row]:
    return [row for row in timings if "speedup" in row and row["provider"] not in _APART]


def _dtypes(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["dtype"] for row in rows))


def _won(rows: list[Row], ends: bool) -> str:
    """Median of the cells, with the two ends or without, and how many were won and are level."""
    if not rows:
        return "–"
    found = [row["speedup"] for row in rows]
    middle = f"{median(found):.2f}"
    if ends:
        middle += f" ({min(found):.2f}–{max(found):.2f})"
    words = [targets.standing(row) for row in rows]
    level = words.count(targets.LEVEL)
    return f"{middle}, {words.count(targets.MET)}/{len(rows)}" + (f", {level} level" * bool(level))


def _ceiling(rows: list[Row]) -> str:
    found = [row["ceiling"] for row in rows if row.get("ceiling")]
    if not found:
        return "–"
    low, high = min(found), max(found)
    return f"{low:.2f}" if high - low < 0.005 else f"{low:.2f}–{high:.2f}"


def wins(timings: list[Row]) -> str:
    """A line for each kind of case and opponent, small and large sizes apart, ceilings beside."""
    rows = _compared(timings)
    if not rows:
        return "`fused` was not timed."
    dtypes, groups = _dtypes(rows), list(dict.fromkeys(group(row["case"]) for row in rows))
    lines = []
    for kind in groups:
        for provider in OPPONENTS:
            own = [r for r in rows if (group(r["case"]), r["provider"]) == (kind, provider)]
            if not own:
                continue
            cells = []
            for dtype in dtypes:
                of = [row for row in own if row["dtype"] == dtype]
                large = [row for row in of if row["elements"] >= LARGE]
                small = [row for row in of if row["elements"] < LARGE]
                cells += [_won(small, False), _won(large, True), _ceiling(large)]
            lines.append([kind, provider, *cells])
    head = ["cases", "faster than"]
    for dtype in dtypes:
        head += [f"{dtype}, below 2¹⁶", "from 2¹⁶", "ceiling"]
    return table(head, lines)


def compiled(timings: list[Row]) -> str:
    """Compiled over ours compiled: a line for each case, opponent and dtype; empty without one."""
    key = "compiled_speedup"
    rows = [row for row in timings if key in row and row["provider"] != "fused+compile"]
    # What compiling ours gains over calling it, told in the same way.
    rows += [
        {**row, key: 1 / row["speedup"], f"{key}_low": 1 / row["speedup_high"],
         f"{key}_high": 1 / row["speedup_low"], "provider": "fused, not compiled"}
        for row in timings
        if row["provider"] == "fused+compile" and "speedup" in row
    ]  # fmt: skip
    lines = []
    for case, provider, dtype in dict.fromkeys(
        (row["case"], row["provider"], row["dtype"]) for row in rows
    ):
        own = [r for r in rows if (r["case"], r["provider"], r["dtype"]) == (case, provider, dtype)]
        cells = []
        for large in (False, True):
            of = [row for row in own if (row["elements"] >= LARGE) is large]
            words = [targets.standing(row, key) for row in of]
            counts = " · ".join(str(words.count(w)) for w in (*targets.STANDINGS,))
            middle = f"{median(row[key] for row in of):.2f}, {counts}" if of else "–"
            cells.append(middle)
        worst = min(own, key=lambda row: row[key])
        where = f"{size_text(worst['elements'])}, {worst['allocations']}"
        lines.append([case, provider, dtype, *cells, f"{worst[key]:.2f}, {where}"])
    head = ["case", "faster than", "dtype", "below 2¹⁶", "from 2¹⁶", "least"]
    return table(head, lines) if lines else ""


def _counted(rows: list[Row]) -> str:
    words = [targets.standing(row) for row in rows]
    won, level, lost = map(words.count, (targets.MET, targets.LEVEL, targets.MISSED))
    return f"won {won}, is level in {level} and lost {lost} of {len(rows)} cells"


def in_short(run: Row, others: dict[str, Row]) -> str:
    """What the rows come to in a few sentences, the lost ones with the others."""
    rows = _compared(run["timings"])
    lines = verdicts.refused(run)
    for large, sizes in ((True, "From 2¹⁶ elements"), (False, "Below 2¹⁶ elements")):
        own = [row for row in rows if (row["elements"] >= LARGE) is large]
        same = [row for row in own if row["provider"] not in ("plain", *_FOR_SCALE)]
        plain = [row for row in own if row["provider"] == "plain"]
        if same:
            lines.append(f"{sizes} `fused` {_counted(same)} against what does the same job.")
        if plain:
            middle = median(row["speedup"] for row in plain)
            lines.append(
                f"{sizes} `fused` {_counted(plain)} against PyTorch's own activation with its "
                f"ordinary backward, which does less (median {middle:.2f})."
            )
    if not rows:
        lines.append("`fused` was not timed.")
    lines.append(verdicts.headline(run, others))
    return "\n".join(f"* {line}" for line in lines if line)


def _lost_line(names: list[str], rows: list[Row]) -> list[str] | None:
    words = [targets.standing(row) for row in rows]
    lost = [row for row, word in zip(rows, words, strict=True) if word == targets.MISSED]
    if not lost:
        return None
    worst = min(lost, key=lambda row: row["speedup"])
    sizes = sorted({row["elements"] for row in lost})
    return [
        *names,
        f"{len(lost)}/{len(rows)}",
        str(words.count(targets.LEVEL)),
        ", ".join(map(size_text, sizes)),
        f"{worst['speedup']:.2f} ({worst['speedup_q1']:.2f}–{worst['speedup_q3']:.2f})",
        f"{worst['ceiling']:.2f}" if worst.get("ceiling") else "–",
        f"{worst['case']}, {size_text(worst['elements'])}, {worst['threads']} thr., "
        f"{worst['allocations']}",
    ]


def losses(timings: list[Row], by_case: bool = False) -> str:
    """A line for each kind of case (or each case), opponent and dtype with a cell that was lost."""
    grouped: dict[tuple[str, str, str], list[Row]] = {}
    for row in _compared(timings):
        kind = row["case"] if by_case else group(row["case"])
        grouped.setdefault((kind, row["provider"], row["dtype"]), []).append(row)
    found = (_lost_line(list(key), rows) for key, rows in grouped.items())
    lines = [line for line in found if line is not None]
    if not grouped:
        return "`fused` was not timed."
    if not lines:
        return "No cell of these."
    head = ["cases", "slower than", "dtype", "cells lost", "level", "at"]
    return table([*head, "worst (quartiles)", "ceiling", "where"], lines)


def _where(found: Row) -> str:
    row = found["worst_row"]
    what = row.get("case") or row["kernel"]
    return (
        f"{what}, {size_text(row['elements'])}, {row['threads']} thr., {found['dtype']}, "
        f"{found['allocations']}"
    )


def _floor_line(found: Row) -> list[str]:
    if "worst" not in found:
        return [found["target"], targets.marked(targets.said(found)), *"–" * 4]
    ceiling = found["worst_row"].get("ceiling")
    return [
        found["target"], targets.marked(targets.said(found)),
        f"{found['worst']:.2f}", f"{found['floor']:.2f}",
        f"{ceiling:.2f}" if ceiling else "–", _where(found),
    ]  # fmt: skip


def floors(run: Row, by_dtype: bool = False) -> str:
    """A line for each floor that the project set itself, with the row that is worst to it.

    `by_dtype` gives each dtype and way of allocating a line.
    """
    merged: list[Row] = []
    for text in dict.fromkeys(found["target"] for found in run["targets"]):
        own = [found for found in run["targets"] if found["target"] == text]
        if by_dtype:
            merged += own
            continue
        timed = [found for found in own if "worst" in found] or own
        worst = min(timed, key=lambda found: found.get("worst", 0) / found.get("floor", 1))
        keys = ("met", "level", "of", "refused")
        counts = {key: sum(found.get(key, 0) for found in own) for key in keys}
        merged.append({**worst, **counts})
    lines = [_floor_line(found) for found in merged]
    for found in run["memory_targets"]:
        wrong = ", ".join(found["wrong"][:4]) or "–"
        lines.append([found["target"], targets.marked(targets.said(found)), "–", "–", "–", wrong])
    return table(["floor", "cells", "worst", "floor", "ceiling", "where"], lines)


def bandwidth(kernels: list[Row]) -> str:
    """The kernels' share of a copy's bandwidth by size: the median kernel, and the least."""
    kernels = [row for row in kernels if "share" in row]
    sizes = sorted({row["elements"] for row in kernels})
    lines = []
    for selects, kind in ((True, "select and scale"), (False, "a slope to compute")):
        for dtype in _dtypes(kernels):
            for threads in sorted({row["threads"] for row in kernels}):
                wanted = (selects, dtype, threads)
                own = [r for r in kernels if (r["selects"], r["dtype"], r["threads"]) == wanted]
                cells = []
                for size in sizes:
                    shares = [row["share"] for row in own if row["elements"] == size]
                    cells.append(f"{median(shares):.0%} ({min(shares):.0%})" if shares else "–")
                if own:
                    lines.append([kind, dtype, str(threads), *cells])
    return table(["kernels", "dtype", "threads", *map(size_text, sizes)], lines)


def left_out(timings: list[Row]) -> str:
    """Every reason that a provider has no time for, and the cases that it speaks of."""
    reasons: dict[tuple[str, str], set[str]] = {}
    for row in timings:
        for kind in ("skipped", "refused"):
            if kind in row:
                # Where a reason names its case, those of all cases are one.
                reason = row[kind].replace(row["case"], "the case")
                reasons.setdefault((row["provider"], reason), set()).add(row["case"])
    lines = []
    for (provider, reason), found in reasons.items():
        names = sorted(found)
        few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        lines.append(f"* `{provider}` on {few}: {reason}")
    return "\n".join(lines) or "Nothing."


def without_figures(timings: list[Row]) -> list[str]:
    """The providers that have no time at all, each with its commonest reason."""
    timed = {row["provider"] for row in timings if "median_s" in row}
    lines = []
    for provider in dict.fromkeys(row["provider"] for row in timings):
        why = [r.get("refused") or r["skipped"] for r in timings
               if r["provider"] == provider and "median_s" not in r]  # fmt: skip
        if provider not in timed and why:
            lines.append(f"`{provider}` has no figure: {max(why, key=why.count)}.")
    return lines
