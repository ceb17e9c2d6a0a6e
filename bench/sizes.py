"""Cost against size, from 2⁸ to 2²⁸ elements, caches warm and cold, memory fresh and reused.

Imports pyrevgrad's answers through gate, numpy, cases, idioms, machine, tables, timing and traffic.
Beside `fused` a copy of x and g and PyTorch's own activation, in the same rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyrevgrad

from . import gate, idioms, machine, traffic
from .cases import Case
from .tables import size_text, table, time_text
from .timing import Effort, Measured, figures, interleave, paired_ratios

SIZES = tuple(1 << e for e in range(8, 29, 2))
QUICK_SIZES = tuple(1 << e for e in (8, 14, 18, 20, 22))
CASES = (("relu/GUIDED", "float32"), ("relu/GUIDED", "bfloat16"), ("gelu/reverse", "float32"))
#: Beyond these no cache holds x, g and the results, however it was left: one case on one thread
#: says what there is to say, and nothing is measured cold.
LARGEST_CACHED = 1 << 24
#: Beyond these a call in fresh memory waits for pages and for hardly anything else.
LARGEST_FRESH = 1 << 26
#: How many elements at each end of a result are compared with the reference's.
_ENDS = 4096
Row = dict[str, Any]
Step = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Fit:
    """``seconds = fixed + each · n``, and how far the measured sizes are from it.

    Attributes
    ----------
    fixed, each : float
        Seconds a call, and seconds an element.
    r_squared : float
        The share of the weighted variance that the line explains.
    worst : float
        The largest deviation from the line, measured ÷ fitted − 1.
    worst_at : int
        Its number of elements.
    """

    fixed: float
    each: float
    r_squared: float
    worst: float
    worst_at: int


def fit(sizes: Sequence[int], seconds: Sequence[float]) -> Fit:
    """The line of least squares of the relative errors: with weights 1/t², every size counts.

    Unweighted, four decades of sizes would be judged by the largest alone.

    Raises
    ------
    ValueError
        Fewer than three sizes, which any line fits, or a time that is not positive.

    Examples
    --------
    >>> found = fit([1000, 2000, 4000], [3e-6, 5e-6, 9e-6])
    >>> f"{found.fixed:.1e} s and {found.each:.1e} s an element, R² {found.r_squared:.3f}"
    '1.0e-06 s and 2.0e-09 s an element, R² 1.000'
    """
    n, t = np.asarray(sizes, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    if len(n) < 3 or len(n) != len(t) or len(set(sizes)) < 3:
        raise ValueError("a line is judged by three sizes or more")
    if not (t > 0).all():
        raise ValueError("times must be positive")
    scaled = np.stack([1 / t, n / t], axis=1)
    (fixed, each), *_ = np.linalg.lstsq(scaled, np.ones_like(t), rcond=None)
    line, weights = fixed + each * n, t**-2
    middle = (weights * t).sum() / weights.sum()
    spread = (weights * (t - middle) ** 2).sum()
    unexplained = (weights * (t - line) ** 2).sum()
    # A line below 0 is no model of a cost: its deviation is beyond any bound.
    away = np.where(line > 0, t / np.where(line > 0, line, 1) - 1, np.inf)
    place = int(np.abs(away).argmax())
    explained = 1 - unexplained / spread if spread else 1.0
    return Fit(float(fixed), float(each), float(explained), float(away[place]), int(n[place]))


class Caches:
    """What empties them: a buffer twice the last cache's size, of which every line is read.

    Reading leaves nothing to be written back, which the next call would wait for.
    """

    def __init__(self) -> None:
        self._buffer = torch.ones(machine.last_cache() // 2)  # of four bytes each

    def empty(self) -> None:
        """What is called next finds its code and its data in memory."""
        self._buffer.sum()


def _made(elements: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x, no leaf but in need of a gradient, and g; random numbers over and over, since those of
    2²⁸ elements would take longer to make than to time."""
    generator = torch.Generator().manual_seed(0)
    few = min(elements, 1 << 20)
    x, g = (
        torch.randn(few, generator=generator).to(dtype).repeat(-(-elements // few))[:elements]
        for _ in "xg"
    )
    return x.requires_grad_().view_as(x), g


def steps(case: Case, x: Tensor, g: Tensor) -> dict[str, Step]:
    """Ours and PyTorch's own, forward and backward."""
    function, rule = getattr(pyrevgrad, case.activation), case.rule
    plain = idioms.plain(case.activation)
    assert plain is not None
    ours, theirs = idioms.differentiated(lambda x: function(x, rule)), idioms.differentiated(plain)
    return {"fused": lambda: ours(x, g), "plain": lambda: theirs(x, g)}


def timed(own: Measured, plain: Measured) -> Row:
    """Seconds, and how many times those of PyTorch's own."""
    seconds = own.seconds
    return {
        "median_s": seconds.median, "q1_s": seconds.q1, "q3_s": seconds.q3, "rounds": seconds.runs,
        **figures("ratio", paired_ratios(own, plain)),
    }  # fmt: skip


def _check(case: Case, x: Tensor, g: Tensor, made: dict[str, Step]) -> None:
    """Raise GateError where a result is wrong at either end, which is where an index that
    overflows shows; the same cases are gated whole at the sizes of the main tables."""
    for name, step in made.items():
        found = step()
        for end in (slice(None, _ENDS), slice(-_ENDS, None)):
            wanted = gate.expected(case, x[end], g[end])[name]
            given = zip(("value", "gradient"), found, wanted, (x, g), strict=True)
            for what, got, want, size in given:
                if not gate.agree(got[end], want, size[end]):
                    text = f"{name} gives a wrong {what} on {case.name}, {x.numel()} elements"
                    raise gate.GateError(text)


def _row(name: str, case: Case, dtype: str, elements: int, measured: dict[str, Measured]) -> Row:
    own, copy = measured[name], measured["copy"]
    moved = traffic.bytes_per_element(name, case, dtype)
    copied = traffic.bytes_per_element("copy", case, dtype)
    assert moved is not None and copied is not None
    return {
        "provider": name, "elements": elements, **timed(own, measured["plain"]),
        "bytes_per_element": moved,
        "gigabytes_per_s": moved * elements / own.seconds.median / 1e9,
        # (moved / own time) ÷ (copied / copy time), the times paired per round
        **figures("share", paired_ratios(copy, own), moved / copied),
    }  # fmt: skip


def rows(
    sizes: Sequence[int], effort: Effort, allocations: str, caches: Caches | None = None
) -> Iterator[Row]:
    """A row for each case, provider and size, then, of warm caches, one with their fit.

    Raises
    ------
    GateError
        A result is wrong.
    """
    before = None if caches is None else caches.empty
    for name, dtype in CASES:
        case = Case(*name.split("/"))
        told = {
            "case": name, "dtype": dtype, "threads": torch.get_num_threads(),
            "allocations": allocations, "caches": "warm" if caches is None else "cold",
        }  # fmt: skip
        found: list[Row] = []
        large = (name, dtype) == CASES[0] and torch.get_num_threads() == 1 and caches is None
        largest = LARGEST_FRESH if allocations == "fresh" else SIZES[-1]
        chosen = [n for n in sizes if n <= (largest if large else LARGEST_CACHED)]
        for elements in chosen:
            x, g = _made(elements, getattr(torch, dtype))
            made: dict[str, Step] = {
                **steps(case, x, g),
                "copy": lambda x=x, g=g: (x.detach().clone(), g.clone()),  # type: ignore[misc]
            }
            _check(case, x, g, made)
            rounds, most = effort, math.inf
            if elements > LARGEST_CACHED:
                rounds, most = replace(effort, least=3), 16 if allocations == "reused" else math.inf
            measured = interleave(made, rounds, before_call=before, most_faults=most)
            found += [_row(provider, case, dtype, elements, measured) for provider in made]
        yield from ({"kind": "size", **told, **row} for row in found)
        if caches is not None:
            continue
        for provider in ("fused", "plain"):
            own = [row["median_s"] for row in found if row["provider"] == provider]
            line = asdict(fit(chosen, own))
            yield {"kind": "fit", **told, "provider": provider, **line}


def _state(row: Row) -> tuple[str, int, str, str]:
    """The case, threads and state of a row; older records know reused memory and warm caches."""
    case = f"{row['case']}, {row['dtype']}"
    return case, row["threads"], row.get("allocations", "reused"), row.get("caches", "warm")


def fits(rows: list[Row]) -> str:
    """The lines, in reused memory with warm caches."""
    lines = []
    for row in rows:
        if row["kind"] != "fit" or _state(row)[2:] != ("reused", "warm"):
            continue
        lines.append(
            [
                _state(row)[0], row["provider"], str(row["threads"]),
                time_text(row["fixed"]) if row["fixed"] >= 0 else f"{row['fixed'] * 1e6:.3g} µs",
                f"{row['each'] * 1e9:.3f} ns", f"{row['r_squared']:.4f}",
                f"{row['worst']:+.0%} at {size_text(row['worst_at'])}",
            ]
        )  # fmt: skip
    head = ["case", "provider", "threads", "a", "b", "R²", "largest deviation"]
    return table(head, lines)


def _by_size(title: str, rows: list[Row], text: Callable[[Row], str]) -> str:
    """A line for each case and state of `fused`, a column for each size."""
    chosen = [row for row in rows if row["kind"] == "size" and row["provider"] == "fused"]
    sizes = sorted({row["elements"] for row in chosen})
    found: dict[tuple[str, int, str, str], dict[int, Row]] = {}
    for row in chosen:
        found.setdefault(_state(row), {})[row["elements"]] = row
    lines = [
        [case, str(threads), allocations, caches] + [text(of[n]) if n in of else "–" for n in sizes]
        for (case, threads, allocations, caches), of in found.items()
    ]
    return table([title, "threads", "memory", "caches", *map(size_text, sizes)], lines)


def _share(row: Row) -> str:
    return f"{row['share']:.0%}" if "share" in row else "–"


def _over_plain(row: Row) -> str:
    return f"{1 / row['ratio']:.2f}"


def section(rows: list[Row]) -> list[str]:
    """Every table."""
    return [
        fits(rows),
        "`fused`: nanoseconds an element.",
        _by_size("ns an element", rows, lambda r: f"{r['median_s'] / r['elements'] * 1e9:.3g}"),
        "`fused`: gigabytes a second, by the bytes that it must at least read and write.",
        _by_size("GB/s", rows, lambda r: f"{r.get('gigabytes_per_s', float('nan')):.3g}"),
        "`fused`: its share of the bandwidth at which x and g are copied in the same rounds.",
        _by_size("share of a copy's", rows, _share),
        "PyTorch's own activation with its ordinary backward: its time ÷ that of `fused`.",
        _by_size("over plain", rows, _over_plain),
    ]


def summary(rows: list[Row]) -> list[str]:
    """One case in every state."""
    case, dtype = CASES[0]
    measured = [row for row in rows if row["kind"] == "size"]
    few = [row for row in measured if (row["case"], row["dtype"]) == (case, dtype)]
    states = {_state(row) for row in few}
    parts = [fits(rows)]
    if len({state[2:] for state in states}) > 1:
        parts += [
            "How many times as fast as PyTorch's own activation, and in brackets the share of the "
            "bandwidth of copies of x and g, by memory and caches. *Cold*: before every call a "
            "buffer twice the last cache's size is read, so that the call finds neither its data "
            f"nor its code there; beyond {size_text(LARGEST_CACHED)} elements warm caches hold "
            "none either, and a timing of reused memory in which pages were made is taken again.",
            _by_size("case", few, lambda row: f"{_over_plain(row)} ({_share(row)})"),
        ]
    return parts
