"""Writes a run down: a JSON file with all of it, a CSV for each table; and says where.

Imports machine, which knows whether this is a checkout.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from . import machine

Row = dict[str, Any]
#: Options that make a run less than the whole suite; what it leaves is no record.
_PARTIAL = ("quick", "filter", "threads", "sizes", "dtype", "allocations", "without")


def folder_of(options: argparse.Namespace, name: str, record: bool = True) -> tuple[Path, Path]:
    """The folder of the suite's records, and its page; a part of the suite makes no record."""
    part = any(getattr(options, option) for option in _PARTIAL)
    return folder(options.out, name, record and not part)


def folder(out: Path | None, name: str, whole: bool) -> tuple[Path, Path]:
    """The folder of the machine called `name`, and the page that is made of what lies there.

    What is measured `whole` in a checkout is the record of the project, in ``bench/results/NAME``
    with its page in ``bench/README.md``; anything less leaves that alone and goes into
    ``out/bench/NAME``. Outside a checkout it is ``bench-results/NAME`` where one stands.
    """
    root = machine.checkout()
    if out is not None:
        place = out
    elif root is None:
        place = Path("bench-results") / name
    elif not whole:
        place = root / "out" / "bench" / name
    else:
        return root / "bench" / "results" / name, root / "bench" / "README.md"
    return place, place / "README.md"


def write_json(path: Path, run: dict[str, Any]) -> None:
    """The whole run, one row a line so that a difference between two runs can be read."""
    parts = []
    for key, value in run.items():
        if isinstance(value, list) and value:
            rows = ",\n    ".join(json.dumps(row, ensure_ascii=False) for row in value)
            parts.append(f"  {json.dumps(key)}: [\n    {rows}\n  ]")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


#: What a column is called in a table that stands alone, where a record's name is shorter: a ratio
#: says of what to what, a time its unit.
COLUMNS = {
    "host": {f"ratio{end}": f"time_over_plain{end}" for end in ("", "_q1", "_q3", "_low", "_high")},
    "scaling": {
        **{f"ratio{end}": f"time_over_plain{end}" for end in ("", "_q1", "_q3", "_low", "_high")},
        "fixed": "fixed_s",
        "each": "seconds_per_element",
        "worst": "worst_deviation_over_fit",
        "worst_at": "worst_at_elements",
        **{f"share{end}": f"share_of_copy{end}" for end in ("", "_q1", "_q3", "_low", "_high")},
    },
}


def write_csv(path: Path, rows: list[Row]) -> None:
    """`rows` under the union of their columns, in order of appearance."""
    names = COLUMNS.get(path.stem, {})
    rows = [{names.get(key, key): value for key, value in row.items()} for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write(folder: Path, run: dict[str, Any]) -> None:
    """``results.json`` and the tables in `folder`."""
    write_json(folder / "results.json", run)
    tables = {name: run[name] for name in ("timings", "kernels", "kept", "resident")}
    tables |= {name: section["rows"] for name, section in run["sections"].items()}
    for name, rows in tables.items():
        if rows:
            write_csv(folder / f"{name}.csv", rows)
