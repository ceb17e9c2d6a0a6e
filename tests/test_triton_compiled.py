"""Triton's kernels compiled for sm_90, with no GPU: what their PTX and their binaries hold.

A choice of pairs; every pair with PYREVGRAD_EVERY_KERNEL=1 (`make triton-matrix`). It may import
the package.
"""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch
from expected import example
from grids import (
    DTYPES,
    INTERPRETED,
)
from oracle import (
    COMPOSED,
    rule_and_spec,
)

from pyrevgrad import backends, rules
from pyrevgrad.activations import ACTIVATIONS

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if INTERPRETED:
    pytest.skip("under TRITON_INTERPRET nothing is compiled", allow_module_level=True)

from pyrevgrad.kernels.inspection import compiled_backward, compiled_forward, expected_accesses
from triton.runtime import driver

RULE_NAMES = (*rules.RULES, *COMPOSED)
EVERY = os.environ.get("PYREVGRAD_EVERY_KERNEL") == "1"
HALF_TYPES = (torch.float16, torch.bfloat16)
#: One pair of each plan, in every dtype by default.
PLANS = (
    ("relu", "GUIDED"),
    ("sigmoid", "reverse"),
    ("silu", "guided_slope"),
    ("mish", "DECONVNET"),
)


def chosen():
    """(activation, rule, dtype): all of them, or every activation and every rule at least once."""
    if EVERY:
        return [(n, r, d) for n in ACTIVATIONS for r in RULE_NAMES for d in DTYPES]
    found = [(name, rule, dtype) for name, rule in PLANS for dtype in DTYPES]
    for place, name in enumerate(ACTIVATIONS):
        found.append((name, RULE_NAMES[place % len(RULE_NAMES)], DTYPES[place % len(DTYPES)]))
    return list(dict.fromkeys(found))


def pair_of(name, rule_name, dtype):
    pairs = backends.Pairs(name, rule_and_spec(rule_name)[0], {})
    return pairs.half if dtype in HALF_TYPES else pairs.full


@pytest.fixture(scope="module", autouse=True)
def empty_cache(tmp_path_factory):
    """Compile anew, and leave nothing in the cache of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def assert_streams(compiled, wanted):
    """The PTX holds these accesses and no other; the binary no shared and no local memory."""
    assert dict(compiled.accesses) == dict(wanted)
    assert "shfl" not in compiled.ptx
    used = compiled.resources()
    assert used["STACK"] == used["SHARED"] == used["LOCAL"] == 0
    assert used["REG"] <= 168


@pytest.mark.parametrize(("name", "rule_name", "dtype"), chosen(), ids=str)
def test_body_moves_sixteen_bytes_at_a_time_and_nothing_through_other_memory(
    name, rule_name, dtype
):
    pair = pair_of(name, rule_name, dtype)
    masked = pair.keeps == "mask"
    assert_streams(
        compiled_forward(pair, dtype), expected_accesses(dtype, 1, 1, "st" if masked else "")
    )
    if pair.keeps == "nothing" and pair.slope_high == 0:
        return
    reads = 2 if pair.keeps in ("output", "input") else 1
    assert_streams(
        compiled_backward(pair, dtype), expected_accesses(dtype, reads, 1, "ld" if masked else "")
    )


@pytest.mark.parametrize("scale", DTYPES, ids=str)
def test_tensor_scale_is_one_load_more(scale):
    pair = pair_of("relu", "GUIDED", torch.bfloat16)
    wanted = expected_accesses(torch.bfloat16, 1, 1, "ld")
    wanted["ld", "global", scale.itemsize] += 1
    assert_streams(compiled_backward(pair, torch.bfloat16, scale), wanted)


def test_custom_activation_streams_like_any_other():
    example("custom_activation")
    pair = backends.Pairs("squareplus", rules.reverse(0.5), {}).half
    wanted = expected_accesses(torch.bfloat16, 1, 1)
    assert_streams(compiled_forward(pair, torch.bfloat16), wanted)
    wanted = expected_accesses(torch.bfloat16, 2, 1)
    assert_streams(compiled_backward(pair, torch.bfloat16), wanted)


@pytest.mark.parametrize("rule_name", ("floored", "custom_all", "custom_output", "custom_gated"))
@pytest.mark.parametrize("dtype", DTYPES if EVERY else (torch.bfloat16, torch.float32), ids=str)
def test_custom_rule_streams_like_any_other(rule_name, dtype):
    from custom_triton import CUSTOM_RULES

    for name in ACTIVATIONS if EVERY else ("relu", "sigmoid"):
        pairs = backends.Pairs(name, CUSTOM_RULES[rule_name], {})
        pair = pairs.half if dtype in HALF_TYPES else pairs.full
        reads = 2 if pair.keeps in ("output", "input") else 1
        mask = "ld" if pair.keeps == "mask" else ""
        made = compiled_backward(pair, dtype)
        assert_streams(made, expected_accesses(dtype, reads, 1, mask))
        # A product that vanishes is +0: fused with a sum, it would keep its sign.
        assert not re.findall(r"fma\.[^;]*, 0[fd]0+;", made.ptx)


def active_driver():
    try:
        return driver.active
    except RuntimeError:
        return None


def test_compiling_leaves_the_driver_of_the_process_as_it_was():
    before = active_driver()
    compiled_forward(pair_of("relu", "GUIDED", torch.float32), torch.float32)
    assert active_driver() is before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_misaligned_start_is_never_read_sixteen_bytes_at_a_time(dtype):
    found = compiled_forward(pair_of("relu", "GUIDED", dtype), dtype, aligned=False).accesses
    assert max(size for _, _, size in found) <= 8


def test_half_precision_kernels_leave_registers_for_three_quarters_of_the_threads():
    """sm_90 has 65536 registers for 2048 threads: with 40 each 1536 fit."""
    for name in ("relu", "leaky_relu", "sigmoid", "silu", "gelu"):
        for dtype in HALF_TYPES:
            pair = pair_of(name, "EXACT", dtype)
            for compiled in (compiled_forward(pair, dtype), compiled_backward(pair, dtype)):
                assert compiled.resources()["REG"] <= 40


def test_compiled_table_of_the_documentation_is_up_to_date(repository):
    names = [] if EVERY else ["tanh", "sign"]
    ended = subprocess.run(
        [sys.executable, "docs/generate_kernels.py", "--check", *names],
        cwd=repository, capture_output=True, text=True,
    )  # fmt: skip
    if ended.returncode == 3:
        pytest.skip(ended.stderr.strip())
    assert ended.returncode == 0, ended.stderr
