"""The generated page and picture of a run on a CUDA device: ``python -m bench.cuda_page GPU.json``.

Imports records, tables and, for the picture, plots; works from the rows alone, where there need be
no GPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from . import records
from .tables import size_text, table, time_text

Row = dict[str, Any]


def _pair(row: Row) -> list[str]:
    ratio, ceiling, target = row.get("speedup"), row.get("ceiling"), row.get("target")
    time = time_text(row["median_s"]) if "median_s" in row else "–"
    outcome = row.get("refused") or row.get("skipped") or "–"
    if ratio:
        outcome = f"{ratio:.3f} ({row['speedup_low']:.3f}–{row['speedup_high']:.3f})"
    return [
        row["case"], row["provider"], row["dtype"], size_text(row["elements"]), time, outcome,
        f"{ceiling:.2f}" if ceiling else "–", f"{target:g}" if target else "–",
    ]  # fmt: skip


def _kernel(row: Row) -> list[str]:
    if "refused" in row:
        return [row["kernel"], row["backend"], row["dtype"], "–", row["refused"], *"–––"]
    return [
        row["kernel"], row["backend"], row["dtype"], f"{row['bytes_per_element']:g}",
        f"{row['share']:.1%} ({row['share_low']:.1%}–{row['share_high']:.1%})",
        f"{row['gigabytes_per_s']:.0f}", f"{row['copy_gigabytes_per_s']:.0f}",
        f"{row['target']:.0%}",
    ]  # fmt: skip


def _about(run: Row) -> str:
    # A run of `make gpu` has its versions beside the figures; the suite's, in a table of its own.
    machine = run.get("machine", run)
    lines = [
        f"{run['date']}, `{run.get('command', 'make gpu')}`; torch {machine['torch']}, commit "
        f"{machine['commit'] or 'unknown'}; {run['build']}",
        "device time between two events, in which a launch's few microseconds are; before each, "
        "the L2 cache read full of other memory and the queue filled; tensors of "
        f"{run['bytes_per_tensor'] >> 20} MiB from PyTorch's caching allocator; medians and the "
        "95 % interval of the median of ratios paired in the round",
        "a ceiling is the ratio of the bytes that both must move: where a target is above it, the "
        "opponent's kernels must fall short of a copy's bandwidth for it to be met",
    ]
    if run.get("late"):
        lines.append(f"in {run['late']} timings the device may have waited for the host")
    if run.get("clocks"):
        lines.append(f"clocks before and after: {'; '.join(map(str, run['clocks']))}")
    for name, row in {**run.get("tests", {}), **run.get("sanitizer", {})}.items():
        lines.append(f"{name}: {row['summary']}{'' if row['passed'] else ' — FAILED'}")
    if run.get("proven") is False:
        lines.append("**the tests of these kernels have not passed**")
    return "\n".join(f"* {line}" for line in lines)


def cuda_page(run: Row) -> str:
    """The page of a run on a CUDA device."""
    host = [
        [row["case"], f"{row['median_s'] * 1e6:.1f}", f"{row['times_relu']:.2f}"]
        for row in run["host"]
    ]
    pairs = [
        "case",
        "provider",
        "dtype",
        "elements",
        "time",
        "fused is faster",
        "ceiling",
        "target",
    ]
    kernels = ["kernel", "by", "dtype", "B/element", "of the copy", "GB/s", "copy GB/s", "target"]
    parts = [
        f"# What a modified backward costs on {run['device']}",
        _about(run),
        "## Forward and backward: their time ÷ ours",
        table(pairs, map(_pair, run["pairs"])),
        "## Kernels alone",
        table(kernels, map(_kernel, run["kernels"])),
        "## Host time of forward and backward on 16 elements",
        table(["case", "µs", "times F.relu's"], host),
        "## Missed targets",
        "\n".join(f"* {sentence}" for sentence in run.get("missed", ["the run stopped early"]))
        or "None.",
    ]
    return "\n\n".join(parts) + "\n"


def draw(run: Row, path: Path) -> None:
    """Each kernel's share of the copy's bandwidth, and its target."""
    from .plots import pyplot, save

    plt = pyplot()
    native = [row for row in run["kernels"] if row["backend"] == "native" and "share" in row]
    names = list(dict.fromkeys(row["kernel"] for row in native))
    figure, axis = plt.subplots(figsize=(9, 1.5 + 0.24 * len(names)), layout="constrained")
    for dtype, colour, shift in (("bfloat16", "#0072B2", -0.18), ("float32", "#D55E00", 0.18)):
        rows = [row for row in native if row["dtype"] == dtype]
        places = [names.index(row["kernel"]) + shift for row in rows]
        axis.barh(places, [row["share"] for row in rows], 0.34, color=colour, label=dtype)
    targets = {row["kernel"]: row["target"] for row in native}
    axis.plot([targets[name] for name in names], range(len(names)), "k|", ms=9, label="target")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.1)
    axis.set_xlabel(f"bandwidth, as a share of copy_'s on {run['device']}")
    axis.legend(loc="lower left", fontsize=8)
    save(plt, figure, path)


def main() -> int:
    """Write README.md and a picture beside a file of `make gpu`."""
    parser = argparse.ArgumentParser(prog="python -m bench.cuda_page", description=main.__doc__)
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    run = json.loads(path.read_text(encoding="utf-8"))
    if "kernels" not in run:
        parser.exit(1, f"{path} holds no figures\n")
    page = path.with_name("README.md")
    text = cuda_page(run)
    try:
        draw(run, path.with_name("kernels"))
    except ImportError as error:
        print(f"no picture: {error}; pip install matplotlib pillow")
    else:
        text += "\n![bandwidth of each kernel](kernels.png)\n"
    page.write_text(text, encoding="utf-8")
    print(f"written: {page}")
    results = page.parent.parent
    if results.name != "results":
        return 0
    # The project's page leads to each machine's.
    for place, made in records.project_pages(results, results.parent / "README.md").items():
        place.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
