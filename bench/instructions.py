"""Instructions per element of the CPU kernels, counted by valgrind: the same on a busy machine.

Imports pyrevgrad's tables and cases. ``bench/driver.cpp`` is compiled beside the kernels' own
objects in ``build/objects``; valgrind hides AVX-512, so that the AVX2 kernels are what is counted.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyrevgrad import backends
from pyrevgrad.rules import RULES

from .cases import Case

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = ROOT / "build" / "objects"
DTYPES = ("float32", "float64", "bfloat16", "float16")
#: The number of elements between two counts whose difference is the cost of one more.
STEP = 4096
BOTH, FORWARD, BACKWARD = ("forward", "backward"), ("forward",), ("backward",)
#: The directions of a case that no case above it runs the same kernel for.
SELECTING = {
    Case("relu", "DECONVNET"): BOTH,  # the value alone; g > 0 alone
    Case("relu", "reverse"): BOTH,  # value and mask; a low slope of 0
    Case("relu", "GUIDED"): BACKWARD,  # a low slope of 0, and g > 0
    Case("relu", "rectgrad"): BACKWARD,  # any gates, the output kept
    Case("relu", "deconvnet_clipped"): BACKWARD,  # any gates, nothing kept
    Case("leaky_relu", "reverse"): BOTH,  # two slopes
    Case("leaky_relu", "guided_slope"): BACKWARD,  # any gates, a mask kept
    Case("hardtanh", "reverse"): FORWARD,
    Case("hardtanh", "clipped_straight_through"): FORWARD,
    Case("identity", "reverse"): BACKWARD,
}
COMPUTING = {
    Case(name, rule): directions
    for name in ("gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
    for rule, directions in (("reverse", BOTH), ("GUIDED", FORWARD), ("guided_product", BACKWARD))
}


class UnavailableError(RuntimeError):
    """Why nothing can be counted here, and the cure."""


@dataclass(frozen=True)
class Counted:
    """One direction of a case in one dtype."""

    case: Case
    direction: str
    dtype: str

    @property
    def name(self) -> str:
        """Such as ``relu/GUIDED forward``."""
        return f"{self.case.name} {self.direction}"

    def line(self, elements: int) -> str:
        """The call as the driver reads it."""
        pairs = backends.pairs_of(self.case.activation, RULES[self.case.rule_name], {})
        half = getattr(torch, self.dtype) in backends.HALF_TYPES
        program = (pairs.half if half else pairs.full).program
        if program is None:
            raise UnavailableError("the native library is not built: see `make test`")
        numbers = " ".join(f"{number!r}" for number in program.tolist())
        return f"{self.direction} {self.dtype} {elements} {numbers}"


def counted() -> list[Counted]:
    """What is counted: float64 of the computing kernels is not, since torch's Sleef computes it."""
    return [
        Counted(case, direction, dtype)
        for case, directions in (*SELECTING.items(), *COMPUTING.items())
        for direction in directions
        for dtype in DTYPES
        if not (case in COMPUTING and dtype == "float64")
    ]


@functools.cache
def compiler() -> str:
    """The compiler that made the kernels' objects, from the note that it leaves in each."""
    path = OBJECTS / "kernels_avx2.o"
    if not path.is_file():
        raise UnavailableError(
            "build/objects has no AVX2 kernels: build in this checkout, on x86-64 "
            "(`pip install --no-build-isolation -e .`)"
        )
    notes = rb"GCC: \([^)]*\) [\d.]+|[\w ]*clang version [\w.+~-]+"
    found = re.search(notes, path.read_bytes())
    return found.group().decode().strip() if found else "unknown"


