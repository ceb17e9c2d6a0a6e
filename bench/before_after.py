"""The record of a comparison of two versions: its table as a file, which the page links.

Imports records and tables; the rows are `compare`'s.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from . import machine, records, report
from .end_to_end import provenance
from .tables import table, time_text
from .versions import InputError

Row = dict[str, Any]


def check_name(name: str) -> None:
    """InputError unless `name` can be part of a file's name."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise InputError(
            f"--record {name!r}: a name has small letters, digits and single dashes, such as "
            "half-types"
        )


def _line(row: Row) -> list[str]:
    if "refused" in row:
        return [row["case"], "–", "–", f"no time: {row['refused']}", "–"]
    beyond = row["verdict"] in ("slower", "faster")
    verdict = f"**{row['verdict']}**" if beyond else row["verdict"]
    interval = f"{row['ratio']:.3f} ({row['low']:.3f}–{row['high']:.3f})"
    return [row["case"], time_text(row["base_s"]), time_text(row["new_s"]), interval, verdict]


def text(name: str, run: Row) -> str:
    """The page of one comparison."""
    rounds = [row["rounds"] for row in run["rows"] if "rounds" in row]
    fewest = min(map(len, rounds), default=0)
    timed = f"{fewest} pairs of processes, {rounds[0][0]} rounds in each" if rounds else "–"
    head = ["case", "base", "new", f"new ÷ base ({run['confidence']:.0%})", "verdict"]
    parts = [
        f"# Before and after: {name}",
        f"{run['base']['commit']} against {run['new']['commit']}. Made by the command below; do "
        "not edit.",
        provenance(run),
        f"Forward and backward (or as said) on one thread, {timed}, in turn base, new, new, base; "
        "medians, and the ratio paired in the round with a bootstrap interval. *slower* and "
        f"*faster*: the whole interval lies beyond a margin of {run['margin']:.0%}, and did so "
        "again with as many processes more, which the figures count in. *too noisy to tell*: the "
        "interval reaches beyond the margin and is wider than it, or the second time disagreed.",
        table(head, map(_line, run["rows"])),
    ]
    return "\n\n".join(parts) + "\n"


def keep(name: str, run: Row, options: argparse.Namespace) -> None:
    """Write ``compare-NAME.json`` and ``.md`` beside the suite's records, then their page."""
    described = run["machine"]
    device = machine.device_name(described["processor"], described["processors"])
    folder, path = report.folder(options.out, device, not options.quick)
    run = {"name": name, **run}
    report.write_json(folder / f"compare-{name}.json", run)
    (folder / f"compare-{name}.md").write_text(text(name, run), encoding="utf-8")
    if options.json:
        report.write_json(options.json, run)
    print(f"written: {folder / f'compare-{name}.md'}")
    if records.write_page(folder, path):
        print(f"written: {path}")
