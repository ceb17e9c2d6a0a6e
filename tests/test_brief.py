"""Half types' formulas as a GPU's approximate instructions give them, on all 65536 numbers; and
float32's logarithm.

Compiles tests/brief_on_host.cpp with csrc/cuda/brief.h, the instructions modelled with the errors
of PTX's documentation. It may import grids.py and oracle.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import (
    FORMULAS,
    SELECTS,
    numbers_of,
)

#: Explicit mantissa bits, the exponent of the least normal number, the largest number.
FORMATS = {torch.bfloat16: (7, -126, 3.38e38), torch.float16: (10, -14, 65504.0)}
SMOOTH = [name for name in FORMULAS if name not in SELECTS]
#: With a parameter that is no power of two: a half type's kernels multiply where others divide.
GIVEN = {
    "elu": {"alpha": 0.3}, "celu": {"alpha": 0.3}, "softplus": {"beta": 0.3, "threshold": 20.0},
}  # fmt: skip
CASES = [*((name, False) for name in SMOOTH), *((name, True) for name in GIVEN)]
#: Half types' results: dtype, way of erring, case, value or slope, number.
SHAPE = (2, 3, len(CASES), 2, 65536)
each_case = pytest.mark.parametrize(("name", "given"), CASES)
#: What float32 loses to cancellation or underflow in these formulas, whatever computes them.
ABSOLUTE = 2e-6
#: Units in the last place before the store, whose rounding adds a half.
ULPS = {(torch.bfloat16, "tanh"): 0.13}
LIMITS = {torch.bfloat16: 0.01, torch.float16: 0.07}
#: Those that the limits were found for.
MEASURED = (
    *("relu_squared", "elu", "selu", "celu", "softplus", "softsign", "sigmoid", "logsigmoid"),
    *("tanh", "tanhshrink", "gelu", "gelu_tanh", "silu", "mish", "hardswish"),
)


def test_the_limits_are_those_of_activations_that_exist():
    assert set(MEASURED) <= set(SMOOTH)


@pytest.fixture(scope="module")
def written(repository, tmp_path_factory) -> np.ndarray:
    """All that tests/brief_on_host.cpp writes."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("brief")
    include = Path(torch.__file__).parent / "include"
    source = repository / "tests" / "brief_on_host.cpp"
    command = (compiler, "-std=c++17", "-O1", "-ffp-contract=off", "-isystem", include, source)
    subprocess.run([*command, "-o", folder / "program"], check=True)
    subprocess.run([folder / "program", folder / "results"], check=True)
    return np.fromfile(folder / "results", np.float32)


@pytest.fixture(scope="module")
def results(written) -> dict:
    """{(dtype, activation, whether with GIVEN, value or slope): (three ways of erring, 65536)}."""
    made = written[: np.prod(SHAPE)].reshape(SHAPE)
    return {
        (dtype, *case, what): made[i, :, j, k]
        for i, dtype in enumerate(FORMATS)
        for j, case in enumerate(CASES)
        for k, what in enumerate(("value", "slope"))
    }


def patterns(dtype) -> np.ndarray:
    """Every number of a half type, in the order of its bits."""
    return torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).double().numpy()


@pytest.mark.parametrize("what", ("value", "slope"))
@each_case
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_every_number_is_right_to_a_part_of_a_unit_in_the_last_place(
    results, dtype, name, given, what
):
    if name not in MEASURED:
        pytest.skip(f"no limit has been found for {name} yet: see MEASURED")
    bits, least, largest = FORMATS[dtype]
    x = patterns(dtype)
    # Beyond it x² and 6·x overflow float32, on the CPU too.
    x[np.abs(x) > 1e18 if name in ("gelu_tanh", "hardswish") else np.zeros(65536, bool)] = np.nan
    with np.errstate(all="ignore"):
        numbers = numbers_of(name, GIVEN[name] if given else {}, torch.float32)
        wanted = getattr(FORMULAS[name], what)(x, *numbers)
        exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(wanted), 1e-300))), least)
        tried = np.isfinite(x) & np.isfinite(wanted) & (np.abs(wanted) < largest)
    assert tried.sum() > 30000
    unit = 2.0 ** (exponent[tried] - bits)
    allowed = ULPS.get((dtype, name), LIMITS[dtype]) * unit + ABSOLUTE
    for found in results[dtype, name, given, what].astype(np.float64):
        off = np.abs(found[tried] - wanted[tried])
        worst = np.argmax(off / allowed)
        assert (off <= allowed).all(), (x[tried][worst], found[tried][worst], wanted[tried][worst])


@each_case
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_nan_infinities_and_zeros_are_as_in_float32(results, dtype, name, given):
    x = patterns(dtype)
    special = ~np.isfinite(x) | (x == 0)
    with np.errstate(all="ignore"):
        numbers = numbers_of(name, GIVEN[name] if given else {}, torch.float32)
        wanted = FORMULAS[name].value(x[special], *numbers)
    exact = np.isnan(wanted) | np.isinf(wanted) | (wanted == 0)
    for found in results[dtype, name, given, "value"].astype(np.float64):
        got = found[special]
        np.testing.assert_array_equal(got[exact], wanted[exact])
        zero = exact & (wanted == 0) & (x[special] == 0)
        assert (np.signbit(got[zero]) == np.signbit(wanted[zero])).all()


def test_the_logarithm_of_float32_is_within_six_units_in_the_last_place(written):
    """Subnormal u too. The quotient in it errs by 2, as CUDA's documentation allows."""
    u = np.arange(0, 0x3F800001, 1024, dtype=np.uint32).view(np.float32)
    found = written[np.prod(SHAPE) :].reshape(3, u.size).astype(np.float64)
    wanted = np.log1p(u.astype(np.float64))
    unit = np.spacing(wanted.astype(np.float32)).astype(np.float64)
    assert (np.abs(found - wanted) <= 6 * unit).all()
