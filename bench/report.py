"""Writes a run down: one JSON file with everything, one CSV a table.

Imports the standard library only.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


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


def write_csv(path: Path, rows: list[Row]) -> None:
    """`rows` under the union of their columns, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write(folder: Path, run: dict[str, Any]) -> None:
    """``results.json`` and the tables in `folder`."""
    write_json(folder / "results.json", run)
    for table in ("timings", "kernels", "kept", "resident"):
        if run[table]:
            write_csv(folder / f"{table}.csv", run[table])
