"""Counts that do not depend on the machine's noise, and the budgets they are held to.

Imports instructions and dispatches. ``python -m bench.counts`` prints what there is and whether
it keeps to ``bench/budgets.json``; with ``--write-budgets`` it writes that file anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pyrevgrad import backends

from . import dispatches, instructions
from .arguments import file

BUDGETS = Path(__file__).with_name("budgets.json")
HOW = (
    "Change a budget by `python -m bench.counts --write-budgets`, in the commit that changes the "
    "count, with the reason in its message."
)
#: Another revision of a C library may take a few instructions more, in the copies of a tail.
TOLERANCE, SLACK = 0.02, 4
PARTS = ("no grad", "forward", "backward")
Row = dict[str, Any]


def measure(quick: bool = False) -> list[Row]:
    """Every row, marked by ``kind``; one with ``skipped`` where valgrind cannot count here."""
    rows = [{"kind": "dispatch", **row} for row in dispatches.measure(quick)]
    try:
        counted = [{"kind": "instruction", **row} for row in instructions.measure(quick)]
    except instructions.UnavailableError as error:
        counted = [{"kind": "instruction", "skipped": str(error)}]
    return counted + rows


def section(rows: list[Row]) -> str:
    """The section of the page."""
    counted = [row for row in rows if row["kind"] == "instruction"]
    parts = ["## Counts", "Held to `bench/budgets.json` by the tests; no machine's noise is in it."]
    if any("skipped" in row for row in counted):
        parts.append(f"Instructions are not counted here: {counted[0]['skipped']}.")
    else:
        parts.append(instructions.section(counted))
    parts.append(dispatches.section([row for row in rows if row["kind"] == "dispatch"]))
    return "\n\n".join(parts)


def summary(rows: list[Row]) -> str:
    """What a few calls dispatch, and what an element costs in instructions."""
    chosen = [row for row in rows if row["kind"] == "instruction"]
    if any("skipped" in row for row in chosen):
        text = f"Instructions are not counted here: {chosen[0]['skipped']}."
    else:
        found = [f"{r['kernel']} {r['element']:.2f}" for r in chosen if r["dtype"] == "float32"]
        named = [one for one in found if one.startswith(("relu/GUIDED", "gelu/reverse"))]
        text = f"Instructions an element, float32 on AVX2: {', '.join(named)}."
    parts = [
        "## Counts",
        "What no noise touches, held to `bench/budgets.json` by the tests. " + text,
        dispatches.summary([row for row in rows if row["kind"] == "dispatch"]),
    ]
    return "\n\n".join(parts)


def _budget_of(found: Row) -> Row:
    return {name: found[name] for name in ("operations", "kernels", "allocations", "bytes")}


def budgets_of(rows: list[Row]) -> dict[str, Any]:
    """The rows as budgets: nested by what is looked up, plain PyTorch left out."""
    kernels: dict[str, dict[str, list[float]]] = {}
    recorders: dict[str, dict[str, Any]] = {name: {} for name in dispatches.RECORDERS}
    for row in rows:
        if "skipped" in row or row.get("recorder") == "plain":
            continue
        if row["kind"] == "instruction":
            kernels.setdefault(row["kernel"], {})[row["dtype"]] = [row["element"], row["call"]]
        elif "call" in row:
            found = {part: _budget_of(row[part]) for part in PARTS}
            recorders[row["recorder"]][row["call"]] = found
        else:
            step = {**_budget_of(row), "operations": len(row["operations"])}
            recorders[row["recorder"]][f"step of {row['step']}"] = step
    return {"instructions": kernels, "dispatches": recorders}


def _beyond(count: float, budget: float, slack: float) -> bool:
    return abs(count - budget) > max(TOLERANCE * budget, slack)


def instruction_problems(counted: dict[str, Any], budgets: dict[str, Any]) -> list[str]:
    """A sentence for each kernel that does not keep to its budget, or has none.

    Examples
    --------
    >>> instruction_problems({"f": {"float32": [3.0, 90]}}, {"f": {"float32": [2.0, 90]}})
    ['f float32: 3.0 instructions an element, and its budget is 2.0']
    """
    problems = _missing(counted, budgets)
    for name in counted.keys() & budgets.keys():
        problems += [f"{name} {text}" for text in _missing(counted[name], budgets[name])]
        for dtype in counted[name].keys() & budgets[name].keys():
            (element, call), (least, base) = counted[name][dtype], budgets[name][dtype]
            said = f"{name} {dtype}: "
            if _beyond(element, least, 0.0):
                problems.append(
                    f"{said}{element} instructions an element, and its budget is {least}"
                )
            if _beyond(call, base, SLACK):
                problems.append(f"{said}{call} instructions a call, and its budget is {base}")
    return sorted(problems)


def dispatch_problems(counted: dict[str, Any], budgets: dict[str, Any]) -> list[str]:
    """A sentence for each count that is not exactly its budget, or has none."""
    problems = _missing(counted, budgets)
    for name in counted.keys() & budgets.keys():
        found, budget = counted[name], budgets[name]
        parts = [part for part in PARTS if part in budget]
        pairs = [(f"{name} {part}", found[part], budget[part]) for part in parts]
        for said, one, other in pairs or [(name, found, budget)]:
            problems += [
                f"{said}: {what} {one[what]}, and the budget is {other[what]}"
                for what in other
                if one[what] != other[what]
            ]
    return sorted(problems)


def _missing(counted: dict[str, Any], budgets: dict[str, Any]) -> list[str]:
    new, gone = counted.keys() - budgets.keys(), budgets.keys() - counted.keys()
    problems = [f"{name}: counted, and it has no budget" for name in new]
    return problems + [f"{name}: has a budget, and was not counted" for name in gone]


def load() -> dict[str, Any]:
    """The committed budgets."""
    return json.loads(BUDGETS.read_text(encoding="utf-8"))


def why_not_instructions(budgets: dict[str, Any]) -> str | None:
    """Why the instructions of this build cannot be held to the budgets; None where they can."""
    try:
        found = instructions.compiler()
    except instructions.UnavailableError as error:
        return str(error)
    if found != budgets["compiler"]:
        return f"the budgets are for {budgets['compiler']}, and these kernels are by {found}"
    return None


def why_not_dispatches(budgets: dict[str, Any]) -> str | None:
    """Why this installation cannot be held to the budgets; None where it can."""
    if backends.native() is None:
        return "the budgets are those of the native library, which is not built here"
    version = torch.__version__.partition("+")[0]
    if version != budgets["torch"]:
        return f"the budgets are for torch {budgets['torch']}, and this is {version}"
    return None


def problems(rows: list[Row], budgets: dict[str, Any]) -> list[str]:
    """What of `rows` does not keep to `budgets`; a part that was skipped is not held to them."""
    counted = budgets_of(rows)
    found: list[str] = []
    if counted["instructions"] and why_not_instructions(budgets) is None:
        found += instruction_problems(counted["instructions"], budgets["instructions"])
    if why_not_dispatches(budgets) is None:
        for recorder, names in counted["dispatches"].items():
            if names:
                kept = budgets["dispatches"][recorder]
                found += [f"{recorder}: {said}" for said in dispatch_problems(names, kept)]
    return found


def _write(rows: list[Row]) -> None:
    skipped = [row["skipped"] for row in rows if "skipped" in row]
    if skipped:
        raise SystemExit(f"budgets are written where everything is counted: {skipped[0]}")
    version = torch.__version__.partition("+")[0]
    head = {"how": HOW, "compiler": instructions.compiler(), "torch": version}
    BUDGETS.write_text(_lines({**head, **budgets_of(rows)}) + "\n", encoding="utf-8")


def _lines(value: Any, indent: str = "") -> str:
    """JSON with what fits on one line on one line, so that a diff of budgets reads."""
    short = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict) or len(indent + short) <= 96:
        return short
    inner = indent + " "
    entries = (
        f"{inner}{json.dumps(key, ensure_ascii=False)}: {_lines(item, inner)}"
        for key, item in value.items()
    )
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the section; 1 where a budget is not kept."""
    parser = argparse.ArgumentParser(prog="python -m bench.counts", description=HOW)
    parser.add_argument("--json", type=file, metavar="FILE", help="write the rows there")
    parser.add_argument("--write-budgets", action="store_true", help="make these counts budgets")
    options = parser.parse_args(arguments)
    rows = measure()
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    print(section(rows))
    if options.write_budgets:
        _write(rows)
        return 0
    budgets = load()
    for reason in (why_not_instructions(budgets), why_not_dispatches(budgets)):
        if reason:
            print(f"not held to the budgets: {reason}", file=sys.stderr)
    found = problems(rows, budgets)
    for problem in found:
        print(problem, file=sys.stderr)
    if found:
        print(HOW, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
