"""The generated pages: method, wins and losses on one; every table of the run on the other.

Imports machine, summary, verdicts, method, tables, sections and end_to_end; works from the records
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import end_to_end, sections, summary, verdicts
from .arguments import PAGES
from .machine import unquiet
from .method import METHOD
from .tables import (
    curved_section,
    detail,
    kept_section,
    kernel_section,
    relu_section,
    resident_section,
)

Row = dict[str, Any]
#: The pictures of the whole suite, in the order of the page.
PICTURES = ("speedup", "curved", "roofline", "memory")
#: Records of commands of their own: the section's title, its text, the target, how long it takes.
OTHERS = {
    "networks": (
        end_to_end.NETWORKS_TITLE, end_to_end.networks_section, "bench-networks", "ten minutes"
    ),
    "training": (
        end_to_end.TRAINING_TITLE, end_to_end.training_section, "bench-training", "seven minutes"
    ),
}  # fmt: skip
#: Where every table stands, in the folder of the records.
TABLES = "TABLES.md"


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
        f"* {peers}; Triton {machine['triton'].partition('. Cure')[0]}; "
        f"GPU: {machine['gpu'] or 'none'}",
        f"* {run['date']}, {run['minutes']:.1f} minutes, `{run['command']}`; load average "
        f"{run['load'][0]} at the start, {run['load'][1]} at the end",
        f"* threads {settings['threads']}, dtypes {', '.join(settings['dtypes'])}",
    ]
    if machine.get("gives_memory_back"):
        lines.append(
            "* A virtual machine that gives free memory back to its host, which makes it anew "
            "where it is touched: fresh results of a quarter GiB and more may take several times "
            "as long, now one provider's and now another's."
        )
    warning = unquiet(run["load"][0])
    if warning:
        lines.append(f"* **{warning}**")
    return "\n".join(lines)


def _picture(name: str, prefix: str) -> str:
    return f"![{name}]({prefix}{name}.png)\n\nThe same as [SVG]({prefix}{name}.svg)."


def _compiled(timings: list[Row]) -> list[str]:
    """Ours under torch.compile beside theirs; nothing where a record has no such rows."""
    found = summary.compiled(timings)
    return [
        "## Under torch.compile",
        "Their compiled time ÷ ours compiled, forward and backward: the median cell, and how many "
        "cells ours won · is level in · lost; in the tables above what is compiled is compared "
        "with `fused` as it is called without a compiler. *fused, not compiled*: what compiling "
        "ours gains.",
        found,
    ] if found else []  # fmt: skip


def _bandwidth(kernels: list[Row], prefix: str, pictures: list[str]) -> list[str]:
    if not kernels:
        return []
    return [
        "## Bandwidth",
        "Kernels alone on warm buffers: their share of the bandwidth of `copy_` in the same "
        "rounds, from what the kernel reads into the memory that its result takes; the median "
        "kernel and in brackets the least.",
        summary.bandwidth(kernels),
        _picture("roofline", prefix) if "roofline" in pictures else "",
    ]


def _other(name: str, found: Row | None, prefix: str, pictures: list[str]) -> list[str]:
    """The section of a command of its own, or how to make it where there is no record."""
    title, text, target, minutes = OTHERS[name]
    if found is None:
        return [end_to_end.absent(title, target, minutes)]
    return [text(found), _picture(name, prefix) if name in pictures else ""]


def _versions(compared: list[Row], prefix: str) -> list[str]:
    """A line for each comparison of two versions that is on record."""
    if not compared:
        return []
    return [
        "## Before and after",
        "Two versions of the project built side by side and timed in turn, base, new, new, base; "
        "*slower* and *faster*: cases whose 95 % interval lies wholly beyond the margin.",
        end_to_end.versions_table(compared, prefix),
    ]


def _elsewhere(paths: Sequence[str]) -> str:
    """Where the pages of other machines are."""
    links = (f"[{path.split('/')[-2]}]({path})" for path in paths)
    return f"Other machines: {', '.join(links)}." if paths else ""


def page(run: Row, others: dict[str, Row], compared: list[Row], pictures: list[str],
         prefix: str, elsewhere: Sequence[str] = ()) -> str:  # fmt: skip
    """The page that a reader starts with.

    Parameters
    ----------
    run : dict
        The record of the whole suite.
    others : dict
        The records that are there of `OTHERS`, by name.
    compared : list of dict
        The records of `bench.compare`.
    pictures : list of str
        Those that are there, of `PICTURES` and `OTHERS`.
    prefix : str
        What leads from the page to the folder of the records.
    elsewhere : sequence of str
        The paths of other machines' pages.
    """
    run = verdicts.judged(run)
    timings = run["timings"]
    kind = "a quick run: fewer sizes and rounds" if run["quick"] else "a full run"
    every = f"[every table]({prefix}{TABLES})"
    parts = [
        PAGES["README.md"],
        "Generated by the suite (`make bench`, `python -m pyrevgrad bench`); do not edit. This is "
        f"{kind}; {every} and the rows as [JSON]({prefix}results.json) and CSV lie beside it. "
        "Every ratio is *their time ÷ ours*, paired in the rounds of one run: above 1, `fused` is "
        "faster. A *ceiling* is the ratio that the bytes moved would give by themselves.",
        summary.in_short(run, others),
        _machine_section(run),
        _elsewhere(elsewhere),
        "## Wins",
        "Forward and backward: the median cell of size × threads × allocations × case, from 2¹⁶ "
        "elements the least and the most as well, and how many cells of how many `fused` won. "
        "Below 2¹⁶ the price of a call decides, above it the bytes. *Won* and *lost*: the 95 % "
        "interval of the cell's median ratio lies wholly above 1, wholly below; *level*: it holds "
        "1, and this run cannot tell.",
        summary.wins(timings),
        "\n".join(summary.without_figures(timings)),
        "## Losses",
        "\n".join(verdicts.refused(run)),
        "Every kind of case, opponent and dtype of which `fused` lost a cell (a copy aside); what "
        "the other sections lost is below the table.",
        summary.losses(timings),
        "\n".join(verdicts.other_losses(run, others)),
        "## Floors that the project set itself",
        "Over all dtypes and ways of allocating: how many cells met the floor (the 95 % interval "
        "of the median lies wholly at or above it), how many are level with it (the interval holds "
        "it), and the worst. Where it lies wholly below, the floor is missed. The sections of "
        "host time, whole networks and training name floors of their own.",
        summary.floors(run),
        *[_picture(name, prefix) for name in ("speedup", "curved") if name in pictures],
        *_compiled(timings),
        *_bandwidth(run["kernels"], prefix, pictures),
        *resident_section(run),
        _picture("memory", prefix) if "memory" in pictures else "",
        *_other("networks", others.get("networks"), prefix, pictures),
        *_other("training", others.get("training"), prefix, pictures),
        *sections.summaries(run["sections"]),
        *_versions(compared, prefix),
        "## Method",
        METHOD,
    ]
    return "\n\n".join(part for part in parts if part).rstrip() + "\n"


def tables_page(run: Row) -> str:
    """Every table of the whole suite's record."""
    run = verdicts.judged(run)
    timings = run["timings"]
    parts = [
        PAGES[TABLES],
        "Generated with the page that says the method, the wins and the losses; do not edit. "
        "In brackets behind a ratio its ceiling.",
        _machine_section(run),
        "## Floors by dtype and allocations",
        summary.floors(run, by_dtype=True),
        "## Losses by case",
        summary.losses(timings, by_case=True),
        "## Forward and backward",
        *relu_section(timings),
        *curved_section(timings),
        *kernel_section(run["kernels"]),
        *resident_section(run),
        *kept_section(run),
        *sections.texts(run["sections"]),
        "## Left out",
        detail("Providers without a time, and why", summary.left_out(timings)),
    ]
    return "\n\n".join(part for part in parts if part).rstrip() + "\n"
