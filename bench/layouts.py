"""Cost against layout: contiguous, channels_last, transposed, strided; beside PyTorch's own.

Imports cases, sizes, tables and timing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .cases import Case
from .sizes import steps, timed
from .tables import table, time_text
from .timing import Effort, interleave

#: Batch × channels × height, the width as high.
SHAPES = ((1, 3, 224), (1, 64, 56), (16, 64, 56), (16, 512, 7), (64, 16, 28))
LAYOUTS = ("contiguous", "channels_last", "transposed", "strided slice")
Row = dict[str, Any]


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


def _inner(values: Tensor) -> Tensor:
    """No leaf, in need of a gradient, and laid out as the values are."""
    x = values.clone() if values.is_contiguous() else values
    return x.requires_grad_().view_as(x)


def rows(shapes: Sequence[tuple[int, int, int]], effort: Effort) -> Iterator[Row]:
    """A row for each shape, layout and provider, the gradient laid out as y is."""
    case = Case("relu", "GUIDED")
    for shape in shapes:
        for layout in LAYOUTS:
            values = laid_out(layout, *shape, torch.float32)
            g = torch.ones_like(values).normal_(generator=torch.Generator().manual_seed(1))
            measured = interleave(steps(case, _inner(values), g), effort)
            for provider, own in measured.items():
                yield {
                    "kind": "layout", "case": case.name, "shape": list(shape), "layout": layout,
                    "elements": values.numel(), "threads": torch.get_num_threads(),
                    "provider": provider, **timed(own, measured["plain"]),
                }  # fmt: skip


def section(rows: list[Row]) -> str:
    """The table."""
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


def own(rows: list[Row]) -> list[Row]:
    """Ours in every layout, beside plain's."""
    return [row for row in rows if row["kind"] == "layout" and row["provider"] == "fused"]


def summary(rows: list[Row]) -> str:
    """In how many cells ours is slower, and at worst by how much; empty without a row."""
    laid = own(rows)
    if not laid:
        return ""
    worst = max(laid, key=lambda row: row["ratio"])
    slower = sum(row["ratio"] > 1 for row in laid)
    shape = " × ".join(map(str, (*worst["shape"], worst["shape"][-1])))
    return (
        f"Layouts ({', '.join(LAYOUTS)}): slower than plain in {slower} of {len(laid)} cells, at "
        f"worst {worst['ratio']:.2f} times its time ({shape}, {worst['layout']}, "
        f"{worst['threads']} thr.)."
    )
