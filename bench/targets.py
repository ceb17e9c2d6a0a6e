"""The targets that the project set itself, judged on the rows of a run.

Imports the standard library only; rows are the dictionaries that the worker and memory print.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

#: Resident memory counts in pages, and threads and caches grow by some of them.
SLACK_BYTES = 256 * 1024

Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A figure that must not fall below a floor in the rows that it speaks of.

    Attributes
    ----------
    text : str
        As a reader would say it.
    chooses : callable
        Whether it speaks of a row.
    floor : callable
        The least that the figure of a row may be.
    figure : str
        The row's key.
    """

    text: str
    chooses: Callable[[Row], bool]
    floor: Callable[[Row], float]
    figure: str = "speedup"


def _relu(rule: str, provider: str, least: int) -> Callable[[Row], bool]:
    guided = ("relu/guided_scaled", "relu/GUIDED")
    names = guided if rule == "guided" else ("relu/reverse",)
    return lambda row: (
        row["case"] in names and row["provider"] == provider and row["elements"] >= least
    )


def _curved(rule: str, provider: str) -> Callable[[Row], bool]:
    return lambda row: (
        row["case"].endswith(f"/{rule}")
        and not row["case"].startswith("relu/")
        and row.get("curved", False)
        and row["provider"] == provider
        and row["elements"] >= 2**16
    )


def _plain_floor(row: Row) -> float:
    """No slower from 2^20 up, at most 1.7 times below, 2.2 times at 2^10 and below."""
    if row["elements"] >= 2**20:
        return 1.0
    return 1 / 2.2 if row["elements"] <= 2**10 else 1 / 1.7


def _fixed(floor: float) -> Callable[[Row], float]:
    return lambda row: floor


_PLAIN = "no slower than plain relu from 2²⁰; at most 1.7 times below, 2.2 at 2¹⁰"
TIMING = (
    Target(
        "guided relu ≥ 2.5 × faster than the idiom from 2¹⁶",
        _relu("guided", "idiom", 2**16),
        _fixed(2.5),
    ),
    Target(
        "guided relu ≥ 2.5 × faster than the compiled idiom from 2¹⁶",
        _relu("guided", "idiom+compile", 2**16),
        _fixed(2.5),
    ),
    Target(
        "guided relu faster than its strongest compiled form from 2¹⁶",
        _relu("guided", "best+compile", 2**16),
        _fixed(1.0),
    ),
    Target(
        "guided relu faster than the strongest eager form from 2¹⁶",
        _relu("guided", "eager-best", 2**16),
        _fixed(1.0),
    ),
    Target(f"guided relu {_PLAIN}", _relu("guided", "plain", 0), _plain_floor),
    Target(
        "reversed relu ≥ 1.3 × faster than relu and −λ·g from 2²⁰",
        _relu("reverse", "idiom", 2**20),
        _fixed(1.3),
    ),
    Target(f"reversed relu {_PLAIN}", _relu("reverse", "plain", 0), _plain_floor),
    Target(
        "curved activations reversed: no slower than plain from 2¹⁶",
        _curved("reverse", "plain"),
        _fixed(1.0),
    ),
    Target(
        "curved activations GUIDED: ≥ 1.5 × faster than the idiom from 2¹⁶",
        _curved("GUIDED", "idiom"),
        _fixed(1.5),
    ),
)
KERNEL = Target(
    "select-and-scale kernels alone: ≥ 85 % of `copy_`'s bandwidth from 2²⁰",
    lambda row: row["selects"] and row["elements"] >= 2**20,
    _fixed(0.85),
    "share",
)


#: How a figure stands to a floor, from good to bad.
MET, LEVEL, MISSED = STANDINGS = ("met", "level", "missed")
#: Of memory beside which the slack is no small part; no standing, and counted nowhere.
TOO_SMALL = "too small to judge"


def between(low: float, high: float, floor: float) -> str:
    """How an interval stands to a floor: wholly above, wholly below, or this run cannot tell.

    Examples
    --------
    >>> between(1.01, 1.2, 1), between(0.9, 1.2, 1), between(0.8, 0.99, 1)
    ('met', 'level', 'missed')
    """
    return MET if low >= floor else MISSED if high < floor else LEVEL


def standing(row: Row, figure: str = "speedup", floor: float = 1.0) -> str:
    """How a figure stands to a floor by the 95 % interval of its median; by itself without one."""
    low, high = (row.get(f"{figure}_{end}", row[figure]) for end in ("low", "high"))
    return between(low, high, floor)


