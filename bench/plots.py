"""The pictures: speed-up against size for each case, and the kernels' bandwidth against a copy's.

Imports matplotlib, inside its functions: a run without it writes everything else.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, Any]

#: Okabe and Ito's palette, which colour-blind readers tell apart; one colour a provider throughout.
COLOURS = {
    "fused": "#000000",
    "reference": "#999999",
    "idiom": "#D55E00",
    "idiom+compile": "#CC79A7",
    "eager-best": "#E69F00",
    "plain": "#0072B2",
    "copy": "#009E73",
}
_LINES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DPI = 110


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _size_axis(axis: Any, sizes: list[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes)
    axis.grid(alpha=0.3)


def _times(value: float, _: int) -> str:
    return f"{value:g}×" if value >= 1 else f"1/{1 / value:g}×"


def _speedup_line(axis: Any, rows: list[Row], label: str, colour: str, style: str = "-") -> None:
    rows = sorted(rows, key=lambda row: row["elements"])
    sizes = [row["elements"] for row in rows]
    axis.plot(
        sizes, [r["speedup"] for r in rows], style, marker="o", ms=4, color=colour, label=label
    )
    low, high = [r["speedup_q1"] for r in rows], [r["speedup_q3"] for r in rows]
    axis.fill_between(sizes, low, high, color=colour, alpha=0.15, lw=0)


def _speedup_panel(axis: Any, rows: list[Row], title: str) -> None:
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if "speedup" in row and row["provider"] not in ("fused", "reference"):
            grouped[row["provider"]].append(row)
    for provider, own in grouped.items():
        _speedup_line(axis, own, f"over {provider}", COLOURS[provider])
        ceiling = own[0]["ceiling"]
        if ceiling:
            axis.axhline(ceiling, ls=":", lw=1, color=COLOURS[provider])
    axis.axhline(1, color="black", lw=1)
    axis.set_yscale("log", base=2)
    axis.set_title(title, fontsize=10)
    _size_axis(axis, sorted({row["elements"] for row in rows}))


def _case_figure(plt: Any, rows: list[Row], case: str, dtype: str, path: Path) -> None:
    threads = sorted({row["threads"] for row in rows})
    ways = list(dict.fromkeys(row["allocations"] for row in rows))
    figure, axes = plt.subplots(
        len(threads), len(ways), figsize=(5.2 * len(ways) + 0.6, 3.6 * len(threads) + 1.0),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    for i, count in enumerate(threads):
        for j, way in enumerate(ways):
            panel = [r for r in rows if r["threads"] == count and r["allocations"] == way]
            plural = "s" if count > 1 else ""
            _speedup_panel(axes[i][j], panel, f"{count} thread{plural}, {way} allocations")
    for axis in axes[-1]:
        axis.set_xlabel("elements")
    for row in axes:
        row[0].set_ylabel("speed-up of fused (higher is better)")
        row[0].yaxis.set_major_formatter(_times)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(
        f"{case}, {dtype}: forward + backward against each provider\n"
        "median of paired rounds, band: quartiles; dotted: what bytes moved alone would give",
        fontsize=11,
    )
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _curved_figure(plt: Any, rows: list[Row], dtype: str, path: Path) -> None:
    names = list(dict.fromkeys(row["case"].split("/")[0] for row in rows))
    ways = list(dict.fromkeys(row["allocations"] for row in rows))
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.0 * columns + 0.8, 2.3 * lines + 1.8),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    shown = (("reverse", "plain", COLOURS["plain"]), ("GUIDED", "idiom", COLOURS["idiom"]))
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        for rule, provider, colour in shown:
            for way, style in zip(ways, ("--", "-", ":"), strict=False):
                own = [
                    r for r in rows
                    if r["case"] == f"{name}/{rule}" and r["provider"] == provider
                    and r["allocations"] == way and "speedup" in r
                ]  # fmt: skip
                if own:
                    label = f"{rule} over {provider}, {way}"
                    _speedup_line(axis, own, label, colour, style)
        axis.axhline(1, color="black", lw=1)
        axis.set_yscale("log", base=2)
        axis.set_title(name, fontsize=10)
        _size_axis(axis, sorted({row["elements"] for row in rows}))
        axis.tick_params(labelsize=8)
    for row in axes:
        row[0].yaxis.set_major_formatter(_times)
    for axis in axes[-1]:
        axis.set_xlabel("elements", fontsize=9)
    figure.supylabel("speed-up of fused (higher is better)", fontsize=10)
    found = [axis.get_legend_handles_labels() for axis in axes.flat]
    labelled = {text: line for pair in found for line, text in zip(*pair, strict=True)}
    figure.legend(
        labelled.values(), labelled.keys(), loc="outside lower center", ncols=2, frameon=False,
        fontsize=9,
    )  # fmt: skip
    figure.suptitle(
        f"Curved activations, {dtype}, 1 thread: reversed against plain, GUIDED against its idiom",
        fontsize=11,
    )
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _bandwidth_figure(plt: Any, rows: list[Row], dtype: str, path: Path) -> None:
    threads = sorted({row["threads"] for row in rows})
    figure, axes = plt.subplots(
        2, len(threads), figsize=(5.4 * len(threads) + 0.6, 7.2),
        sharex=True, sharey="row", squeeze=False, layout="constrained",
    )  # fmt: skip
    sizes = sorted({row["elements"] for row in rows})
    for j, count in enumerate(threads):
        own = [row for row in rows if row["threads"] == count]
        copies: dict[int, list[float]] = defaultdict(list)
        grouped: dict[str, list[Row]] = defaultdict(list)
        for row in own:
            copies[row["elements"]].append(row["copy_gigabytes_per_s"])
            grouped[row["kernel"]].append(row)
        top, bottom = axes[0][j], axes[1][j]
        best = [max(copies[size]) for size in sizes]
        top.plot(sizes, best, color="black", lw=3, label="copy_ (best of the run)")
        cases = list(dict.fromkeys(name.rsplit(" ", 1)[0] for name in grouped))
        for name, found in grouped.items():
            case, direction = name.rsplit(" ", 1)
            found.sort(key=lambda row: row["elements"])
            look = {
                "color": _LINES[cases.index(case) % len(_LINES)],
                "ls": "--" if direction == "forward" else "-",
                "marker": "o",
                "ms": 4,
                "label": name,
            }
            at = [row["elements"] for row in found]
            top.plot(at, [row["gigabytes_per_s"] for row in found], **look)
            bottom.plot(at, [100 * row["share"] for row in found], **look)
        bottom.axhline(85, color="black", lw=1, ls=":", label="target: 85 %")
        top.set_title(f"{count} thread{'s' if count > 1 else ''}", fontsize=10)
        bottom.set_xlabel("elements")
        for axis in (top, bottom):
            _size_axis(axis, sizes)
    for axis in axes.flat:
        axis.set_ylim(bottom=0)
    axes[0][0].set_ylabel("GB/s of counted bytes")
    axes[1][0].set_ylabel("share of copy_, paired (%)")
    found_labels: dict[str, Any] = {}
    for axis in (axes[0][0], axes[1][0]):
        handles, labels = axis.get_legend_handles_labels()
        found_labels |= dict(zip(labels, handles, strict=True))
    figure.legend(
        found_labels.values(), found_labels.keys(), loc="outside lower center", ncols=3,
        frameon=False, fontsize=8,
    )  # fmt: skip
    figure.suptitle(f"Kernels alone on warm buffers, {dtype}: bandwidth against copy_", fontsize=11)
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def draw(folder: Path, run: dict[str, Any]) -> list[str]:
    """Draw what `run` holds into `folder`; the names of the pictures, in the page's order."""
    plt = _pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[str] = []

    def place(name: str) -> Path:
        drawn.append(name)
        return folder / name

    timings = [row for row in run["timings"] if "speedup" in row]
    for dtype in dict.fromkeys(row["dtype"] for row in timings):
        own = [row for row in timings if row["dtype"] == dtype]
        for case in dict.fromkeys(row["case"] for row in own if not row["curved"]):
            name = f"speedup-{case.replace('/', '-')}-{dtype}.png"
            _case_figure(plt, [r for r in own if r["case"] == case], case, dtype, place(name))
        least = min(row["threads"] for row in own)
        curved = [
            row for row in own
            if row["curved"] and row["threads"] == least and row["provider"] in ("plain", "idiom")
        ]  # fmt: skip
        if curved:
            _curved_figure(plt, curved, dtype, place(f"speedup-curved-{dtype}.png"))
    selecting = [row for row in run["kernels"] if row["selects"]]
    for dtype in dict.fromkeys(row["dtype"] for row in selecting):
        own = [row for row in selecting if row["dtype"] == dtype]
        _bandwidth_figure(plt, own, dtype, place(f"bandwidth-{dtype}.png"))
    return drawn
