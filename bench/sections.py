"""The sections that the page has besides its own tables: a module each, named here.

A section module gives ``measure(quick) -> rows``, ``summary(rows) -> Markdown`` for the page and
``section(rows) -> Markdown`` for the tables; its rows go into the record under its name and into
``NAME.csv``. Imports the sections, and nothing of them.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from . import counts, host, scaling

#: In the order of the page. Whole networks (`networks`, `training`) take as long as all of it and
#: are commands of their own.
SECTIONS: tuple[ModuleType, ...] = (host, scaling, counts)

Row = dict[str, Any]


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def measure(quick: bool, progress: Any) -> dict[str, Row]:
    """The rows of every section by its name, or why there are none.

    A section that fails costs the run its own figures, not those that minutes have been spent on;
    the command's status tells.
    """
    found: dict[str, Row] = {}
    for module in SECTIONS:
        name = _name(module)
        progress.say(f"section: {name}")
        try:
            found[name] = {"rows": module.measure(quick)}
        except Exception as error:
            traceback.print_exc()
            found[name] = {"rows": [], "error": f"{type(error).__name__}: {error}"}
    return found


def _made(found: dict[str, Row], what: str, level: str) -> Iterator[str]:
    for module in SECTIONS:
        own = found.get(_name(module))
        if own is None:
            continue
        if "error" in own:
            yield f"{level} {_name(module)}\n\nNot measured: {own['error']}"
        elif own["rows"]:
            yield getattr(module, what)(own["rows"])


def texts(found: dict[str, Row]) -> list[str]:
    """All tables of every section that was measured."""
    return list(_made(found, "section", "##"))


def summaries(found: dict[str, Row]) -> list[str]:
    """What every section that was measured comes to."""
    return list(_made(found, "summary", "##"))
