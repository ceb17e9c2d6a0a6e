"""The sections that the page has besides its own tables: a module each, named here.

A section module gives ``measure(quick) -> rows`` and ``section(rows) -> Markdown``; its rows go
into the record under its name and into ``NAME.csv``. Imports the sections, and nothing of them.
"""

from __future__ import annotations

import traceback
from types import ModuleType
from typing import Any

from . import counts, host, scaling

#: In the order of the page. Whole networks (`networks`, `training`) take longer than all of it and
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


def texts(found: dict[str, Row]) -> list[str]:
    """The Markdown of every section that was measured."""
    made = []
    for module in SECTIONS:
        own = found.get(_name(module))
        if own is None:
            continue
        if "error" in own:
            made.append(f"### {_name(module)}\n\nNot measured: {own['error']}")
        elif own["rows"]:
            made.append(module.section(own["rows"]))
    return made
