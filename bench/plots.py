"""The pictures, PNG and SVG: speed-up against size, the roofline, curved activations, memory.

Imports matplotlib and Pillow, inside its functions: a run without them writes everything else.
"""

from __future__ import annotations

import io
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .tables import size_text

Row = dict[str, Any]

#: Okabe and Ito's palette, which colour-blind readers tell apart, and two greys; one colour and
#: one marker a provider throughout.
LOOKS = {
    "fused": ("#000000", "o"),
    "plain": ("#0072B2", "o"),
    "idiom": ("#D55E00", "s"),
    "eager-best": ("#E69F00", "^"),
    "idiom+compile": ("#CC79A7", "v"),
    "best+compile": ("#5E3C99", "<"),
    "captum": ("#009E73", "D"),
    "zennit": ("#56B4E9", "P"),
    "grad-cam": ("#8C6D31", "X"),
    "pytorch-revgrad": ("#666666", "*"),
    "copy": ("#999999", "."),
}
_DPI = 90


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Text stays text, which is small and can be searched; the ids do not change from run to run.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pyrevgrad"})
    return plt


def save(plt: Any, figure: Any, path: Path) -> None:
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DPI)
    # Bands over bands make thousands of shades; 128 colours take a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(128).save(path.with_suffix(".png"), optimize=True)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def _legend_below(figure: Any, axes: Any, columns: int) -> None:
    """One legend for all panels, each label once."""
    found = [axis.get_legend_handles_labels() for axis in axes]
    labelled = {text: line for pair in found for line, text in zip(*pair, strict=True)}
    figure.legend(
        labelled.values(), labelled.keys(), loc="outside lower center", ncols=columns,
        frameon=False, fontsize=9,
    )  # fmt: skip


