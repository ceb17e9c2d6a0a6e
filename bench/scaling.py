"""Cost against size, fitted by a line, and against layout, threads 1 and 2.

Imports pyrevgrad, numpy, cases, idioms, page and timing. Timed in a process of its own whose
allocator keeps its memory, since pages that fault in are another cost than the kernels'.
``python -m bench.scaling`` prints the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyrevgrad

from . import answers, idioms, machine
from .cases import Case
from .tables import size_text, table, time_text
from .timing import Effort, figures, interleave, paired_ratios

#: Nothing is mapped by itself and nothing is given back.
REUSED = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(64 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
SIZES = tuple(1 << e for e in range(10, 25))
QUICK_SIZES = tuple(1 << e for e in (10, 14, 18, 20, 22))
CASES = (("relu/GUIDED", "float32"), ("relu/GUIDED", "bfloat16"), ("gelu/reverse", "float32"))
#: Batch × channels × height, the width as high.
SHAPES = ((1, 3, 224), (1, 64, 56), (16, 64, 56), (16, 512, 7), (64, 16, 28))
LAYOUTS = ("contiguous", "channels_last", "transposed", "strided slice")
Row = dict[str, Any]


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


def laid_out(layout: str, batch: int, channels: int, height: int, dtype: torch.dtype) -> Tensor:
    """Random numbers of shape (batch, channels, height, height) as `layout` has them.

    ``transposed`` is dense with its dimensions in another order of memory; ``strided slice`` has
    gaps: every second column of a tensor twice as wide.
    """
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    if layout == "contiguous":
        return made(batch, channels, height, height)
    if layout == "channels_last":
        whole = made(batch, channels, height, height)
        return whole.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return made(channels, batch, height, height).transpose(0, 1).transpose(2, 3)
    if layout == "strided slice":
        return made(batch, channels, height, 2 * height)[..., ::2]
    raise ValueError(f"no layout {layout!r}; there are {', '.join(LAYOUTS)}")


def _steps(case: Case, x: Tensor, g: Tensor) -> dict[str, Callable[[], object]]:
    function, rule = getattr(pyrevgrad, case.activation), case.rule
    plain = idioms.plain(case.activation)
    assert plain is not None
    return {
        "fused": lambda: torch.autograd.grad(function(x, rule), x, g),
        "plain": lambda: torch.autograd.grad(plain(x), x, g),
    }


def _inner(values: Tensor) -> Tensor:
    """No leaf, in need of a gradient, and laid out as the values are."""
    x = values.clone() if values.is_contiguous() else values
    return x.requires_grad_().view_as(x)


def _timed(steps: dict[str, Callable[[], object]], effort: Effort) -> dict[str, Row]:
    measured = interleave(steps, effort)
    found = {}
    for name, own in measured.items():
        seconds = own.seconds
        found[name] = {
            "median_s": seconds.median, "q1_s": seconds.q1, "q3_s": seconds.q3,
            "rounds": seconds.runs,
            **figures("ratio", paired_ratios(own, measured["plain"])),
        }  # fmt: skip
    return found


def size_rows(sizes: Sequence[int], effort: Effort) -> Iterator[Row]:
    """A row for each case, provider and size, then one with their fit."""
    for name, dtype in CASES:
        case, rows = Case(*name.split("/")), []
        for elements in sizes:
            generator = torch.Generator().manual_seed(0)
            values, g = (
                torch.randn(elements, generator=generator).to(getattr(torch, dtype)) for _ in "xg"
            )
            for provider, row in _timed(_steps(case, _inner(values), g), effort).items():
                rows.append({"provider": provider, "elements": elements, **row})
        told = {"case": name, "dtype": dtype, "threads": torch.get_num_threads()}
        for provider in ("fused", "plain"):
            own = [row for row in rows if row["provider"] == provider]
            found = fit(sizes, [row["median_s"] for row in own])
            yield from ({"kind": "size", **told, **row} for row in own)
            yield {"kind": "fit", **told, "provider": provider, **asdict(found)}


def layout_rows(shapes: Sequence[tuple[int, int, int]], effort: Effort) -> Iterator[Row]:
    """A row for each shape, layout and provider, the gradient laid out as y is."""
    case = Case("relu", "GUIDED")
    for shape in shapes:
        for layout in LAYOUTS:
            values = laid_out(layout, *shape, torch.float32)
            g = torch.ones_like(values).normal_(generator=torch.Generator().manual_seed(1))
            steps = _steps(case, _inner(values), g)
            for provider, row in _timed(steps, effort).items():
                yield {
                    "kind": "layout", "case": case.name, "shape": list(shape), "layout": layout,
                    "elements": values.numel(), "threads": torch.get_num_threads(),
                    "provider": provider, **row,
                }  # fmt: skip


def own_rows(quick: bool) -> list[Row]:
    """The rows of this process."""
    effort = Effort(0.05, 3, 21, 3e-4) if quick else Effort(0.1, 5, 41, 1e-3)
    rows: list[Row] = []
    for threads in [n for n in (1, 2) if n <= machine.usable_processors()]:
        torch.set_num_threads(threads)
        rows += size_rows(QUICK_SIZES if quick else SIZES, effort)
        rows += layout_rows(SHAPES[1:3] if quick else SHAPES, effort)
    return rows


def measure(quick: bool) -> list[Row]:
    """The rows, timed in a process whose allocator keeps its memory."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | REUSED
    environment.pop("OMP_NUM_THREADS", None)
    return answers.of("scaling", ["--own", *["--quick"] * quick], environment)


