"""Every number of both half types, in every pair that only chooses or scales, bit by bit.

It may import the package, grids.py and subprocesses.py. The processor's kernels compare and choose
these numbers as they are stored, so no pattern may be taken on trust.
"""

import pytest
import torch
from grids import CAPABILITIES, needs_native, run, same_bits
from subprocesses import in_subprocess

from pyrevgrad import DECONVNET, EXACT, GUIDED, STRAIGHT_THROUGH, backend, rules

HALF_TYPES = (torch.bfloat16, torch.float16)
#: Constants that the types have, lie between two of theirs, are beyond or below all of them, or 0.
CHOOSERS = (
    ("relu", {}),
    ("relu6", {}),
    ("identity", {}),
    ("sign", {}),
    ("heaviside", {"values": 0.3}),
    ("heaviside", {"values": -2.0}),
    ("leaky_relu", {"negative_slope": 0.01}),
    ("leaky_relu", {"negative_slope": -0.7}),
    ("leaky_relu", {"negative_slope": 1.0}),
    ("hardtanh", {}),
    ("hardtanh", {"min_val": -0.7, "max_val": 0.3}),
    ("hardtanh", {"min_val": 0.0, "max_val": 1e9}),
    ("hardtanh", {"min_val": -1e-30, "max_val": 1e-30}),
    ("hardtanh", {"min_val": -70000.0, "max_val": -0.0}),
    ("hardshrink", {}),
    ("hardshrink", {"lambd": 0.0}),
    ("hardshrink", {"lambd": 0.7}),
    ("hardshrink", {"lambd": 1e-9}),
)
RULES = {
    "EXACT": EXACT,
    "GUIDED": GUIDED,
    "DECONVNET": DECONVNET,
    "STRAIGHT_THROUGH": STRAIGHT_THROUGH,
    "reversed by 1": rules.reverse(1.0),
    "reversed by .7": rules.reverse(0.7),
    "guided, scaled": GUIDED.scaled(1e3),
    "clipped, scaled": STRAIGHT_THROUGH.clipped(0.75).scaled(-1.0),
    "interval": rules.clipped_straight_through(-0.7, 0.3),
}


def every_pattern(dtype):
    """All 65536 numbers of a type, in an order in which neighbours have nothing in common."""
    shuffled = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(3))
    return (shuffled - (1 << 15)).to(torch.int16).view(dtype)


def differences():
    """The pairs whose kernels and whose reference differ in a bit."""
    found = []
    for dtype in HALF_TYPES:
        x = every_pattern(dtype)
        g = every_pattern(dtype).flip(0)
        for name, params in CHOOSERS:
            for rule_name, rule in RULES.items():
                with backend("native"):
                    y, gx = run(x, g, name, rule, params)
                with backend("reference"):
                    wanted_y, wanted_gx = run(x, g, name, rule, params)
                if not (same_bits(y, wanted_y) and same_bits(gx, wanted_gx)):
                    found.append((str(dtype), name, params, rule_name))
    return found


@needs_native
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_pattern_of_the_half_types_is_chosen_and_scaled_as_by_the_reference(capability):
    """In a process of its own, since an instruction set is chosen once."""
    code = "import test_sixteen_bits as t; print(t.differences())"
    variables = {"PYREVGRAD_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    ended = in_subprocess(code, **variables)
    if "names no instruction set of this machine and build" in ended.stderr:
        pytest.skip(f"this machine has no {capability}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "[]"
