"""An interpreter of PTX, as far as our kernels use it: every thread of a launch, in NumPy.

Threads that have branched apart wait for those that are behind, and go on with them from the same
place. Memory is one arena, of which each byte may be read, written, or neither: an access beyond an
array, or one that is not aligned as a device asks, is an error. Imports ptx_arithmetic.py, NumPy.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ptx_arithmetic import (
    ARITHMETIC,
    SHIFTED,
    SIGNS,
    TYPES,
    Lanes,
    compared,
    constant,
    converted,
    flushed,
    from_bfloat16,
    paired,
    rounded_down,
    to_bfloat16,
)

#: The type of a register by the first letters of its name.
_REGISTERS = {"%rs": "b16", "%rd": "b64", "%fd": "b64", "%p": "pred", "%r": "b32", "%f": "b32"}
READ, WRITE = 1, 2
#: What Triton calls a block's shared memory.
SHARED = ("global_smem",)
BASE = 1 << 40


class Fault(Exception):
    """What a device would end the kernel for, or a memory checker tell."""


class Unread(Exception):
    """PTX that this interpreter was not written for, as of another compiler's version."""


class Memory:
    """Arrays on a device, each at its own distance from a multiple of 256 bytes, with bytes
    between them that nobody may touch."""

    def __init__(self) -> None:
        self._bytes = np.zeros(0, np.uint8)
        self._allowed = np.zeros(0, np.uint8)

    def put(self, contents: bytes, allowed: int, offset: int = 0) -> int:
        """The address of a new array."""
        start = len(self._bytes) + 256 + offset
        size = -(-(start + len(contents)) // 256) * 256 + 256
        for name in ("_bytes", "_allowed"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros(size - len(old), np.uint8)]))
        self._bytes[start : start + len(contents)] = np.frombuffer(contents, np.uint8)
        self._allowed[start : start + len(contents)] = allowed
        return BASE + start

    def get(self, address: int, size: int) -> bytes:
        return self._bytes[address - BASE :][:size].tobytes()

    def _at(self, addresses: Lanes, size: int, wanted: int) -> Lanes:
        if (addresses % size).any():
            raise Fault(f"an access of {size} bytes is misaligned")
        places = (addresses - np.uint64(BASE)).astype(np.int64)
        if (places < 0).any() or (places + size > len(self._bytes)).any():
            raise Fault("an access is outside of all arrays")
        for byte in range(size):
            if not (self._allowed[places + byte] & wanted).all():
                raise Fault(f"{'a load' if wanted == READ else 'a store'} beyond its array")
        return places

    def load(self, addresses: Lanes, kind: np.dtype, count: int) -> list[Lanes]:
        """`count` neighbours at each address."""
        places = self._at(addresses, kind.itemsize * count, READ) // kind.itemsize
        whole = self._bytes.view(kind)
        return [whole[places + i] for i in range(count)]

    def store(self, addresses: Lanes, values: list[Lanes]) -> None:
        kind = values[0].dtype
        places = self._at(addresses, kind.itemsize * len(values), WRITE) // kind.itemsize
        whole = self._bytes.view(kind)
        for i, value in enumerate(values):
            whole[places + i] = value


@dataclass(frozen=True)
class Instruction:
    """``@guard operation to, operands``; `guard` is a register and whether it must be true."""

    operation: str
    operands: tuple[str, ...]
    guard: tuple[str, bool] | None = None


@dataclass
class Kernel:
    """An entry: its parameters' sizes, its instructions, and the places of its labels."""

    name: str
    parameters: dict[str, int] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    #: The registers that a block of assembly has of its own.
    declared: dict[str, np.dtype] = field(default_factory=dict)

    @functools.cached_property
    def targets(self) -> set[int]:
        """Where threads that have branched apart may meet."""
        jumps = (given for given in self.instructions if given.operation.startswith("bra"))
        return {self.labels[given.operands[0]] for given in jumps}