def worst_of(words: Iterable[str]) -> str:
    """The worst of several standings.

    Examples
    --------
    >>> worst_of(["met", "level"])
    'level'
    """
    return max(words, key=STANDINGS.index)


def _cell(row: Row) -> tuple[Any, ...]:
    names = ("case", "kernel", "dtype", "threads", "allocations", "elements")
    return tuple(row.get(name) for name in names)


def verdict(target: Target, rows: Iterable[Row], refused: Collection[Any] = ()) -> Row | None:
    """How `rows` stand to `target`: counts, and the row nearest to (or farthest below) its floor.

    A cell of `refused`, where ours was refused by its gate, met no floor. None where no row is
    measured.
    """
    chosen = [row for row in rows if target.chooses(row)]
    judged = [row for row in chosen if target.figure in row]
    wrong = [row for row in chosen if target.figure not in row and _cell(row) in refused]
    if not judged and not wrong:
        return None
    words = [standing(row, target.figure, target.floor(row)) for row in judged]
    found: Row = {
        "target": target.text,
        "met": words.count(MET),
        "level": words.count(LEVEL),
        "of": len(judged) + len(wrong),
        "refused": len(wrong),
    }
    if not judged:
        return found
    worst = min(judged, key=lambda row: row[target.figure] / target.floor(row))
    floor = target.floor(worst)
    return found | {"floor": floor, "worst": worst[target.figure], "worst_row": worst}


def judge(timings: list[Row], kernels: list[Row]) -> list[Row]:
    """A verdict for every target, dtype and way of allocating."""
    found = []
    ours = [row for row in timings if row["provider"] == "fused"]
    refused = {_cell(row) for row in [*ours, *kernels] if "refused" in row}
    for dtype in sorted({row["dtype"] for row in timings}, reverse=True):
        for allocations in dict.fromkeys(row["allocations"] for row in timings):
            rows = [r for r in timings if r["dtype"] == dtype and r["allocations"] == allocations]
            for target in TIMING:
                result = verdict(target, rows, refused)
                if result is not None:
                    found.append({"dtype": dtype, "allocations": allocations, **result})
    for dtype in sorted({row["dtype"] for row in kernels}, reverse=True):
        result = verdict(KERNEL, [row for row in kernels if row["dtype"] == dtype], refused)
        if result is not None:
            found.append({"dtype": dtype, "allocations": "reused", **result})
    order = [target.text for target in (*TIMING, KERNEL)]
    return sorted(found, key=lambda row: order.index(row["target"]))


def judge_memory(hooked: list[Row], resident: list[Row]) -> list[Row]:
    """Whether the bytes kept are the plan's, by the hooks and by resident memory."""
    found = []
    if hooked:
        wrong = [r for r in hooked if r["fused"] != r["plan"] or r["idle"] != 0]
        text = "bytes kept by the saved-tensor hooks equal `plan()`; 0 when no gradient is needed"
        found.append(_memory_verdict(text, hooked, wrong))
    measured = [r for r in resident if r["provider"] == "fused" and "kept" in r]
    if measured:
        wrong = [r for r in measured if abs(r["kept"] - r["plan"]) > SLACK_BYTES]
        text = f"resident bytes kept equal `plan()` within {SLACK_BYTES // 1024} KiB"
        found.append(_memory_verdict(text, measured, wrong))
    return found


def word(found: Row) -> str:
    """How the rows of a verdict stand to their floor, by the worst of them."""
    if found["met"] + found.get("level", 0) < found["of"]:
        return MISSED
    return MET if found["met"] == found["of"] else LEVEL


def marked(text: str) -> str:
    """What is missed, so that nobody overlooks it."""
    return text.replace(MISSED, f"**{MISSED}**")


def said(found: Row) -> str:
    """The verdict in a word or two: how many rows met the floor, and how many are level with it."""
    more = "".join(f", {found[key]} {key}" for key in ("level", "refused") if found.get(key))
    return f"{word(found)} {found['met']}/{found['of']}{more}"


def _memory_verdict(text: str, rows: list[Row], wrong: list[Row]) -> Row:
    return {
        "target": text,
        "met": len(rows) - len(wrong),
        "of": len(rows),
        "wrong": [f"{row['case']} {row['dtype']}" for row in wrong],
    }
