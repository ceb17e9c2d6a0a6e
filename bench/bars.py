"""Pictures of whole networks, PNG and SVG: bars of time and of peak memory by provider.

Imports plots and tables, and matplotlib inside its functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import plots
from .ceilings import COMPILED, IDLE
from .tables import time_text

Row = dict[str, Any]
#: What a record calls ours beside the names that all providers have.
_COLOURS = {"converted": plots.LOOKS["fused"][0], IDLE: "#DDDDDD"}
_TITLES = {
    "networks": ("network", "Guided backpropagation of whole networks"),
    "training": ("case", "A step of training"),
}


def _colour(provider: str) -> str:
    plain = provider.removesuffix(COMPILED)
    return _COLOURS.get(plain) or plots.LOOKS[plain][0]


def _panel(axis: Any, rows: list[Row], values: list[float | None], texts: list[str]) -> None:
    """A bar for each row with its text behind it, and behind the quartiles where it has them."""
    most = 0.0
    for at, (row, value, text) in enumerate(zip(rows, values, texts, strict=True)):
        if value is None:
            continue
        compiled = row["provider"].endswith(COMPILED)
        axis.barh(
            -at, value, height=0.72, color=_colour(row["provider"]), edgecolor="black", lw=0.6,
            alpha=0.5 if compiled else 1, hatch="///" if compiled else None,
        )  # fmt: skip
        end = value
        if axis.get_gid() == "ratio" and row["speedup"] is not None:
            end = max(end, row["speedup_q3"])
            axis.plot([row["speedup_q1"], end], [-at, -at], color="white", lw=3.5)
            axis.plot([row["speedup_q1"], end], [-at, -at], color="black", lw=1.5)
        axis.text(end, -at, f"  {text}", va="center", fontsize=8)
        most = max(most, end)
    axis.set_xlim(0, 1.4 * most or 1)
    axis.grid(alpha=0.3, axis="x")
    axis.set_axisbelow(True)


def draw(path: Path, name: str, rows: list[Row]) -> None:
    """A line of two panels for each network: time ÷ ours, and the peak in MiB."""
    plt = plots.pyplot()
    key, title = _TITLES[name]
    timed = [row for row in rows if "median_s" in row]
    groups = list(dict.fromkeys(row[key] for row in timed))
    counts = [sum(row[key] == group for row in timed) for group in groups]
    figure, axes = plt.subplots(
        len(groups), 2, figsize=(10, 0.27 * sum(counts) + 0.75 * len(groups) + 1),
        squeeze=False, layout="constrained", height_ratios=[count + 1 for count in counts],
    )  # fmt: skip
    for (left, right), group in zip(axes, groups, strict=True):
        own = [row for row in timed if row[key] == group]
        ratios = [row["speedup"] or 1.0 for row in own]
        times = [f"{ratio:.2f} ({time_text(row['median_s'])})"
                 for ratio, row in zip(ratios, own, strict=True)]  # fmt: skip
        left.set_gid("ratio")
        _panel(left, own, list(ratios), times)
        left.axvline(1, color="black", lw=1)
        peaks = [row["peak_bytes"] / 2**20 if row.get("peak_bytes") else None for row in own]
        _panel(right, own, peaks, ["" if peak is None else f"{peak:,.4g}" for peak in peaks])
        left.set_yticks([-at for at in range(len(own))], [row["provider"] for row in own])
        right.set_yticks([])
        if not any(peaks):
            right.set_axis_off()
        left.set_title(group, fontsize=10, loc="left")
        right.set_ylim(left.get_ylim())
    axes[-1][0].set_xlabel("time ÷ ours (line: quartiles; right of 1, ours is faster)")
    for right in [right for _, right in axes if right.axison][-1:]:
        right.set_xlabel("peak memory, MiB")
    figure.suptitle(
        f"{title}; hatched: compiled, beside ours compiled" if name == "training" else title
    )
    plots.save(plt, figure, path)
