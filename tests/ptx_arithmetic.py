"""What the instructions of PTX compute, on arrays of a number for each thread. Imports NumPy alone.

Approximate instructions give the nearest number; those that flush subnormal numbers flush them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

Lanes = np.ndarray
#: The types of PTX as NumPy has them; bits are unsigned.
TYPES = {
    **{f"b{8 * n}": np.dtype(f"u{n}") for n in (1, 2, 4, 8)},
    **{f"u{8 * n}": np.dtype(f"u{n}") for n in (1, 2, 4, 8)},
    **{f"s{8 * n}": np.dtype(f"i{n}") for n in (1, 2, 4, 8)},
    **{f"f{8 * n}": np.dtype(f"f{n}") for n in (2, 4, 8)},
    "pred": np.dtype(bool),
}
#: Of halves that NumPy lacks: the type of their register, and the bits that are signs.
SIGNS = {
    "bf16": ("b16", np.uint16(0x8000)),
    "bf16x2": ("b32", np.uint32(0x80008000)),
    "f16x2": ("b32", np.uint32(0x80008000)),
}
#: From which operand on an instruction takes places and counts.
SHIFTED = {"shr": 1, "shl": 1, "bfi": 2, "bfe": 1}


def flushed(x: Lanes) -> Lanes:
    tiny = np.finfo(x.dtype).tiny
    return np.where(np.abs(x) < tiny, np.copysign(x.dtype.type(0), x), x)


def _by_double(function: Callable[..., Lanes]) -> Callable[..., Lanes]:
    """Of float32 in float64, rounded once; of float64 in the widest type that there is."""

    def rounded(*given: Lanes) -> Lanes:
        kind = given[0].dtype
        wide = np.float64 if kind == np.float32 else np.longdouble
        return function(*(part.astype(wide) for part in given)).astype(kind)

    return rounded


def rounded_down(x: Lanes, y: Lanes, z: Lanes) -> Lanes:
    exact = x.astype(np.float64) * y + z
    near = exact.astype(np.float32)
    return np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)


def bits_of(x: Lanes) -> Lanes:
    return x.view(f"u{x.dtype.itemsize}")


def _least(x: Lanes, y: Lanes) -> Lanes:
    return np.minimum(x, y) if x.dtype.kind in "iu" else np.fmin(x, y)


def _most(x: Lanes, y: Lanes) -> Lanes:
    return np.maximum(x, y) if x.dtype.kind in "iu" else np.fmax(x, y)


def _shifted_right(x: Lanes, places: Lanes) -> Lanes:
    width = 8 * x.dtype.itemsize
    return x >> np.minimum(places, width - 1).astype(x.dtype)


def _shifted_left(x: Lanes, places: Lanes) -> Lanes:
    width = 8 * x.dtype.itemsize
    return np.where(places < width, x << np.minimum(places, width - 1).astype(x.dtype), 0).astype(
        x.dtype
    )


def _inserted(part: Lanes, into: Lanes, first: Lanes, count: Lanes) -> Lanes:
    window = ((np.uint64(1) << count.astype(np.uint64)) - np.uint64(1)) << first.astype(np.uint64)
    moved = part.astype(np.uint64) << first.astype(np.uint64)
    return ((into & ~window) | (moved & window)).astype(into.dtype)


def _extracted(x: Lanes, first: Lanes, count: Lanes) -> Lanes:
    """A field of bits as a number with or without a sign."""
    above = (8 * x.dtype.itemsize - first - count).astype(x.dtype)
    return (x << above) >> (above + first.astype(x.dtype))


def _permuted(low: Lanes, high: Lanes, chosen: Lanes) -> Lanes:
    """A word of any bytes of two; a choice with its highest bit set gives the byte's sign alone."""
    both, made = high.astype(np.uint64) << 32 | low, np.zeros_like(low)
    for i in range(4):
        choice = chosen >> 4 * i & 15
        byte = (both >> (8 * (choice & 7)).astype(np.uint64) & 0xFF).astype(np.uint32)
        made |= np.where(choice & 8, (byte >> 7) * 0xFF, byte) << 8 * i
    return made


#: By the operation's first word: what it makes of operands of its last type.
ARITHMETIC: dict[str, Callable[..., Lanes]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "fma": _by_double(lambda x, y, z: x * y + z),
    "neg": np.negative,
    "abs": np.abs,
    "min": _least,
    "max": _most,
    "not": np.invert,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "shr": _shifted_right,
    "shl": _shifted_left,
    "bfi": _inserted,
    "bfe": _extracted,
    "prmt": _permuted,
    "mad": lambda x, y, z: x * y + z,
    "copysign": lambda sign, x: np.copysign(x, sign),
    "rcp": _by_double(lambda x: 1 / x),
    "ex2": _by_double(np.exp2),
    "lg2": _by_double(np.log2),
    "tanh": _by_double(np.tanh),
}
COMPARISONS = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "eq": np.equal, "ne": np.not_equal,
}  # fmt: skip


def compared(how: str, x: Lanes, y: Lanes) -> Lanes:
    if how in COMPARISONS:
        found = COMPARISONS[how](x, y)
        # Of numbers alone: NumPy says that a NaN differs.
        return found & (x == x) & (y == y) if how == "ne" else found
    return COMPARISONS[how[:2]](x, y) | (x != x) | (y != y)


def from_bfloat16(bits: Lanes) -> Lanes:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(x: Lanes) -> Lanes:
    bits = bits_of(x).astype(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def converted(words: list[str], x: Lanes) -> Lanes:
    """`x` as the type before the last of `words`, rounded as they say."""
    if words[-2] == "bf16":
        return to_bfloat16(x)
    into = TYPES[words[-2]]
    if "sat" in words:
        return np.where(np.isnan(x), 0, np.clip(x, 0, 1)).astype(into)
    for word, function in (("rni", np.rint), ("rmi", np.floor), ("rzi", np.trunc)):
        if word in words:
            x = function(flushed(x) if "ftz" in words else x)
    if into.kind == "i" and x.dtype.kind == "f":
        ends = np.iinfo(into)
        return np.where(np.isnan(x), 0, np.clip(x, ends.min, ends.max)).astype(into)
    return x.astype(into)


def paired(words: list[str], high: Lanes, low: Lanes) -> Lanes:
    """Two numbers rounded into one word, the first in its upper half."""
    if "bf16x2" in words:
        halves = [to_bfloat16(part).astype(np.uint32) for part in (high, low)]
    else:
        halves = [bits_of(part.astype(np.float16)).astype(np.uint32) for part in (high, low)]
    return halves[0] << 16 | halves[1]


def constant(text: str, kind: np.dtype) -> Any:
    found = re.fullmatch(r"0([fd])([0-9A-Fa-f]+)", text)
    if found:
        bits = np.array([int(found[2], 16)], "u4" if found[1] == "f" else "u8")
        return bits.view(kind)
    number = int(text.rstrip("U"), 0)
    if kind.kind == "b":
        return bool(number)
    width = 8 * kind.itemsize
    return np.array([number % (1 << width)], f"u{kind.itemsize}").view(kind)