def _size_axis(axis: Any, sizes: list[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [size_text(size) for size in sizes])
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def _times(value: float, _: int) -> str:
    return f"{value:g}×" if value >= 1 else f"1/{1 / value:g}×"


def crossings(rows: list[Row]) -> Iterator[float]:
    """The sizes at which the speed-up goes through 1, between two measured sizes on log axes.

    Examples
    --------
    >>> rows = [{"elements": 2**10, "speedup": 0.5}, {"elements": 2**12, "speedup": 2.0}]
    >>> [round(size) for size in crossings(rows)]
    [2048]
    """
    rows = sorted(rows, key=lambda row: row["elements"])
    for here, there in itertools.pairwise(rows):
        a, b = math.log(here["speedup"]), math.log(there["speedup"])
        if a * b < 0:
            part = a / (a - b)
            yield here["elements"] ** (1 - part) * there["elements"] ** part


def _chosen(rows: list[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _speedup_panel(axis: Any, rows: list[Row]) -> None:
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["provider"]].append(row)
    crossed: list[float] = []
    for provider, (colour, marker) in LOOKS.items():
        own = sorted(grouped[provider], key=lambda row: row["elements"])
        if not own or provider in ("fused", "copy"):
            continue
        sizes = [row["elements"] for row in own]
        axis.plot(
            sizes, [row["speedup"] for row in own], marker=marker, ms=5, lw=1.4, color=colour,
            label=f"over {provider}",
        )  # fmt: skip
        low, high = [row["speedup_q1"] for row in own], [row["speedup_q3"] for row in own]
        axis.fill_between(sizes, low, high, color=colour, alpha=0.15, lw=0)
        # About 1 a line goes to and fro; where it crosses for the last time is what counts.
        for at in list(crossings(own))[-1:]:
            axis.plot([at], [1], "o", ms=11, mfc="none", mec=colour, mew=1.6)
            # Below the labels of its neighbours.
            beside = sum(abs(math.log2(at / other)) < 1.5 for other in crossed)
            crossed.append(at)
            axis.annotate(
                f"2^{math.log2(at):.1f}", (at, 1), (0, -15 - 9 * beside),
                textcoords="offset points", ha="center", fontsize=8, color=colour,
            )  # fmt: skip
    axis.axhline(1, color="black", lw=1)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(_times)
    _size_axis(axis, sorted({row["elements"] for row in rows}))


def _sizes(rows: list[Row], way: str) -> set[int]:
    return {row["elements"] for row in rows if row["allocations"] == way}


def _speedup_figure(plt: Any, timings: list[Row], path: Path) -> bool:
    rows = [r for r in timings if "speedup" in r and r["provider"] in LOOKS and not r["curved"]]
    if not rows:
        return False
    dtype, threads = rows[0]["dtype"], rows[0]["threads"]
    rows = _chosen(rows, dtype=dtype, threads=threads)
    measured = list(dict.fromkeys(row["case"] for row in rows))
    cases = [case for case in ("relu/GUIDED", "relu/reverse") if case in measured] or measured[:2]
    # A way that was measured at few sizes has its table alone.
    sizes = {way: len(_sizes(rows, way)) for way in dict.fromkeys(r["allocations"] for r in rows)}
    ways = [way for way, count in sizes.items() if count == max(sizes.values())]
    figure, axes = plt.subplots(
        len(cases), len(ways), figsize=(max(8.5, 5.2 * len(ways) + 0.4), 3.5 * len(cases) + 1.3),
        sharex=True, sharey="row", squeeze=False, layout="constrained",
    )  # fmt: skip
    for line, case in zip(axes, cases, strict=True):
        for axis, way in zip(line, ways, strict=True):
            _speedup_panel(axis, _chosen(rows, case=case, allocations=way))
            axis.set_title(f"{case}, {way} allocations", fontsize=10)
        line[0].set_ylabel("speed-up of fused")
    for axis in axes[-1]:
        axis.set_xlabel("elements")
    _legend_below(figure, axes.flat, 5)
    plural = "s" if threads > 1 else ""
    figure.suptitle(
        f"Forward + backward, {dtype}, {threads} thread{plural}: their time ÷ ours, above 1 fused "
        "is faster\nmedian of paired rounds, band: quartiles; ring: where a line crosses 1 for the "
        "last time",
        fontsize=11,
    )
    save(plt, figure, path)
    return True


def _roofline_panel(axis: Any, rows: list[Row]) -> None:
    copy = max(row["copy_gigabytes_per_s"] for row in rows)
    counted = [row["bytes_per_element"] for row in rows if row["bytes_per_element"]]
    low, high = min(counted) * 0.85, max(counted) * 1.15
    xs = [low * (high / low) ** (i / 40) for i in range(41)]
    axis.plot(xs, [copy / x for x in xs], color="black", lw=2, label="roof: a copy's bandwidth")
    axis.plot(xs, [0.85 * copy / x for x in xs], color="black", lw=1, ls=":", label="85 % of it")
    for selects, text, colour in (
        (True, "select and scale", LOOKS["idiom"][0]),
        (False, "a slope to compute", LOOKS["plain"][0]),
    ):
        for direction, marker in (("forward", "^"), ("backward", "v")):
            own = [
                row for row in rows
                if row["selects"] is selects and row["kernel"].endswith(direction)
                and row["bytes_per_element"]
            ]  # fmt: skip
            axis.plot(
                [row["bytes_per_element"] for row in own],
                [row["gigabytes_per_s"] / row["bytes_per_element"] for row in own],
                marker, ms=6, alpha=0.75, color=colour, label=f"{text}, {direction}",
            )  # fmt: skip
    slowest = min(rows, key=lambda row: row["share"])
    axis.annotate(
        f"{slowest['kernel']}: {slowest['share']:.0%}",
        (
            slowest["bytes_per_element"],
            slowest["gigabytes_per_s"] / slowest["bytes_per_element"],
        ),
        (8, 0), textcoords="offset points", ha="left", va="center", fontsize=8,
    )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    ticks = sorted({round(value) for value in counted})
    axis.set_xticks(ticks, list(map(str, ticks)))
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_xlabel("bytes per element that the kernel must move")
    axis.grid(alpha=0.3, which="both")


def _bandwidth_panel(axis: Any, rows: list[Row]) -> None:
    sizes = sorted({row["elements"] for row in rows})
    copies: dict[int, list[float]] = defaultdict(list)
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        copies[row["elements"]].append(row["copy_gigabytes_per_s"])
        grouped[row["kernel"]].append(row)
    axis.plot(sizes, [max(copies[size]) for size in sizes], color="black", lw=2.5)
    colours = [look[0] for look in LOOKS.values() if look[0] not in ("#000000", "#999999")]
    cases = list(dict.fromkeys(name.rpartition(" ")[0] for name in grouped))
    for name, own in grouped.items():
        case, _, direction = name.rpartition(" ")
        own.sort(key=lambda row: row["elements"])
        axis.plot(
            [row["elements"] for row in own], [row["gigabytes_per_s"] for row in own],
            ls="--" if direction == "forward" else "-", marker="o", ms=4, lw=1.2,
            color=colours[cases.index(case) % len(colours)],
            label=f"{case} (dashed: forward)" if direction == "backward" else None,
        )  # fmt: skip
    axis.set_ylim(bottom=0)
    axis.set_xlabel("elements")
    axis.legend(fontsize=8, frameon=False, loc="best")
    _size_axis(axis, sizes)


def _roofline_figure(plt: Any, kernels: list[Row], path: Path) -> bool:
    kernels = [row for row in kernels if "share" in row]
    if not kernels:
        return False
    threads = min(row["threads"] for row in kernels)
    dtypes = list(dict.fromkeys(row["dtype"] for row in kernels))
    figure, axes = plt.subplots(
        2,
        len(dtypes),
        figsize=(max(8.5, 5.4 * len(dtypes) + 0.4), 8.2),
        squeeze=False,
        layout="constrained",
    )
    for (top, bottom), dtype in zip(axes.T, dtypes, strict=True):
        own = _chosen(kernels, dtype=dtype, threads=threads)
        sizes = {row["elements"] for row in own}
        # The size at which all kernels are measured.
        at = max(sizes, key=lambda size: (len(_chosen(own, elements=size)), size))
        _roofline_panel(top, _chosen(own, elements=at))
        top.set_title(f"{dtype}, {size_text(at)} elements", fontsize=10)
        _bandwidth_panel(bottom, _chosen(own, selects=True))
        bottom.set_title(f"{dtype}, black: copy_", fontsize=10)
    axes[0][0].set_ylabel("10⁹ elements per second")
    axes[1][0].set_ylabel("GB/s of counted bytes")
    _legend_below(figure, axes[0], 3)
    plural = "s" if threads > 1 else ""
    figure.suptitle(
        f"Kernels alone on warm buffers, {threads} thread{plural}: above, every kernel under the "
        "roof that a copy sets;\nbelow, bandwidth of those that select and scale against size",
        fontsize=11,
    )
    save(plt, figure, path)
    return True


def _curved_figure(plt: Any, timings: list[Row], path: Path) -> bool:
    rows = [row for row in timings if row["curved"] and "speedup" in row]
    if not rows:
        return False
    sizes = {row["elements"] for row in rows}
    size = 2**20 if 2**20 in sizes else max(sizes)
    rows = _chosen(rows, elements=size, threads=min(row["threads"] for row in rows))
    names = list(dict.fromkeys(row["case"].split("/")[0] for row in rows))[::-1]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, axes = plt.subplots(
        1, len(dtypes), figsize=(max(8.5, 5.2 * len(dtypes) + 0.6), 0.3 * len(names) + 2.4),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    drawn = (("reverse", "plain", 1.0), ("GUIDED", "idiom", 1.5))
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        for rule, provider, floor in drawn:
            colour, marker = LOOKS[provider]
            for way, fill in (("fresh", "none"), ("reused", colour), ("default", "none")):
                own = _chosen(rows, dtype=dtype, provider=provider, allocations=way)
                own = [row for row in own if row["case"].endswith(f"/{rule}")]
                at = [names.index(row["case"].split("/")[0]) for row in own]
                if own:
                    axis.plot(
                        [row["speedup"] for row in own], at, marker, ms=6, color=colour, mfc=fill,
                        ls="none", label=f"{rule} over {provider}, {way}",
                    )  # fmt: skip
            axis.axvline(floor, color=colour, lw=1, ls=":")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(_times)
        axis.set_yticks(range(len(names)), names)
        axis.set_title(dtype, fontsize=10)
        axis.set_xlabel("speed-up of fused (dotted: the target's floor)")
        axis.grid(alpha=0.3)
    _legend_below(figure, axes[0], 4)
    figure.suptitle(
        f"Curved activations, {size_text(size)} elements, 1 thread: forward + backward", fontsize=11
    )
    save(plt, figure, path)
    return True


#: No provider's colour.
_PLANNED = "#CC0000"


def _bar(provider: str) -> dict[str, Any]:
    """What is compiled looks like what it was made of, hatched."""
    name = provider.removesuffix("+compile")
    hatch = {} if name == provider else {"hatch": "////", "edgecolor": "white"}
    return {"color": LOOKS[name][0], **hatch}


def _memory_figure(plt: Any, resident: list[Row], path: Path) -> bool:
    rows = [row for row in resident if "kept" in row]
    if not rows:
        return False
    figure, axis = plt.subplots(figsize=(8, 0.36 * len(rows) + 1.7), layout="constrained")
    for at, row in enumerate(rows[::-1]):
        per_element = 1 / row["elements"]
        # Pages and caches make a figure of nothing some bytes below or above 0.
        kept, peak = max(0.0, row["kept"] * per_element), row["peak"] * per_element
        look = _bar(row["provider"])
        axis.barh(at, peak, alpha=0.25, height=0.7, **look)
        axis.barh(at, kept, height=0.4, **look)
        axis.text(peak, at, f"  {round(kept, 3):g} kept, {peak:.3g} peak", va="center", fontsize=8)
        if row["provider"] == "fused":
            planned = row["plan"] * per_element
            axis.plot([planned, planned], [at - 0.42, at + 0.42], color=_PLANNED, lw=2.5)
    axis.plot([], [], color=_PLANNED, lw=2.5, label="plan()'s prediction")
    for provider in dict.fromkeys(row["provider"] for row in rows):
        axis.barh([0], [0], label=provider, **_bar(provider))
    labels = [f"{row['case']}  {row['provider']}" for row in rows[::-1]]
    axis.set_yticks(range(len(rows)), labels, fontsize=9)
    axis.set_xlim(0, 1.28 * max(row["peak"] / row["elements"] for row in rows))
    axis.set_xlabel("resident bytes per element: dark, kept for backward; light, the peak")
    axis.grid(alpha=0.3, axis="x")
    _legend_below(figure, [axis], 4)
    first = rows[0]
    axis.set_title(
        f"Memory of forward and backward, {first['dtype']}, {size_text(first['elements'])} "
        "elements", fontsize=10,
    )  # fmt: skip
    save(plt, figure, path)
    return True


def draw(folder: Path, run: dict[str, Any]) -> list[str]:
    """Draw what `run` holds into `folder`; the pictures' names, without an ending, in order."""
    plt = pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    figures = (
        ("speedup", _speedup_figure, run["timings"]),
        ("roofline", _roofline_figure, run["kernels"]),
        ("curved", _curved_figure, run["timings"]),
        ("memory", _memory_figure, run["resident"]),
    )
    return [name for name, make, rows in figures if make(plt, rows, folder / name)]
