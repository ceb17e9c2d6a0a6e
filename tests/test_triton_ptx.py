"""The PTX of Triton's kernels, run without a device, against the float64 formulas.

As test_cuda_ptx.py, by the interpreter of ptx.py. Each activation under a rule in each dtype, the
rules in turn; every pair with PYREVGRAD_EVERY_KERNEL=1 (`make triton-matrix`). It may import the
package, grids.py and oracle.py.
"""

from __future__ import annotations

import os
import struct

import ptx
import pytest
import torch
from grids import DTYPES, array, assert_gradient, assert_value, same_bits
from oracle import FORMULAS, SELECTS, expected_gradient, rule_and_spec
from test_cuda_ptx import Call, Placement, data, forward_of, pair_of, stored
from test_kernels import RULE_NAMES

from pyrevgrad import backends
from pyrevgrad.rules import EXACT

triton = pytest.importorskip("triton")
from pyrevgrad.kernels import backend, inspection, sweep  # noqa: E402

pytestmark = [
    pytest.mark.skipif(backend.INTERPRETED, reason="under TRITON_INTERPRET nothing is compiled"),
    pytest.mark.skipif(backends.native() is None, reason="no native library to compare with"),
]
EVERY = bool(os.environ.get("PYREVGRAD_EVERY_KERNEL"))
#: A whole block and a rest that ends within a share.
SIZE = sweep.BLOCK + 109
ALIGNED, ASIDE = Placement(0, (0, 0, 0)), Placement(0, (1, 1, 1))


def launched(kernel, compiled, tensors, given, size):
    """(The kernel, its parameters' bytes, the blocks): what Triton's launcher would hand over."""
    values = {**tensors, "count": size, **given}
    held = []
    for parameter in kernel.params:
        value = values[parameter.name]
        if not (parameter.is_constexpr or value is None):
            held.append(struct.pack("<d" if isinstance(value, float) else "<q", value))
    (found,) = ptx.kernels(compiled.ptx).values()
    # Scratch memory, of which none of ours asks.
    held += [bytes(8)] * (len(found.parameters) - len(held))
    assert len(found.parameters) == len(held)
    return found, held, -(-size // sweep.BLOCK)


def run(call, dtype, aligned=True, scale=None):
    """(The result, the mask's bytes) of a call."""
    pair, (first, kept, output, mask, live) = call.pair, call.addresses
    masked = pair.keeps == "mask"
    if call.forward:
        compiled = inspection.compiled_forward(pair, dtype, aligned=aligned)
        given = backend.forward_arguments(pair, masked, dtype.itemsize)
        tensors = {"x": first, "y": output, "mask": mask or None}
        made = launched(sweep.forward, compiled, tensors, given, len(call.given))
    else:
        compiled = inspection.compiled_backward(pair, dtype, scale)
        given = backend.backward_arguments(pair, dtype.itemsize)
        tensors = {"g": first, "kept": kept or mask or None, "gx": output, "live": live or None}
        made = launched(sweep.backward, compiled, tensors, given, len(call.given))
    known = triton.__version__ == "3.7.1"
    return call.run(*made, threads=32 * sweep.WARPS, known=known)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMULAS)
def test_kernels_give_the_oracle_s_numbers(name, dtype):
    turn = [*FORMULAS].index(name) + 5 * DTYPES.index(dtype)
    for rule_name in RULE_NAMES if EVERY else (RULE_NAMES[turn % len(RULE_NAMES)],):
        rule, spec = rule_and_spec(rule_name)
        pair = pair_of(name, rule, dtype)
        x, g = data(dtype, name in SELECTS, SIZE)
        y, kept = forward_of(x, pair)
        found, mask = run(Call(pair, True, x, None, ALIGNED), dtype)
        assert_value(found, x, name)
        assert name not in SELECTS or same_bits(found, y)
        assert pair.keeps != "mask" or mask == kept.numpy().tobytes()
        if pair.flat:
            continue  # zeros, with no kernel
        found, _ = run(Call(pair, False, g, kept, ALIGNED), dtype)
        columns = {"x": array(x), "g": array(g), "y": array(y)}
        wanted = expected_gradient(name, spec, dtype, *columns.values())
        assert_gradient(found, wanted, f"of {name} under {rule} in {dtype} are off", **columns)
        expected = backends.native().backward(g, kept, pair, None)
        assert name not in SELECTS or same_bits(found, expected)


@pytest.mark.parametrize("rest", (0, 1, 7, 8, 9, 104))
def test_a_mask_ends_where_its_last_byte_does(rest):
    """What is loaded or stored beyond an array faults."""
    for dtype in DTYPES:
        pair = pair_of("relu", EXACT, dtype)
        x, g = data(dtype, True, sweep.BLOCK + rest)
        y, kept = forward_of(x, pair)
        found, mask = run(Call(pair, True, x, None, ALIGNED), dtype)
        assert same_bits(found, y) and mask == kept.numpy().tobytes()
        found, _ = run(Call(pair, False, g, kept, ALIGNED), dtype)
        assert same_bits(found, backends.native().backward(g, kept, pair, None))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_start_may_be_off(dtype):
    """Where Triton moves single numbers and hands them on through shared memory."""
    pair = pair_of("relu", EXACT.scaled(-0.5), dtype)
    x, _ = data(dtype, True, SIZE)
    y, kept = forward_of(x, pair)
    found, mask = run(Call(pair, True, x, None, ASIDE), dtype, aligned=False)
    assert same_bits(found, y) and mask == kept.numpy().tobytes()


@pytest.mark.parametrize("scale_dtype", DTYPES, ids=str)
def test_scale_is_read_from_the_device(scale_dtype):
    """−0.375, a number of every dtype, times the number that the rule has of its own."""
    for dtype in DTYPES:
        x, g = data(dtype, True, SIZE)
        pair, scaled = (pair_of("relu", EXACT.scaled(by), dtype) for by in (4.0, -1.5))
        _, kept = forward_of(x, pair)
        call = Call(pair, False, g, kept, ALIGNED)
        scale = torch.tensor([-0.375], dtype=scale_dtype)
        call.addresses[4] = call.memory.put(stored(scale), ptx.READ)
        found, _ = run(call, dtype, scale=scale_dtype)
        assert same_bits(found, backends.native().backward(g, kept, scaled, None))