_ENTRY = re.compile(r"\.entry\s+(\w+)\((.*?)\)[^{]*\{(.*?)\n\}", re.S)
_PARAMETER = re.compile(r"\.param [^,]*?\.([bfsu]\d+) [^,]*?(\w+)(?:\[(\d+)\])?\s*(?:,|$)")
_STATEMENT = re.compile(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+")


def kernels(text: str) -> dict[str, Kernel]:
    """The entries of a PTX file, by name."""
    text = re.sub(r"//[^\n]*|^\s*\.loc[^\n]*", "", text, flags=re.M)
    text = re.sub(r"[ \t]+", " ", text)
    return {name: _kernel(name, head, body) for name, head, body in _ENTRY.findall(text)}


def _kernel(name: str, head: str, body: str) -> Kernel:
    made = Kernel(name)
    for kind, parameter, size in _PARAMETER.findall(head):
        made.parameters[parameter] = int(size) if size else TYPES[kind].itemsize
    # A label and a brace of a block of assembly end no statement of their own.
    body = re.sub(r"(\$?\w+):(?!:)", r"\1:;", body)
    for part in body.split(";"):
        statement = re.sub(r"^[{}\s]+", "", part).rstrip()
        own = re.fullmatch(r"\.reg \.(\w+) ([\w, ]+)", statement)
        if own:
            kind = np.dtype(f"u{TYPES[own[1]].itemsize}")
            made.declared |= dict.fromkeys(own[2].replace(" ", "").split(","), kind)
        if not statement or statement.startswith("."):
            continue
        if statement.endswith(":"):
            made.labels[statement[:-1]] = len(made.instructions)
            continue
        found = _STATEMENT.fullmatch(statement)
        if found is None:
            raise Unread(statement)
        negated, guard, operation, rest = found.groups()
        operands = tuple(part.strip() for part in _OPERAND.findall(rest) if part.strip())
        given = None if guard is None else (guard, not negated)
        made.instructions.append(Instruction(operation, operands, given))
    return made


class _Block:
    """One block of a launch under way."""

    def __init__(
        self, kernel: Kernel, arguments: list[bytes], block: int, threads: int, memory: Memory
    ) -> None:
        self.kernel, self.memory = kernel, memory
        self.parameters = dict(zip(kernel.parameters, arguments, strict=True))
        for name, size in kernel.parameters.items():
            if len(self.parameters[name]) != size:
                raise Fault(f"a parameter has {size} bytes, given {len(self.parameters[name])}")
        self.count = threads
        self.registers: dict[str, Lanes] = {
            "%tid.x": np.arange(threads, dtype=np.uint32),
            "%ctaid.x": np.full(threads, block, np.uint32),
        }
        self.shared = Memory()
        #: Where the block's shared memory begins, the most that a device gives without being asked.
        self.shared_at = np.uint64(self.shared.put(bytes(48 << 10), READ | WRITE))
        self.at = np.zeros(self.count, np.int64)
        self.now: Any = slice(None)

    # Operands.

    def read(self, operand: str, kind: np.dtype) -> Lanes:
        if operand in self.registers:
            found = self.registers[operand][self.now]
            if found.dtype.itemsize < kind.itemsize:
                raise Fault(f"{operand} is narrower than {kind}")
            return found if kind.kind == "b" else found.astype(f"u{kind.itemsize}").view(kind)
        given = "0" if operand in SHARED else operand
        return np.broadcast_to(constant(given, kind), self._lanes())

    def _lanes(self) -> int:
        return self.count if isinstance(self.now, slice) else len(self.now)

    def write(self, register: str, value: Lanes) -> None:
        if register in ("_", "%temp"):
            return
        if register not in self.registers:
            start = re.match(r"%\D+|", register)[0]  # type: ignore[index]
            kind = self.kernel.declared.get(register) or TYPES[_REGISTERS[start]]
            self.registers[register] = np.zeros(self.count, kind)
        kind = self.registers[register].dtype
        if value.dtype.itemsize < kind.itemsize:
            value = value.astype(f"{value.dtype.kind}{kind.itemsize}")
        self.registers[register][self.now] = value.view(kind)

    def _many(self, operand: str) -> list[str]:
        return [part.strip() for part in operand.strip("{}").split(",")]

    def _address(self, operand: str) -> tuple[str, int]:
        name, _, offset = operand.strip("[]").replace(" ", "").partition("+")
        return name, int(offset or 0)

    # Instructions.

    def step(self, given: Instruction) -> None:
        words = given.operation.split(".")
        try:
            getattr(self, f"_{words[0]}", self._computes)(words, *given.operands)
        except (KeyError, TypeError, ValueError) as error:
            raise Unread(f"{given.operation} {', '.join(given.operands)}") from error

    def _computes(self, words: list[str], to: str, *operands: str) -> None:
        if words[-1] in SIGNS:
            self.write(to, self._of_halves(words, operands))
            return
        kind = TYPES[words[-1]]
        function = ARITHMETIC[words[0]]
        if "rm" in words:
            function = rounded_down
        kinds = [kind] * len(operands)
        if words[0] in SHIFTED:
            kinds[SHIFTED[words[0]] :] = [TYPES["u32"]] * (len(operands) - SHIFTED[words[0]])
        if words[:2] == ["mad", "wide"]:
            kinds[2] = np.dtype(f"{kind.kind}{2 * kind.itemsize}")
        values = [self.read(part, given) for part, given in zip(operands, kinds, strict=True)]
        if "ftz" in words:
            values = [flushed(value) for value in values]
        if "wide" in words:
            kind = np.dtype(f"{kind.kind}{2 * kind.itemsize}")
            values[:2] = [value.astype(kind) for value in values[:2]]
        made = function(*values)
        self.write(to, flushed(made) if "ftz" in words else made)

    def _mov(self, words: list[str], to: str, source: str) -> None:
        kind = TYPES[words[-1]]
        if to.startswith("{"):
            parts = self._many(to)
            whole, width = self.read(source, kind), 8 * kind.itemsize // len(parts)
            for i, part in enumerate(parts):
                cut = whole >> kind.type(i * width)
                self.write(part, cut.astype(f"u{width // 8}"))
        elif source.startswith("{"):
            parts = self._many(source)
            width = kind.itemsize // len(parts)
            made = sum(
                self.read(part, np.dtype(f"u{width}")).astype(kind) << kind.type(8 * width * i)
                for i, part in enumerate(parts)
            )
            self.write(to, made)
        else:
            self.write(to, self.read(source, kind))

    def _of_halves(self, words: list[str], operands: tuple[str, ...]) -> Lanes:
        bits, signs = SIGNS[words[-1]]
        if words[0] in ("abs", "neg"):
            value = self.read(operands[0], TYPES[bits])
            return value & ~signs if words[0] == "abs" else value ^ signs
        given = zip(*(self._numbers(part, words[-1]) for part in operands), strict=True)
        made = [ARITHMETIC[words[0]](*parts) for parts in given]
        return to_bfloat16(made[0]) if len(made) == 1 else paired(words, made[1], made[0])

    def _numbers(self, operand: str, name: str) -> list[Lanes]:
        """A register's number, or the two of a pair of halves."""
        if not name.endswith(("x2", "bf16")):
            return [self.read(operand, TYPES[name])]
        if name == "bf16":
            return [from_bfloat16(self.read(operand, TYPES["b16"]))]
        word = self.read(operand, TYPES["b32"])
        halves = [part.astype(np.uint16) for part in (word & 0xFFFF, word >> 16)]
        return [from_bfloat16(h) if name == "bf16x2" else h.view(np.float16) for h in halves]

    def _setp(self, words: list[str], to: str, x: str, y: str) -> None:
        pairs = zip(self._numbers(x, words[-1]), self._numbers(y, words[-1]), strict=True)
        for register, (one, other) in zip(to.split("|"), pairs, strict=True):
            self.write(register, compared(words[1], one, other))

    def _selp(self, words: list[str], to: str, x: str, y: str, which: str) -> None:
        kind = TYPES[words[-1]]
        chosen = np.where(self.read(which, TYPES["pred"]), self.read(x, kind), self.read(y, kind))
        self.write(to, chosen)

    def _cvt(self, words: list[str], to: str, *sources: str) -> None:
        values = [self._numbers(source, words[-1])[0] for source in sources]
        self.write(to, paired(words, *values) if len(values) == 2 else converted(words, *values))

    def _cvta(self, words: list[str], to: str, source: str) -> None:
        self.write(to, self.read(source, TYPES[words[-1]]))

    def _shfl(self, words: list[str], to: str, source: str, distance: str, *rest: str) -> None:
        value, apart = self.read(source, TYPES["b32"]), self.read(distance, TYPES["u32"])
        self.write(to.partition("|")[0], value[np.arange(self.count) ^ apart])

    def _ld(self, words: list[str], to: str, place: str) -> None:
        kind, parts = TYPES[words[-1]], self._many(to)
        name, offset = self._address(place)
        if words[1] == "param":
            held = np.frombuffer(self.parameters[name], np.uint8)[offset:]
            found = held[: kind.itemsize * len(parts)].view(kind)
            for part, value in zip(parts, found, strict=True):
                self.write(part, np.full(self._lanes(), value))
            return
        memory, addresses = self._places(words[1], name, offset)
        for part, value in zip(parts, memory.load(addresses, kind, len(parts)), strict=True):
            self.write(part, value)

    def _st(self, words: list[str], place: str, source: str) -> None:
        kind, (name, offset) = TYPES[words[-1]], self._address(place)
        values = [self.read(part, kind) for part in self._many(source)]
        memory, addresses = self._places(words[1], name, offset)
        memory.store(addresses, values)

    def _places(self, space: str, name: str, offset: int) -> tuple[Memory, Lanes]:
        if space != "shared":
            return self.memory, self.read(name, TYPES["u64"]) + np.uint64(offset)
        return self.shared, self.read(name, TYPES["u32"]) + np.uint64(offset) + self.shared_at

    def _bar(self, words: list[str], which: str) -> None:
        """All threads are here: `whole` sees to it."""

    # Control.

    def whole(self) -> None:
        """Every thread, to its end."""
        end = len(self.kernel.instructions)
        stops = self.kernel.targets
        waiting = np.zeros(self.count, bool)
        while (self.at < end).any():
            if waiting.all() or (waiting | (self.at == end)).all():
                raise Fault("a shuffle or barrier that some threads never come to")
            place = int(self.at[~waiting].min())
            here = self.at == place
            self.now = slice(None) if here.all() else np.flatnonzero(here)
            while True:
                given = self.kernel.instructions[place]
                if given.operation.startswith(("shfl", "bar.")):
                    waiting[self.now] = not isinstance(self.now, slice)
                    if waiting.any():
                        self.at[self.now] = place
                        break
                place += 1
                if given.operation == "ret" or given.operation.startswith("bra"):
                    self._go(given, place, end)
                    break
                self.step(given) if given.guard is None else self._guarded(given)
                if place in stops:
                    self.at[self.now] = place
                    break

    def _guarded(self, given: Instruction) -> None:
        together = self.now
        passing = np.arange(self.count)[together][self._passes(given)]
        if len(passing):
            self.now = passing
            self.step(given)
            self.now = together

    def _passes(self, given: Instruction) -> Lanes:
        assert given.guard is not None
        register, wanted = given.guard
        return self.read(register, TYPES["pred"]) == wanted

    def _go(self, given: Instruction, after: int, end: int) -> None:
        to = end if given.operation == "ret" else self.kernel.labels[given.operands[0]]
        self.at[self.now] = to if given.guard is None else np.where(self._passes(given), to, after)


def run(kernel: Kernel, arguments: list[bytes], blocks: int, threads: int, memory: Memory) -> None:
    """Launch `kernel` on `memory`, a block after the other."""
    with np.errstate(all="ignore"):
        for block in range(blocks):
            _Block(kernel, arguments, block, threads, memory).whole()