def _fit_table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        if row["kind"] != "fit":
            continue
        lines.append(
            [
                f"{row['case']}, {row['dtype']}", row["provider"], str(row["threads"]),
                time_text(row["fixed"]) if row["fixed"] >= 0 else f"{row['fixed'] * 1e6:.3g} µs",
                f"{row['each'] * 1e9:.3f} ns", f"{row['r_squared']:.4f}",
                f"{row['worst']:+.0%} at {size_text(row['worst_at'])}",
            ]
        )  # fmt: skip
    head = ["case", "provider", "threads", "a", "b", "R²", "largest deviation"]
    return table(head, lines)


def _size_table(rows: list[Row]) -> str:
    """Nanoseconds an element of `fused`, where a step in the cost would show."""
    chosen = [row for row in rows if row["kind"] == "size" and row["provider"] == "fused"]
    sizes = sorted({row["elements"] for row in chosen})
    found: dict[tuple[str, str, int], dict[int, Row]] = {}
    for row in chosen:
        found.setdefault((row["case"], row["dtype"], row["threads"]), {})[row["elements"]] = row
    lines = [
        [f"{case}, {dtype}, {threads} thr."]
        + [f"{of[n]['median_s'] / n * 1e9:.3g}" if n in of else "–" for n in sizes]
        for (case, dtype, threads), of in found.items()
    ]
    return table(["ns an element", *map(size_text, sizes)], lines)


def _layout_table(rows: list[Row]) -> str:
    chosen = [row for row in rows if row["kind"] == "layout"]
    found = {
        (tuple(r["shape"]), r["threads"], r["layout"], r["provider"]): r["median_s"] for r in chosen
    }
    ratios = {
        (tuple(r["shape"]), r["threads"], r["layout"]): r["ratio"]
        for r in chosen
        if r["provider"] == "fused"
    }
    lines = []
    for (shape, threads, layout), ratio in ratios.items():
        own = found[shape, threads, layout, "fused"]
        more = [
            found[shape, threads, layout, name] / found[shape, threads, "contiguous", name]
            for name in ("fused", "plain")
        ]
        text = " × ".join(map(str, (*shape, shape[-1])))
        cells = [f"{more[0]:.2f}", f"{more[1]:.2f}", f"{ratio:.2f}"]
        lines.append([text, layout, str(threads), time_text(own), *cells])
    head = ["batch × channels × height × width", "layout", "threads", "fused"]
    head += ["÷ contiguous", "plain ÷ contiguous", "fused ÷ plain"]
    return table(head, lines)


def layouts(rows: list[Row]) -> list[Row]:
    """Ours in every layout, beside plain's."""
    return [row for row in rows if row["kind"] == "layout" and row["provider"] == "fused"]


def section(rows: list[Row]) -> str:
    """The section of the page."""
    return "\n\n".join(
        [
            "## Scaling",
            "Forward and backward, reused allocations. Fitted by t = a + b·n with weights 1/t², "
            "so that every size counts alike; the deviation is measured ÷ fitted − 1. A cache "
            "that a size leaves shows as a step in the nanoseconds an element, ours and plain's.",
            _fit_table(rows),
            _size_table(rows),
            "Layouts of relu/GUIDED, float32, the gradient laid out as y. *transposed* is dense in "
            "another order of memory; a *strided slice* (every second column) has gaps, and its "
            "result has none.",
            _layout_table(rows),
        ]
    )


def summary(rows: list[Row]) -> str:
    """The fitted lines, and the layout that costs ours most."""
    laid = layouts(rows)
    parts = [
        "## Scaling",
        "Forward and backward fitted by t = a + b·n over all sizes, weights 1/t²; a size that "
        "leaves a cache shows as a deviation, ours and plain's.",
        _fit_table(rows),
    ]
    if laid:
        worst = max(laid, key=lambda row: row["ratio"])
        slower = sum(row["ratio"] > 1 for row in laid)
        shape = " × ".join(map(str, (*worst["shape"], worst["shape"][-1])))
        parts.append(
            f"Layouts (contiguous, channels_last, transposed, strided slice): slower than plain in "
            f"{slower} of {len(laid)} cells, at worst {worst['ratio']:.2f} times its time "
            f"({shape}, {worst['layout']}, {worst['threads']} thr.)."
        )
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; or the rows of this process, for `measure`."""
    parser = answers.parser("scaling", __doc__.split("\n")[0], "fewer sizes, shapes and rounds")
    parser.add_argument("--own", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.own:
        print(json.dumps(own_rows(options.quick)))
        return 0
    return answers.show(options, measure, section)


if __name__ == "__main__":
    sys.exit(main())
