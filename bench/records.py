"""What lies in the folder of a machine: a record of each command, and the page made of them all.

Imports machine, report, page, verdicts and the pictures. A command writes its own record
here and leaves the others' alone; ``python docs/generate.py`` makes the page anew from the newest
records.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import arguments, machine, page, report, verdicts

Row = dict[str, Any]
#: The whole suite's record, without which there is no page.
SUITE = "results.json"


class Begun:
    """A command that begins to measure now."""

    def __init__(self, name: str, arguments: Sequence[str] | None) -> None:
        wrong = machine.two_checkouts()
        if wrong and name != "compare":  # which times versions of its own
            raise SystemExit(wrong)
        given = sys.argv[1:] if arguments is None else arguments
        self._command = shlex.join(["python", "-m", f"{__package__}.{name}", *given])
        self._load, self._start = machine.load_average(), time.monotonic()

    def run(self, settings: Row, rows: list[Row]) -> Row:
        """The record: what was measured, when, for how long, with what."""
        return {
            "command": self._command,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "minutes": round((time.monotonic() - self._start) / 60, 1),
            "load": [self._load, machine.load_average()],
            "machine": machine.describe(),
            "settings": settings,
            "rows": rows,
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where a record goes: the options that all commands share."""
    parser.add_argument(
        "--out", type=arguments.pages_folder, metavar="DIR", help="where the record and page go"
    )
    parser.add_argument(
        "--json", type=arguments.file, metavar="FILE", help="write the record there too"
    )


def read(path: Path) -> Any:
    """A record, or None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def newest(results: Path) -> Path | None:
    """The folder of the newest record of the whole suite, the one that the page shows."""
    found = {path.parent: read(path)["date"] for path in results.glob(f"*/{SUITE}")}
    return max(found, key=lambda folder: found[folder]) if found else None


def write_page(folder: Path, path: Path) -> bool:
    """Write the page of a folder to `path` and its tables, or, where `path` is the project's page,
    every page of the project; False where there is no record of the folder."""
    own = path.parent == folder
    for place, made in (pages(folder, path) if own else project_pages(folder.parent, path)).items():
        place.write_text(made, encoding="utf-8")
    return (folder / SUITE).is_file()


def _others(folder: Path) -> dict[str, Row]:
    """The records of whole networks and of training that are there."""
    found = {name: read(folder / f"{name}.json") for name in page.OTHERS}
    return {name: other for name, other in found.items() if other is not None}


def headline(folder: Path) -> str:
    """How the records of a folder stand to every floor of its page, and which are missed."""
    run, others = read(folder / SUITE), _others(folder)
    found = verdicts.floors(run, others)
    missed = [what for what, word in found.items() if word == verdicts.MISSED]
    said = verdicts.headline(run, others)
    return f"{said} Missed: {'; '.join(missed)}." if missed else said


def _text(run: Row, folder: Path, prefix: str, elsewhere: Sequence[str] = ()) -> str:
    """The page of a folder, to which `prefix` leads from it."""
    compared = [read(path) for path in sorted(folder.glob("compare-*.json"))]
    names = (*page.PICTURES, *page.OTHERS)
    pictures = [name for name in names if (folder / f"{name}.png").is_file()]
    return page.page(run, _others(folder), compared, pictures, prefix, elsewhere)


def pages(folder: Path, path: Path, elsewhere: Sequence[str] = ()) -> dict[Path, str]:
    """What the page at `path` and the page of all tables should say; nothing without a record.

    `elsewhere` are the paths of other machines' pages, from this one.
    """
    run = read(folder / SUITE)
    if run is None:
        return {}
    prefix = "" if path.parent == folder else f"{folder.parent.name}/{folder.name}/"
    text = _text(run, folder, prefix, elsewhere)
    return {path: text, folder / page.TABLES: page.tables_page(run)}


def project_pages(results: Path, path: Path) -> dict[Path, str]:
    """A page in the folder of each machine, and that of the newest record, which leads to the
    others, at `path`; nothing without a record."""
    own = {folder: folder / "README.md" for folder in sorted(results.glob("*"))}
    made = {}
    for folder, place in own.items():
        made |= pages(folder, place)
    latest = newest(results)
    if latest is not None:
        others = [folder for folder, place in own.items() if place in made or place.is_file()]
        elsewhere = [f"{results.name}/{one.name}/README.md" for one in others if one != latest]
        made |= pages(latest, path, elsewhere)
    return made


def drawn(folder: Path, names: Sequence[str], draw: Callable[[], object]) -> None:
    """Draw anew what `names` says; old pictures go, since they show other figures."""
    for name in names:
        for ending in (".png", ".svg"):
            (folder / name).with_suffix(ending).unlink(missing_ok=True)
    try:
        draw()
    except ImportError as error:
        print(f"no pictures ({error}): pip install 'pyrevgrad[bench]'", file=sys.stderr)


def keep(name: str, run: Row, options: argparse.Namespace, whole: bool) -> None:
    """Write a record, its table and its picture, then the page, and say where they are.

    Parameters
    ----------
    name : str
        Of `page.OTHERS`.
    run : dict
        What `Begun.run` made.
    options : Namespace
        Of a parser with `add_options`.
    whole : bool
        Whether nothing less was measured than the project records.
    """
    from . import bars

    described = run["machine"]
    device = machine.device_name(described["processor"], described["processors"])
    folder, path = report.folder(options.out, device, whole)
    report.write_json(folder / f"{name}.json", run)
    report.write_csv(folder / f"{name}.csv", run["rows"])
    if options.json:
        report.write_json(options.json, run)
    drawn(folder, [name], lambda: bars.draw(folder / name, name, run["rows"]))
    print(f"written: {folder / name}.json")
    if write_page(folder, path):
        print(f"written: {path}")
    else:
        print(f"no page yet: `make bench` has left no {SUITE} in {folder}")
