"""Write the tables of the CUDA kernels' machine code into docs/cuda.md; ``--check`` only compares.

Reads the objects of the last build through tests/cuda_objects.py, so it needs a build by nvcc for
sm_90 and a disassembler, but no GPU.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import cuda_objects  # noqa: E402
from cuda_objects import DTYPES, Kernel  # noqa: E402

PAGE = ROOT / "docs" / "cuda.md"
ARCHITECTURE = "sm_90"
ITEM = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
#: Family of kernels: what it reads and writes beside two tensors, and how a reader says it.
FAMILIES = {
    ("Forward", ""): ("forward", 0.0),
    ("Forward", "own mask"): ("forward, its own mask written", 0.125),
    ("Forward", "interval's mask"): ("forward, mask of an interval of x", 0.125),
    ("BackwardNothing", "none"): ("backward by g: no gate", 0.0),
    ("BackwardNothing", "gradient"): ("backward by g: g <= 0", 0.0),
    ("BackwardNothing", "any"): ("backward by g: any rule", 0.0),
    ("BackwardMask", "none"): ("backward by mask: no other gate", 0.125),
    ("BackwardMask", "gradient"): ("backward by mask: g <= 0", 0.125),
    ("BackwardMask", "any"): ("backward by mask: any rule", 0.125),
    ("BackwardOutput", "plain"): ("backward by output: slope alone", 1.0),
    ("BackwardOutput", "any"): ("backward by output: any rule", 1.0),
    ("BackwardInput", "plain"): ("backward by input: slope alone", 1.0),
    ("BackwardInput", "any"): ("backward by input: any rule", 1.0),
}


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}–{high}"


def _wide(kernel: Kernel) -> tuple[int, int]:
    return tuple(
        sum(access.endswith(".128") for access in accesses)
        for accesses in (kernel.loads, kernel.stores)
    )  # type: ignore[return-value]


def _row(family: tuple[str, str], dtype: str, found: list[Kernel]) -> list[str]:
    text, extra = FAMILIES[family]
    moved = 2 * ITEM[dtype] + (ITEM[dtype] if extra == 1.0 else extra)
    loads, stores = zip(*map(_wide, found), strict=True)
    return [
        text, dtype, str(len(found)), f"{moved:g}", _range(list(loads)), _range(list(stores)),
        _range([kernel.registers for kernel in found]),
        str(max(kernel.stack + kernel.spills for kernel in found)),
    ]  # fmt: skip


def version() -> str:
    """The CUDA version that the library was built with."""
    return cuda_objects.cuda_version()


def text() -> str:
    """The table."""
    head = (
        "kernel", "dtype", "kernels", "bytes per element", "16-byte loads", "16-byte stores",
        "registers", "local memory",
    )  # fmt: skip
    rows = [list(head), ["---"] * len(head)]
    for family in FAMILIES:
        for dtype in DTYPES:
            every = cuda_objects.kernels(dtype, ARCHITECTURE)
            found = [k for k in every if (k.direction, k.variant) == family]
            rows.append(_row(family, dtype, found))
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"Built by CUDA {version()} for {ARCHITECTURE}:\n\n{table}"


def _effort(kernels: list[Kernel], activation: str, direction: str, variant: str) -> str:
    for kernel in kernels:
        if (kernel.activation, kernel.direction, kernel.variant) == (
            activation,
            direction,
            variant,
        ):
            return f"{kernel.path / kernel.elements:.0f}, {kernel.special / kernel.elements:.0f}"
    return "–"


def effort() -> str:
    """Instructions an element of the half types' kernels that compute more than a product."""
    head = ["activation"]
    for dtype in ("bfloat16", "float16"):
        head += [f"{dtype} forward", "backward by x", "backward by y"]
    rows = [head, ["---"] * len(head)]
    every = [cuda_objects.kernels(dtype, ARCHITECTURE) for dtype in ("bfloat16", "float16")]
    plain = {
        k.activation for k in every[0] if (k.direction, k.variant) == ("BackwardInput", "plain")
    }
    for name in sorted(filter(None, plain)):
        row = [f"`{re.sub(r'(?<=[a-z])(?=[A-Z])', '_', name).lower()}`"]
        for found in every:
            row.append(_effort(found, name, "Forward", ""))
            row += [_effort(found, name, f"Backward{by}", "plain") for by in ("Input", "Output")]
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def filled(page: str) -> str:
    """The page with its tables made anew."""
    for name, made in (("machine code", text), ("effort", effort)):
        mark = f"<!-- {name} -->\n\n{made()}\n\n<!-- /{name} -->"
        pattern = rf"<!-- {name} -->\n.*?<!-- /{name} -->"
        page = re.sub(pattern, lambda _, mark=mark: mark, page, flags=re.DOTALL)
    return page


def main() -> int:
    """Write the page; with --check, only say whether it is out of date."""
    parser = argparse.ArgumentParser(description="Generate the table of the machine code.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if out of date")
    check = parser.parse_args().check
    before = PAGE.read_text(encoding="utf-8")
    after = filled(before)
    if check:
        print("out of date" if after != before else "up to date")
        return int(after != before)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
