"""Value grids and tolerances that the kernel tests share, and comparisons with the oracle.

Imports oracle and the public function.
"""

import functools
import os

import numpy as np
import pytest
import torch
from oracle import INF, NAN, SELECTS, expected_value, quiet

import pyrevgrad
from pyrevgrad import backends

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FULL = (torch.float32, torch.float64)
needs_native = pytest.mark.skipif(backends._native is None, reason="no compiled library")
#: Names of PYREVGRAD_CPU_CAPABILITY with vectors of their own, and all of them.
VECTORISED = ("avx2", "avx512", "avx512_bf16")
CAPABILITIES = ("portable", *VECTORISED)
#: Set by `make triton-matrix`, and by test_triton.py for a part of it.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = (
    pytest.param("native", marks=needs_native), "reference", *(["triton"] if INTERPRETED else []),
)  # fmt: skip
SHAPES = (
    (), (0,), (1,), (7,), (1023,), (4096,), (3, 7, 256), (8, 16, 33, 17), (65536 + 77,),
)  # fmt: skip
#: torch.testing's defaults: (rtol, atol).
TOLERANCES = {
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
}


def array(tensor):
    """A tensor as a flat float64 array in logical order."""
    return tensor.detach().double().reshape(-1).numpy()


def _near(actual, wanted, dtype):
    rtol, atol = TOLERANCES[dtype]
    wanted = torch.from_numpy(np.array(wanted)).to(dtype).double().numpy()
    distance = np.abs(actual - wanted)
    return (
        (actual == wanted)
        | (np.isfinite(wanted) & (distance <= atol + rtol * np.abs(wanted)))
        | (np.isnan(actual) & np.isnan(wanted))
    )


def _report(bad, what, **columns):
    where = np.flatnonzero(bad)
    if where.size:
        rows = [
            f"  {key} = {np.array(column)[where[:6]].tolist()}" for key, column in columns.items()
        ]
        raise AssertionError("\n".join([f"{where.size} of {bad.size} {what}", *rows]))


@quiet
def assert_value(y, x, name, params=None):
    """y against the oracle at the tolerance of its dtype."""
    actual, source = array(y), array(x)
    wanted = expected_value(name, source, params, y.dtype)
    bad = ~_near(actual, wanted, y.dtype)
    _report(bad, f"values of {name} {y.dtype} are off", x=source, y=actual, wanted=wanted)


@quiet
def assert_gradient(gx, wanted, what, **columns):
    """gx against an `Expected`; a blocked element must be +0.0 to the sign."""
    actual, dtype = array(gx), gx.dtype
    positive_zero = (actual == 0) & ~np.signbit(actual)
    good = np.where(wanted.blocked, positive_zero, _near(actual, wanted.gradient, dtype))
    good |= wanted.either & (positive_zero | _near(actual, wanted.product, dtype))
    good |= wanted.loose & ((actual == 0) | ~np.isfinite(actual))
    _report(~good, what, gx=actual, wanted=wanted.gradient, **columns)


def same_bits(a, b):
    """Whether two tensors are equal bit for bit, any NaN equal to any other."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    whole = WHOLE[a.element_size()]
    a, b = a.detach().reshape(-1).contiguous(), b.detach().reshape(-1).contiguous()
    if torch.equal(a.view(whole), b.view(whole)):
        return True
    return bool(((a.view(whole) == b.view(whole)) | (a.isnan() & b.isnan())).all())


KINKS = (0.0, 0.3, 0.5, 0.7, 1.0, 1.5, 2.5, 3.0, 6.0, 20.0)
BEYOND = (1e-3, 0.7517, 4.0, 5.0, 8.0, 9.5, 12.0, 15.0, 20.5, 30.0, 50.0, 88.5, 90.0, 104.0, 1e4)
LENGTH = 2503
WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def neighbours(points):
    """Positive numbers with the numbers of their dtype just below and just above."""
    whole = points.view(WHOLE[points.element_size()])
    return torch.cat([points, (whole + 1).view(points.dtype), (whole - 1).view(points.dtype)])


@functools.cache
def grid(dtype, huge=False):
    """(x, g) of `dtype` and prime length: every kink and its neighbours, every special value, both
    ways round, then random numbers. `huge` adds the ends of the range, where sums overflow.
    """
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    around = neighbours(torch.tensor([*KINKS[1:], *BEYOND], dtype=dtype))
    small = [0.0, least, 3 * least, info.smallest_normal, *([info.max] if huge else [])]
    small = torch.tensor(small, dtype=dtype)
    assert (small[1:] > 0).all()
    x = torch.cat([around, -around, small, -small, torch.tensor([INF, -INF, NAN], dtype=dtype)])
    specials = [1.0, -1.0, 0.0, -0.0, INF, -INF, NAN, 0.6, -2.5, 3.5, least, -least]
    g = torch.tensor([*specials, *([info.max, -info.max] if huge else [])], dtype=dtype)
    pairs = torch.cartesian_prod(x, g)
    random = torch.Generator().manual_seed(7)
    length = 3001 if huge else LENGTH
    noise = torch.randn(length - len(pairs), 2, generator=random, dtype=torch.float64)
    pairs = torch.cat([pairs, (noise * torch.tensor([3.0, 1.0])).to(dtype)])
    pairs = pairs[torch.randperm(length, generator=random)]
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small tensors by the thousand: a second thread only spins. Autouse where it is imported."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def places(shape, offset):
    """Where in the grid each element of `shape` comes from: the grid repeated from `offset` on."""
    return ((torch.arange(torch.Size(shape).numel()) + offset) % LENGTH).reshape(shape)


@functools.cache
def cut(dtype, shape, offset=0):
    """x and g of `shape`, the grid repeated from `offset` on."""
    x, g = grid(dtype)
    return x[places(shape, offset)], g[places(shape, offset)]


def reproducible(name, spec):
    """Whether gx of a pair only selects and scales, and so is bit-equal everywhere."""
    return name in SELECTS or (spec.identity and spec.gradient != "y")


def run(x, g, name, rule, params=None, *, inplace=False):
    """(y, gx) of a pair through the public function, without touching a leaf's grad."""
    leaf = x.detach().requires_grad_()
    source = leaf.clone(memory_format=torch.preserve_format) if inplace else leaf
    y = pyrevgrad.activation(source, name, rule, inplace=inplace, **(params or {}))
    (gx,) = torch.autograd.grad(y, leaf, g)
    return y.detach(), gx
