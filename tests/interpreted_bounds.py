"""Triton's kernels under its interpreter, on tensors between pages that nobody may touch.

An access before the first element or past the last ends the process. test_triton.py runs this file
with TRITON_INTERPRET=1, which must be set before triton is imported.
"""

import ctypes
import mmap

import numpy
import pytest
import torch
from grids import DTYPES, FULL, INTERPRETED, cut, one_thread, same_bits  # noqa: F401

from pyrevgrad import backends, reverse, rules

if not INTERPRETED:
    pytest.skip("runs with TRITON_INTERPRET=1", allow_module_level=True)

from pyrevgrad.kernels import sweep
from pyrevgrad.kernels.backend import TRITON, backward_arguments, forward_arguments

PAGE = mmap.PAGESIZE
NO_ACCESS = 0
#: One for each thing that a forward may keep.
PAIRS = {
    "nothing": ("identity", reverse(0.3)),
    "mask": ("relu", rules.GUIDED),
    "output": ("tanh", rules.EXACT),
    "input": ("silu", rules.rectgrad(0.1)),
}
COUNTS = (1, 7, 8, 9, 1017, 1023, 1024, 1025, 1032, 2048, 2049)


def between_guards(tensor, at_end):
    """A copy of `tensor` at the start or the end of its pages, with a guard before and after."""
    size = tensor.numel() * tensor.element_size()
    inner = -(-size // PAGE) * PAGE
    pages = mmap.mmap(-1, inner + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    for guard in (start, start + PAGE + inner):
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        assert protect(ctypes.c_void_p(guard), ctypes.c_size_t(PAGE), NO_ACCESS) == 0
    offset = PAGE + (inner - size if at_end else 0)
    made = torch.frombuffer(pages, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return made.copy_(tensor.reshape(-1))


def launched(kernel, count, tensors, arguments):
    blocks = (-(-count // sweep.BLOCK),)
    with numpy.errstate(all="ignore"):
        kernel[blocks](*tensors, count, **arguments)


@pytest.mark.parametrize("at_end", (True, False), ids=("end", "start"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keeps", PAIRS)
def test_no_kernel_touches_what_lies_beside_its_tensors(keeps, dtype, at_end):
    name, rule = PAIRS[keeps]
    pairs = backends.Pairs(name, rule, {})
    pair = pairs.full if dtype in FULL else pairs.half
    assert pair.keeps == keeps
    scale = between_guards(torch.tensor([0.7], dtype=dtype), at_end)
    for count in COUNTS:
        x, g = (between_guards(part, at_end) for part in cut(dtype, (count,)))
        y, gx = (between_guards(torch.zeros_like(x), at_end) for _ in range(2))
        mask = None
        if keeps == "mask":
            mask = between_guards(torch.zeros(-(-count // 8), dtype=torch.uint8), at_end)
        forward = forward_arguments(pair, mask is not None, dtype.itemsize)
        launched(sweep.forward, count, (x, y, mask), forward)
        kept = {"nothing": None, "mask": mask, "output": y, "input": x}[keeps]
        backward = backward_arguments(pair, dtype.itemsize)
        launched(sweep.backward, count, (g, kept, gx, scale), backward)
        assert same_bits(y, TRITON.value(x.clone(), pair))
        if mask is not None:
            assert torch.equal(mask, TRITON.value_and_mask(x.clone(), pair)[1])
        assert same_bits(gx, TRITON.backward(g, kept, pair, scale))