def _tool(name: str, cure: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UnavailableError(f"{name} is not there; {cure}")
    return found


def _check_objects() -> None:
    """UnavailableError unless build/objects is what the library in use was linked from."""
    compiler()
    library = getattr(sys.modules.get("pyrevgrad._native"), "__file__", None)
    if library is None:
        raise UnavailableError("the native library is not loaded: see `python -m pyrevgrad info`")
    linked = OBJECTS / Path(library).name
    if not linked.is_file() or linked.read_bytes() != Path(library).read_bytes():
        raise UnavailableError(
            "build/objects is not what the library in use was linked from; build again here "
            "(`pip install --no-build-isolation -e .`)"
        )


def _run(command: list[str], said: str, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    if done.returncode != 0:
        lines = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise RuntimeError(f"{said} failed with status {done.returncode}:\n{lines}")
    return done


def _driver(folder: Path) -> Path:
    """The driver, linked with the kernels of this checkout."""
    words = shlex.split(os.environ.get("CXX", "")) or [
        next(filter(shutil.which, ("c++", "g++", "clang++")), "c++")
    ]
    _tool(words[0], "install a C++ compiler")
    objects = [*sorted(OBJECTS.glob("kernels_*.o")), OBJECTS / "dispatch.o"]
    target = folder / "driver"
    source = str(ROOT / "bench" / "driver.cpp")
    command = [*words, "-O2", "-std=c++17", source, *map(str, objects), "-o", str(target)]
    _run(command, "compiling bench/driver.cpp")
    return target


def instructions(lines: list[str]) -> list[int]:
    """The instructions of each call, a line each as the driver reads it.

    Raises
    ------
    UnavailableError
        No valgrind, no compiler, no objects of this build, or a machine without AVX2.
    """
    valgrind = _tool("valgrind", "it counts the instructions (Debian: apt install valgrind)")
    _check_objects()
    with tempfile.TemporaryDirectory(prefix="pyrevgrad-counts-") as folder:
        out = Path(folder, "out")
        command = [valgrind, "--tool=callgrind", "--collect-atstart=no", "--combine-dumps=yes"]
        command += ["--toggle-collect=measured", "--dump-after=measured"]
        command += [f"--callgrind-out-file={out}", str(_driver(Path(folder)))]
        environment = os.environ | {"PYREVGRAD_CPU_CAPABILITY": ""}
        said = _run(command, "valgrind", input="\n".join(lines), env=environment, cwd=folder)
        capability = said.stdout.strip()
        if capability != "avx2":
            raise UnavailableError(f"under valgrind this machine runs the {capability} kernels")
        found = [int(n) for n in re.findall(r"^summary: (\d+)$", out.read_text(), re.MULTILINE)]
    # What follows the last call to the end of the program is a part of its own, and empty.
    if len(found) not in (len(lines), len(lines) + 1):
        raise RuntimeError(f"{len(lines)} calls, and valgrind counted {len(found)}")
    return found[: len(lines)]


def measure(quick: bool = False) -> list[dict[str, Any]]:
    """A row for each kernel and dtype; `quick` makes no difference, since seconds are enough.

    Returns
    -------
    list of dict
        ``kernel``, ``dtype``, ``element`` (instructions of one more element), ``call`` (those of
        a call with one element: what every call costs, and a tail).
    """
    chosen = counted()
    sizes = (1, STEP, 2 * STEP)
    counts = instructions([c.line(n) for c in chosen for n in sizes])
    rows = []
    for place, one in enumerate(chosen):
        least, first, second = counts[3 * place : 3 * place + 3]
        rows.append(
            {
                "kernel": one.name,
                "dtype": one.dtype,
                "element": round((second - first) / STEP, 4),
                "call": least,
            }
        )
    return rows


def section(rows: list[dict[str, Any]]) -> str:
    """The table of a page: a line for each kernel, a column for each dtype."""
    by_name: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["kernel"], {})[row["dtype"]] = row

    def text(row: dict[str, Any] | None) -> str:
        return "–" if row is None else f"{row['element']:.2f} ({row['call']})"

    lines = ["| kernel | " + " | ".join(DTYPES) + " |", "| :-- |" + " --: |" * len(DTYPES)]
    for name, found in by_name.items():
        lines.append(f"| {name} | " + " | ".join(text(found.get(d)) for d in DTYPES) + " |")
    return "\n".join(
        [
            "### Instructions",
            "",
            "AVX2 kernels, counted by valgrind: instructions of one more element, and in brackets "
            "those of a whole call with one element. A count says nothing of how long an "
            "instruction takes or of memory; it is the same on a busy machine, so that a change "
            "of code shows. float64 of the curved activations is computed by torch's Sleef and "
            "not counted.",
            "",
            *lines,
        ]
    )
