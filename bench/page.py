"""The generated page: what was measured and how, wins and losses, the targets, every table.

Imports tables and sections; works from the rows alone.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from . import sections
from .tables import (
    OPPONENTS,
    curved_section,
    kernel_section,
    memory_section,
    relu_section,
    size_text,
    table,
    time_text,
)

Row = dict[str, Any]


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


def _group(case: str) -> str:
    activation, _, rule = case.partition("/")
    if activation == "relu":
        return "relu, guided" if rule.lower().startswith("guided") else f"relu, {rule}"
    return f"curved, {rule}"


def _wins(timings: list[Row]) -> str:
    """A line for each kind of case and opponent: how many cells were won, and by how much."""
    grouped: dict[tuple[str, str, str], list[float]] = {}
    for row in timings:
        if "speedup" in row and row["provider"] not in ("fused", "copy"):
            key = (_group(row["case"]), row["provider"], row["dtype"])
            grouped.setdefault(key, []).append(row["speedup"])
    order = sorted(
        grouped, key=lambda key: (list(map(_group, _cases(timings))).index(key[0]),
                                  OPPONENTS.index(key[1]), key[2] != "float32"),
    )  # fmt: skip
    lines = []
    for key in order:
        found = grouped[key]
        won = f"{sum(value > 1 for value in found)}/{len(found)}"
        lines.append(
            [*key, won, *(f"{value:.2f}" for value in (median(found), min(found), max(found)))]
        )
    head = ["cases", "faster than", "dtype", "cells won", "median", "least", "most"]
    return table(head, lines) if lines else "`fused` was not timed."


def _cases(timings: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["case"] for row in timings))


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
  backward. `captum`, `zennit`, `grad-cam`: their guided backpropagation or DeconvNet of one
  `nn.ReLU`, sending back the same g; captum sets its hooks in every call, zennit's are set
  beforehand. `pytorch-revgrad`: its layer behind PyTorch's activation. Of grad-cam and zennit the
  modules that are timed are loaded without their packages' `__init__`. `numpy`: gates in float64,
  for scale. `fused-triton`: the Triton kernels, on a GPU. `copy`: x and g cloned, the price of
  moving the bytes. The byte counts of other libraries are not derived, so they have no ceiling.
* The targets name no size for the curved activations; they are judged from 2¹⁶ up, as relu's.
"""


def _machine_section(run: dict[str, Any]) -> str:
    machine, settings = run["machine"], run["settings"]
    dirty = {True: ", with uncommitted changes", False: "", None: ""}[machine["dirty"]]
    peers = ", ".join(
        f"{name} {version}" if version else f"{name} not installed"
        for name, version in {"numpy": machine["numpy"], **machine["peers"]}.items()
    )
    lines = [
        f"* {machine['processor']}, {machine['processors']} processors; {machine['system']}, "
        f"{machine['libc']}; transparent huge pages: {machine['transparent_huge_pages']}",
        f"* Python {machine['python']}, torch {machine['torch']} ({machine['torch_kernels']}), "
        f"pyrevgrad {machine['pyrevgrad']} ({machine['native']}; {machine['autograd']}), "
        f"commit {machine['commit'] or 'unknown'}{dirty}",
        f"* {peers}; Triton {machine['triton']}; GPU: {machine['gpu'] or 'none'}",
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
    shown = "\n\n".join(
        f"![{name}]({prefix}{name}.png)\n\nThe same as [SVG]({prefix}{name}.svg)."
        for name in pictures
    )
    parts = [
        "# What a modified backward costs",
        "Generated by the suite (`make bench`, `python -m pyrevgrad bench`); do not edit. Every "
        "ratio is *their time ÷ ours* in one run: above 1, `fused` is faster. "
        f"This is a {kind}.",
        _machine_section(run),
        "## Wins",
        "The speed-up of `fused` over each opponent, over all cells of size × threads × "
        "allocations × case: how many it won, the median cell, and the two ends.",
        _wins(timings),
        "## Losses",
        "Where `fused` was slower than an opponent (a copy aside), and in how many cells.",
        _losses(timings),
        "## Pictures" if pictures else "",
        shown,
        "## Targets",
        "*rows*: how many cells of size × threads × case met the floor, and the worst of them.",
        _targets(run),
        "## Tables",
        *relu_section(timings),
        *curved_section(timings),
        *kernel_section(run["kernels"]),
        *memory_section(run),
        *sections.texts(run["sections"]),
        "## Left out",
        _left_out(timings),
        "## Method",
        _METHOD,
    ]
    return "\n\n".join(part for part in parts if part).rstrip() + "\n"


def cuda_page(run: dict[str, Any]) -> str:
    """The page of a run on a CUDA device."""
    lines = []
    for row in run["pairs"]:
        ratio, ceiling = row.get("fused_is_faster"), row.get("ceiling")
        time = time_text(row["median_s"]) if "median_s" in row else "–"
        outcome = f"{ratio:.2f}" if ratio else row.get("refused") or row.get("skipped") or "–"
        start = [row["case"], row["provider"], row["dtype"], size_text(row["elements"])]
        lines.append([*start, time, outcome, f"{ceiling:.2f}" if ceiling else "–"])
    kernels = [
        [row["kernel"], row["dtype"], f"{row['bytes_per_element']:g}", f"{row['share']:.1%}",
         f"{row['gigabytes_per_s']:.0f}", f"{row['copy_gigabytes_per_s']:.0f}"]
        for row in run["kernels"]
    ]  # fmt: skip
    host = [
        [row["case"], f"{row['median_s'] * 1e6:.1f}", f"{row['times_relu']:.2f}"]
        for row in run["host"]
    ]
    parts = [
        f"# What a modified backward costs on {run['device']}",
        f"* {run['date']}, `{run['command']}`; torch {run['machine']['torch']}, commit "
        f"{run['machine']['commit'] or 'unknown'}; {run['build']}\n* device time between "
        f"two events, a cold L2 cache, tensors of {run['bytes_per_tensor'] >> 20} MiB, medians; "
        "ratios paired in the round",
        "## Forward and backward: their time ÷ ours",
        table(
            ["case", "provider", "dtype", "elements", "time", "fused is faster", "ceiling"], lines
        ),
        "## Kernels alone",
        table(["kernel", "dtype", "B/element", "of the copy", "GB/s", "copy GB/s"], kernels),
        "## Host time of forward and backward on 16 elements",
        table(["case", "µs", "times F.relu's"], host),
        "## Missed targets",
        "\n".join(f"* {sentence}" for sentence in run["missed"]) or "None.",
    ]
    return "\n\n".join(parts) + "\n"
