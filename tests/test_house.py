"""The rooms import what CONTRIBUTING's table lets them, downward only, and in no circle."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "pyrevgrad"
PATHS = {path.relative_to(HOUSE).with_suffix("").parts: path for path in HOUSE.rglob("*.py")}
#: Which row of the table a room stands in, and what the row says it may import.
ROWS, MAY = {}, {}
for number, line in enumerate((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()):
    if line.startswith("| `pyrevgrad/"):
        _, rooms, _, words, _ = line.split("|")
        for room in re.findall(r"`(?:pyrevgrad/)?(\w+)(?:/|\.py)`", rooms):
            ROWS[room], MAY[room] = number, words


def imports(node, package, at_once):
    """The modules of the house that a module of `package` imports; in functions unless at once."""
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
        return
    if isinstance(node, ast.FunctionDef) and at_once:
        return
    if isinstance(node, ast.ImportFrom) and node.level:
        start = package[: len(package) - node.level + 1]
        start += tuple((node.module or "").split(".")) if node.module else ()
        for name in (alias.name for alias in node.names):
            inner = (*start, name)
            places = (inner, (*inner, "__init__"), start, (*start, "__init__"))
            # The version alone is no room; bench and kernels stand in folders of their own.
            if inner != ("__version__",):
                yield from [place for place in places if place in PATHS][:1]
    for child in ast.iter_child_nodes(node):
        yield from imports(child, package, at_once)


MODULES = [module for module in PATHS if module[0] not in ("bench", "kernels")]


def imported(module, at_once=False):
    """The modules of the house that `module` imports."""
    return set(imports(ast.parse(PATHS[module].read_text(encoding="utf-8")), module[:-1], at_once))


def allowed(room, other):
    """Whether the table lets `room` import `other`, which stands above it."""
    named = {other, "everything"} & set(re.findall(r"\w+", MAY[room]))
    return ROWS[other] < ROWS[room] and bool(named)


@pytest.mark.parametrize("module", MODULES, ids=".".join)
def test_a_room_imports_what_the_table_lets_it(module):
    room = module[0]
    assert room in ROWS, "it has no row in CONTRIBUTING's table"
    for other in {found[0] for found in imported(module)} - {room, "bench", "kernels"}:
        assert ROWS[other] == ROWS[room] or allowed(room, other), f"{module} imports {other}"


def test_nothing_imports_in_a_circle():
    graph = {module: imported(module, at_once=True) for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()


def test_every_room_of_the_table_is_there():
    assert {module[0] for module in MODULES} == set(ROWS)
