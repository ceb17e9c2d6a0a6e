"""Write the tables of docs/triton.md: what every Triton kernel compiles to for sm_90, with no GPU.

``python docs/generate_kernels.py [--check] [ACTIVATION...]``: with names, only their rows are
compiled and compared. Ends with status 3 where the page was written with another Triton.
Imports the package and triton; takes minutes.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from pathlib import Path

import torch

from pyrevgrad import ACTIVATIONS, backends
from pyrevgrad.rules import RULES

PAGE = Path(__file__).resolve().parent / "triton.md"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: One pair of each plan, for the table of accesses.
PLANS = (
    ("nothing", "relu", "DECONVNET"),
    ("mask", "relu", "GUIDED"),
    ("output", "sigmoid", "EXACT"),
    ("input", "silu", "EXACT"),
)


def pair_of(name: str, rule: str, dtype: torch.dtype) -> backends.Pair:
    """The pair that serves `dtype`."""
    pairs = backends.Pairs(name, RULES[rule], {})
    return pairs.half if dtype in backends.HALF_TYPES else pairs.full


def registers(name: str, rule: str) -> str:
    """One row: registers a thread, forward and backward, by dtype."""
    from pyrevgrad.kernels import inspection

    cells = []
    for dtype in DTYPES:
        pair = pair_of(name, rule, dtype)
        forward = inspection.compiled_forward(pair, dtype).resources()["REG"]
        if pair.keeps == "nothing" and pair.slope_high == 0:
            cells.append(f"{forward}, –")
            continue
        cells.append(f"{forward}, {inspection.compiled_backward(pair, dtype).resources()['REG']}")
    return f"| `{name}` | `{RULES[rule]!r}` | {' | '.join(cells)} |"


def body(compiled: object, kind: str) -> str:
    """The accesses of a thread in the body: 16 bytes wide ones, and bytes of a mask."""
    accesses = compiled.accesses  # type: ignore[attr-defined]
    wide = f"{accesses[kind, 'global', 16]}×16"
    return f"{wide} + 1" if accesses[kind, "global", 1] else wide


def accesses(plan: str, name: str, rule: str) -> list[str]:
    """Two rows of one plan: bytes that a thread loads and stores, by dtype."""
    from pyrevgrad.kernels import inspection

    rows = []
    for way in ("forward", "backward"):
        cells = []
        for dtype in DTYPES:
            made = getattr(inspection, f"compiled_{way}")(pair_of(name, rule, dtype), dtype)
            cells.append(f"{body(made, 'ld')} → {body(made, 'st')}")
        rows.append(f"| {plan} | {way} | {' | '.join(cells)} |")
    return rows


def keys() -> list[tuple[str, str]]:
    """(activation, rule) of the register table's rows."""
    others = [rule for rule in RULES if rule != "EXACT"]
    of_rules = [(name, rule) for name in ("relu", "silu") for rule in others]
    return [*((name, "EXACT") for name in ACTIVATIONS), *of_rules]


def page_text(version: str) -> str:
    """The page with both tables anew."""
    names = " | ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
    rule = "| --- | --- | --- | --- | --- | --- |"
    registers_of = [registers(*key) for key in keys()]
    accesses_of = [row for plan in PLANS for row in accesses(*plan)]
    tables = {
        "accesses": [f"| plan | kernel | {names} |", rule, *accesses_of],
        "registers": [f"| activation | rule | {names} |", rule, *registers_of],
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in tables.items():
        block = "\n".join([f"<!-- {name} -->", "", *lines, "", f"<!-- /{name} -->"])
        text = re.sub(
            rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.S
        )
    return re.sub(r"Compiled by Triton \S+ for", f"Compiled by Triton {version} for", text)


def check_rows(names: list[str], text: str) -> list[str]:
    """The rows of `names` that the page has otherwise."""
    wanted = [key for key in keys() if key[0] in names]
    return [row for row in (registers(*key) for key in wanted) if row not in text]


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description="Generate the tables of docs/triton.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if out of date")
    parser.add_argument("names", nargs="*", help="compare only the rows of these activations")
    options = parser.parse_args()
    if importlib.util.find_spec("triton") is None:
        print("triton is not installed", file=sys.stderr)
        return 3
    import triton

    before = PAGE.read_text(encoding="utf-8")
    if options.check and f"Compiled by Triton {triton.__version__} for" not in before:
        print(f"docs/triton.md is of another Triton than {triton.__version__}", file=sys.stderr)
        return 3
    if options.names:
        stale = check_rows(options.names, before)
        print("\n".join(stale), file=sys.stderr)
        return 1 if stale else 0
    after = page_text(triton.__version__)
    if after != before and options.check:
        print("out of date: docs/triton.md; run python docs/generate_kernels.py", file=sys.stderr)
        return 1
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
