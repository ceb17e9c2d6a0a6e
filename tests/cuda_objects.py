"""What the tests read out of the CUDA library that was built: architectures, machine code, figures.

Imports the library itself and torch; the disassembler is the toolkit's, or Triton's.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = ROOT / "build" / "objects"
DTYPES = ("float32", "float64", "bfloat16", "float16")
#: The mangled name of each stored type, as it stands in a kernel's.
_STORED = {
    "f": "float32", "d": "float64", "NS_8Bfloat16E": "bfloat16", "NS_4HalfE": "float16",
}  # fmt: skip
_NAME = re.compile(
    r"_ZN9pyrevgrad4cuda5sweepINS0_\d+(Forward|BackwardNothing|BackwardMask|BackwardOutput|"
    r"BackwardInput)I(?:NS_\d+(\w+?)E)?(f|d|NS_8Bfloat16E|NS_4HalfE)L(?:NS0_\d)?(b|Gates|Writes)E?(\d)EE"
)
_VARIANTS = {
    "Gates": ("any", "none", "gradient"),
    "Writes": ("", "own mask", "interval's mask"),
    "b": ("any", "plain"),
}


@dataclass(frozen=True)
class Kernel:
    """One kernel of the library: what it does, for what, and what the assembler says of it."""

    direction: str
    activation: str | None
    dtype: str
    variant: str
    registers: int
    stack: int
    spills: int
    loads: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    instructions: int = 0
    #: What a thread whose shares are all whole runs through at most, subroutines aside, and how
    #: many of these instructions are for the special functions' unit.
    path: int = 0
    special: int = 0

    @property
    def elements(self) -> int:
        """Elements that a thread takes: 16 bytes for each wide store."""
        wide = sum(store.endswith(".128") for store in self.stores)
        return wide * 16 // getattr(torch, self.dtype).itemsize

    @property
    def name(self) -> str:
        """Such as ``BackwardMask gradient bfloat16``."""
        parts = (self.direction, self.activation, self.variant, self.dtype)
        return " ".join(part for part in parts if part)


def cuda_architectures() -> list[str]:
    """What the CUDA library of this checkout is compiled for, or nothing where it is not built."""
    try:
        importlib.import_module("pyrevgrad._native_cuda")
    except ImportError:
        return []
    return torch.ops.pyrevgrad.cuda_build.default().split(",")[1:]


def cuda_version() -> str:
    """The CUDA version that the library was built with, such as 13.0."""
    importlib.import_module("pyrevgrad._native_cuda")
    return torch.ops.pyrevgrad.cuda_build.default().split(",")[0]


def disassembler() -> str | None:
    """cuobjdump, of the toolkit or of Triton's package, which has nvdisasm beside it."""
    found = shutil.which("cuobjdump")
    if found and shutil.which("nvdisasm"):
        return found
    spec = importlib.util.find_spec("triton")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, "backends", "nvidia", "bin", "cuobjdump")
        if path.is_file():
            return str(path)
    return None


def _figures(dtype: str, architecture: str) -> dict[str, tuple[int, int, int]]:
    """(registers, stack bytes, spilled bytes) by mangled name, as ptxas -v told the build."""
    text = (OBJECTS / f"cuda_kernels_{dtype}.ptxas").read_text()
    entry = (
        rf"Compiling entry function '(\w+)' for '{architecture}'.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    return {
        name: (int(registers), int(stack), int(stores) + int(loads))
        for name, stack, stores, loads, registers in re.findall(entry, text, re.DOTALL)
    }


@dataclass(frozen=True)
class _Instruction:
    address: int
    guarded: bool
    operation: str
    operands: str


def _code(dtype: str, architecture: str) -> dict[str, list[_Instruction]]:
    """The instructions by mangled name, as the disassembler reads them from the object."""
    path = OBJECTS / f"cuda_kernels_{dtype}.o"
    command = [str(disassembler()), "-sass", "-arch", architecture, str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ )?\s*([A-Z][\w.]*)([^;]*);", re.M)
    found = {}
    for block in text.split("Function : ")[1:]:
        name, _, body = block.partition("\n")
        found[name.strip()] = [
            _Instruction(int(address, 16), bool(guard), operation, operands.strip())
            for address, guard, operation, operands in line.findall(body)
        ]
    return found


#: How an access of one element ends, which a whole share is not moved by.
_SINGLE = {"bfloat16": ".U16", "float16": ".U16", "float32": ".E", "float64": ".64"}


def _longest(code: list[_Instruction], dtype: str) -> tuple[int, int]:
    """The longest way through the code without an access of one element: the instructions, and
    those for the special functions' unit. There are no loops, so each only looks ahead."""
    places = {instruction.address: place for place, instruction in enumerate(code)}
    after: list[tuple[int, int] | None] = [None] * (len(code) + 1)
    for place in reversed(range(len(code))):
        at = code[place]
        ways = [after[place + 1]]
        if at.operation.partition(".")[0] in ("EXIT", "RET"):
            ways = [(0, 0), *ways] if at.guarded else [(0, 0)]
        elif at.operation.startswith("BRA"):
            target = places.get(int(at.operands.rpartition(" ")[2], 16), 0)
            conditional = at.guarded or re.match(r"!?U?P\d", at.operands)
            ways = (ways if conditional else []) + ([after[target]] if target > place else [])
        elif at.operation.startswith(("LDG", "STG")) and at.operation.endswith(_SINGLE[dtype]):
            ways = []
        there = [way for way in ways if way is not None]
        if there:
            longest = max(there)
            after[place] = longest[0] + 1, longest[1] + at.operation.startswith("MUFU")
    assert after[0] is not None
    return after[0]


@functools.cache
def kernels(dtype: str, architecture: str) -> list[Kernel]:
    """Every kernel of `dtype` in the objects of this checkout."""
    code = _code(dtype, architecture)
    made = []
    for mangled, (registers, stack, spills) in _figures(dtype, architecture).items():
        match = _NAME.match(mangled)
        if match is None:
            raise ValueError(f"{mangled} is no name of a kernel")
        direction, activation, stored, kind, number = match.groups()
        assert _STORED[stored] == dtype
        lines = [instruction.operation for instruction in code[mangled]]
        variant = _VARIANTS[kind][int(number)]
        made.append(
            Kernel(
                direction, activation, dtype, variant, registers, stack, spills,
                tuple(line for line in lines if line.startswith(("LDG", "LD.", "LDL", "LDS"))),
                tuple(line for line in lines if line.startswith(("STG", "ST.", "STL", "STS"))),
                len(lines),
                *_longest(code[mangled], dtype),
            )
        )  # fmt: skip
    return made
