"""The two kernels, forward and backward, over flat blocks in memory order.

Bytes per element, at least: forward 2·size (+ 1/8 with a mask); backward 2·size with nothing kept,
2·size + 1/8 with a mask, 3·size with the output or the input. Imports mathematics alone.

Everything that decides what is computed is a constexpr; every number is a float64 argument, which
Triton does not specialise on, and a tensor scale is read through its pointer: neither compiles
again when it changes. A program takes the body where all of its block lies inside, with accesses of
16 bytes, and the tail elsewhere, whose bounds let Triton load no more than an element at a time.
Everything is loaded before anything is stored: a load behind a store, which might have written what
it reads, would wait for it, and half as many bytes would be under way.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mathematics import narrowed, number, widened

#: Elements of a program: with its 128 threads eight each, which is one byte of a mask.
BLOCK = 1024
WARPS = 4


@triton.jit
def applied(function: tl.constexpr, arity: tl.constexpr, x, a, b):
    """`function` of x and of as many parameters as it takes."""
    if arity == 0:
        return function(x)
    elif arity == 1:
        return function(x, number(a, x))
    else:
        return function(x, number(a, x), number(b, x))


@triton.jit
def places(part: tl.constexpr, parts: tl.constexpr, BLOCK: tl.constexpr):
    """Where the elements of one part of a block lie in it.

    A mask's byte and its eight elements stay in one thread, which takes them 16 bytes at a time,
    part after part. Whole in one access, a wider type would span threads, and its byte would go
    through shared memory.
    """
    i = tl.arange(0, BLOCK // parts)
    if parts == 1:
        return i
    else:
        return i // (8 // parts) * 8 + i % (8 // parts) + part * (8 // parts)


@triton.jit
def loaded(pointer, at, rest, whole: tl.constexpr):
    """The elements as they are stored."""
    if whole:
        return tl.load(pointer + at)
    else:
        return tl.load(pointer + at, mask=at < rest, other=0)


@triton.jit
def all_loaded(pointer, rest, PARTS: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """A tuple with the elements of each part."""
    found = ()
    for part in tl.static_range(PARTS):
        found = found + (loaded(pointer, places(part, PARTS, BLOCK), rest, WHOLE),)  # noqa: RUF005
    return found


@triton.jit
def stored(pointer, at, value, rest, whole: tl.constexpr):
    if whole:
        tl.store(pointer + at, narrowed(value, pointer.dtype.element_ty))
    else:
        tl.store(pointer + at, narrowed(value, pointer.dtype.element_ty), mask=at < rest)


@triton.jit
def asked(x, low, high, a, b, BIT: tl.constexpr, passes: tl.constexpr, arity: tl.constexpr):
    """What the input says of an element: the activation's own bit, or the rule's input gate."""
    if BIT == "own":
        return applied(passes, arity, x, a, b)
    elif BIT == "positive":
        return ~(x <= 0)
    else:
        return ~((x < number(low, x)) | (x > number(high, x)))


@triton.jit
def forward_block(
    x, y, mask, rest, a, b, low, high,
    value: tl.constexpr, passes: tl.constexpr, arity: tl.constexpr, BIT: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    elements = all_loaded(x, rest, PARTS, BLOCK, WHOLE)
    byte = tl.zeros((BLOCK // 8,), tl.int32)
    for part in tl.static_range(PARTS):
        at = places(part, PARTS, BLOCK)
        element = widened(elements[part])
        if BIT != "none":
            one = asked(element, low, high, a, b, BIT, passes, arity).to(tl.int32)
            if not WHOLE:
                one = tl.where(at < rest, one, 0)
            lanes = tl.reshape(one, (BLOCK // 8, 8 // PARTS)) << (
                part * (8 // PARTS) + tl.arange(0, 8 // PARTS)[None, :]
            )
            byte += tl.sum(lanes, axis=1)
        stored(y, at, applied(value, arity, element, a, b), rest, WHOLE)
    if BIT != "none":
        at_byte = tl.arange(0, BLOCK // 8)
        if WHOLE:
            tl.store(mask + at_byte, byte.to(tl.uint8))
        else:
            tl.store(mask + at_byte, byte.to(tl.uint8), mask=at_byte * 8 < rest)


@triton.jit(do_not_specialize=["count"])
def forward(
    x, y, mask, count: tl.int64,
    a: tl.float64, b: tl.float64, low: tl.float64, high: tl.float64,
    value: tl.constexpr, passes: tl.constexpr, arity: tl.constexpr, BIT: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = f(x), and the packed mask where `BIT` is not "none"."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    rest = count - start
    x += start
    y += start
    if BIT != "none":
        mask += start // 8
    if rest >= BLOCK:
        forward_block(
            x, y, mask, rest, a, b, low, high, value, passes, arity, BIT, PARTS, BLOCK, True
        )
    else:
        forward_block(
            x, y, mask, rest, a, b, low, high, value, passes, arity, BIT, PARTS, BLOCK, False
        )


@triton.jit
def both(passes, other):
    if passes is None:
        return other
    else:
        return passes & other


@triton.jit
def custom(
    g, slope, x, y, factor, c, d, sent: tl.constexpr, READS: tl.constexpr, numbers: tl.constexpr
):
    """What a custom rule sends, times the factor; 0 is +0, which is what blocks.
    `READS`: 1 where it reads the slope, plus 2 for x, plus 4 for y."""
    given = (g,)
    if READS & 1:
        given = given + (slope,)  # noqa: RUF005
    if READS & 2:
        given = given + (x,)  # noqa: RUF005
    if READS & 4:
        given = given + (y,)  # noqa: RUF005
    if numbers > 0:
        given = given + (number(c, g),)  # noqa: RUF005
    if numbers > 1:
        given = given + (number(d, g),)  # noqa: RUF005
    product = factor * sent(*given)
    # Not by a sum with 0, which would be one operation with the product and keep −0 of what is
    # too small.
    return tl.where(product == 0, 0.0, product)


@triton.jit
def gated(
    g, slope, x, y, passes, factor, threshold, clip, c, d, sent: tl.constexpr,
    READS: tl.constexpr, numbers: tl.constexpr, GATE: tl.constexpr, CLIPPED: tl.constexpr,
):  # fmt: skip
    """passes and gate(g) ? (factor · slope) · g : +0. y is read only where it is asked for."""
    if CLIPPED:
        bound = number(clip, g)
        g = tl.where(g > bound, bound, tl.where(g < bound * -1.0, bound * -1.0, g))
    if sent is None:
        product = (factor * slope) * g
    else:
        product = custom(g, slope, x, y, factor, c, d, sent, READS, numbers)
    if GATE == "gradient":
        passing = both(passes, ~(g <= 0))
    elif GATE == "product":
        passing = both(passes, ~(slope * g <= 0))
    elif GATE == "output":
        passing = both(passes, ~(y * g <= number(threshold, g)))
    else:
        passing = passes
    if passing is None:
        return product
    else:
        return tl.where(passing, product, 0.0)


@triton.jit
def backward_part(
    gradient, element, byte, factor, a, b, low, high, slope_high, slope_low, threshold, clip,
    c, d, value: tl.constexpr, slope: tl.constexpr, passes: tl.constexpr, flat: tl.constexpr,
    arity: tl.constexpr, KEEPS: tl.constexpr, BIT: tl.constexpr, GATE: tl.constexpr,
    CLIPPED: tl.constexpr, BLOCKS: tl.constexpr, sent: tl.constexpr, READS: tl.constexpr,
    numbers: tl.constexpr, stored_type: tl.constexpr, part: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """gx of one part; `BLOCKS`: a slope of exactly 0 (the low one of two) blocks like a gate."""
    found = number(slope_high, gradient)
    passing = None
    x = None
    y = None
    if KEEPS == "mask":
        lane = part * (8 // PARTS) + tl.arange(0, 8 // PARTS)[None, :]
        bits = tl.reshape((byte[:, None] >> lane) & 1, (BLOCK // PARTS,)) != 0
        found = tl.where(bits, found, number(slope_low, gradient))
        if BLOCKS:
            passing = bits
    elif KEEPS == "output" or KEEPS == "input":
        if slope is not None:
            found = applied(slope, arity, element, a, b)
        elif passes is not None:
            own = applied(passes, arity, element, a, b)
            found = tl.where(own, found, number(slope_low, gradient))
            if BLOCKS:
                passing = own
        if flat is not None:
            passing = both(passing, ~applied(flat, arity, element, a, b))
        if KEEPS == "output":
            y = element
        else:
            x = element
            if value is not None:
                # As a reader of memory would see it.
                y = widened(narrowed(applied(value, arity, element, a, b), stored_type))
            if BIT == "positive" or BIT == "interval":
                gate = asked(element, low, high, a, b, BIT, None, arity)
                passing = both(passing, gate)
    return gated(
        gradient, found, x, y, passing, factor, threshold, clip, c, d, sent, READS, numbers, GATE,
        CLIPPED,
    )  # fmt: skip


@triton.jit
def backward_block(
    g, kept, gx, rest, factor, a, b, low, high, slope_high, slope_low, threshold, clip,
    c, d, value: tl.constexpr, slope: tl.constexpr, passes: tl.constexpr, flat: tl.constexpr,
    arity: tl.constexpr, KEEPS: tl.constexpr, BIT: tl.constexpr, GATE: tl.constexpr,
    CLIPPED: tl.constexpr, BLOCKS: tl.constexpr, sent: tl.constexpr, READS: tl.constexpr,
    numbers: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    gradients = all_loaded(g, rest, PARTS, BLOCK, WHOLE)
    byte = None
    if KEEPS == "mask":
        at_byte = tl.arange(0, BLOCK // 8)
        byte = loaded(kept, at_byte, (rest + 7) // 8, WHOLE).to(tl.int32)
    elif KEEPS != "nothing":
        elements = all_loaded(kept, rest, PARTS, BLOCK, WHOLE)
    for part in tl.static_range(PARTS):
        element = None
        if KEEPS == "output" or KEEPS == "input":
            element = widened(elements[part])
        found = backward_part(
            widened(gradients[part]), element, byte, factor, a, b, low, high, slope_high,
            slope_low, threshold, clip, c, d, value, slope, passes, flat, arity, KEEPS, BIT, GATE,
            CLIPPED, BLOCKS, sent, READS, numbers, g.dtype.element_ty, part, PARTS, BLOCK,
        )  # fmt: skip
        stored(gx, places(part, PARTS, BLOCK), found, rest, WHOLE)


@triton.jit(do_not_specialize=["count"])
def backward(
    g, kept, gx, live, count: tl.int64,
    a: tl.float64, b: tl.float64, low: tl.float64, high: tl.float64, slope_high: tl.float64,
    slope_low: tl.float64, threshold: tl.float64, clip: tl.float64, scale: tl.float64,
    c: tl.float64, d: tl.float64,
    value: tl.constexpr, slope: tl.constexpr, passes: tl.constexpr, flat: tl.constexpr,
    arity: tl.constexpr, KEEPS: tl.constexpr, BIT: tl.constexpr, GATE: tl.constexpr,
    CLIPPED: tl.constexpr, BLOCKS: tl.constexpr, sent: tl.constexpr, READS: tl.constexpr,
    numbers: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """gx from g and what the forward kept; `live` points to a tensor scale, or is None."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    rest = count - start
    wide = tl.full((), scale, tl.float64)
    if live is not None:
        wide = wide * widened(tl.load(live)).to(tl.float64)
    factor = wide if g.dtype.element_ty == tl.float64 else wide.to(tl.float32)
    g += start
    gx += start
    if KEEPS == "mask":
        kept += start // 8
    elif KEEPS != "nothing":
        kept += start
    if rest >= BLOCK:
        backward_block(
            g, kept, gx, rest, factor, a, b, low, high, slope_high, slope_low, threshold, clip,
            c, d, value, slope, passes, flat, arity, KEEPS, BIT, GATE, CLIPPED, BLOCKS, sent, READS,
            numbers, PARTS, BLOCK, True,
        )  # fmt: skip
    else:
        backward_block(
            g, kept, gx, rest, factor, a, b, low, high, slope_high, slope_low, threshold, clip,
            c, d, value, slope, passes, flat, arity, KEEPS, BIT, GATE, CLIPPED, BLOCKS, sent, READS,
            numbers, PARTS, BLOCK, False,
        )  # fmt: skip
