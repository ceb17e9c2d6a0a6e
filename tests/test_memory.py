"""What a pair keeps for backward, by saved-tensor hooks and by the process's peak memory.

It may import the package and the oracle's reading of the design in oracle.py.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch
from grids import (
    BACKENDS,
    DTYPES,
    array,
    grid,
    needs_native,
    one_thread,  # noqa: F401
)
from oracle import (
    COMPOSED,
    FORMULAS,
    SPECS,
    expected_keeps,
    rule_and_spec,
)

import pyrevgrad
from pyrevgrad import GUIDED, backend, reverse, rules

RULE_NAMES = (*SPECS, *COMPOSED)


def kept_by(function, x):
    """(y, the tensors that autograd saved while `function` ran, one for each storage)."""
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(x)
    return y, list(saved.values())


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@needs_native
@pytest.mark.parametrize("rule_name", RULE_NAMES)
@pytest.mark.parametrize("name", FORMULAS)
def test_bytes_kept_are_the_plans(name, rule_name):
    rule, spec = rule_and_spec(rule_name)
    for dtype in DTYPES:
        plan = pyrevgrad.plan(name, rule, dtype)
        assert plan.keeps == expected_keeps(name, spec, dtype)
        for count in (1, 8, 1003, 4096):
            x = torch.randn(count).to(dtype).requires_grad_()
            with backend("native"):
                y, saved = kept_by(lambda x: pyrevgrad.activation(x, name, rule), x)
            if plan.keeps == "nothing":
                assert not saved
                continue
            (kept,) = saved
            if plan.keeps == "mask":
                assert kept.dtype == torch.uint8
                assert bytes_of(saved) == (count + 7) // 8
            else:
                assert kept.data_ptr() == (y if plan.keeps == "output" else x).data_ptr()
                assert bytes_of(saved) == count * plan.bytes_per_element


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "rule", "passes"),
    (
        ("relu", GUIDED, lambda x: ~(x <= 0)),
        ("gelu", GUIDED, lambda x: ~(x <= 0)),
        ("relu", rules.EXACT, lambda x: ~(x <= 0)),
        ("leaky_relu", rules.EXACT, lambda x: x > 0),
        ("hardtanh", reverse(2.0), lambda x: ~(x <= -1) & ~(x >= 1)),
        ("hardsigmoid", rules.EXACT, lambda x: (x > -3) & (x < 3)),
        ("hardshrink", rules.EXACT, lambda x: ~(np.abs(x) <= 0.5)),
        ("sign", rules.clipped_straight_through(-1.0, 1.0), lambda x: ~(x < -1) & ~(x > 1)),
    ),
)
def test_mask_holds_one_bit_an_element_lowest_first_and_zeros_after_the_end(
    name, rule, passes, dtype
):
    x, _ = grid(dtype)
    for count in (1, 5, 8, 17, 31, len(x)):
        part = x[:count].clone().requires_grad_()
        with backend("native"):
            _, (mask,) = kept_by(lambda x: pyrevgrad.activation(x, name, rule), part)
        assert np.array_equal(mask.numpy(), np.packbits(passes(array(part)), bitorder="little"))


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("rule_name", RULE_NAMES)
@pytest.mark.parametrize("name", FORMULAS)
def test_nothing_is_kept_when_no_gradient_is_needed(name, rule_name, backend_name):
    rule, _ = rule_and_spec(rule_name)
    with backend(backend_name):
        y, saved = kept_by(lambda x: pyrevgrad.activation(x, name, rule), torch.randn(64))
        assert not saved
        assert y.grad_fn is None
        with torch.no_grad():
            y, saved = kept_by(
                lambda x: pyrevgrad.activation(x, name, rule), torch.randn(64, requires_grad=True)
            )
        assert not saved
        assert y.grad_fn is None


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("scale", (0.5, torch.tensor(0.5)))
def test_gradient_reversal_keeps_nothing(scale, backend_name):
    with backend(backend_name):
        x = torch.randn(64, requires_grad=True)
        y, saved = kept_by(lambda x: pyrevgrad.reverse_gradient(x, scale), x)
    assert not saved
    assert y.data_ptr() == x.data_ptr()


@needs_native
@pytest.mark.parametrize("rule_name", ("EXACT", "reverse", "GUIDED", "rectgrad"))
@pytest.mark.parametrize("name", FORMULAS)
def test_in_place_keeps_what_the_plan_says(name, rule_name):
    rule, _ = rule_and_spec(rule_name)
    keeps = pyrevgrad.plan(name, rule).keeps
    x = torch.randn(1003, requires_grad=True).clone()
    with backend("native"):
        y, saved = kept_by(lambda x: pyrevgrad.activation(x, name, rule, inplace=True), x)
    wanted = {"nothing": 0, "mask": 126, "output": 4012, "input": 4012}[keeps]
    assert bytes_of(saved) == wanted
    if keeps == "output" and rule.is_exact:
        assert saved[0].data_ptr() == y.data_ptr()


PEAK = """
import sys
import torch
import pyrevgrad

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

guided = lambda x: pyrevgrad.relu(x, pyrevgrad.GUIDED)
function = guided if sys.argv[1] == "guided" else torch.relu
torch.set_num_threads(1)
function(torch.randn(4096, requires_grad=True)).sum().backward()
x = torch.randn(2**24).requires_grad_()
before = status("VmHWM")
losses = [function(x).sum() for _ in range(4)]
print(status("VmHWM") - before, status("VmRSS") - before)
"""


def memory_growth(which):
    ended = subprocess.run(
        [sys.executable, "-c", PEAK, which], capture_output=True, text=True, check=True
    )
    return [int(number) for number in ended.stdout.split()]


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_guided_relu_is_one_output_and_the_masks():
    """Four branches of 2²⁴ float32: PyTorch keeps four outputs, a mask plan an eighth of a byte."""
    output, mask, slack = 4 * 2**24, 2**24 // 8, 24 * 2**20
    peak, kept = memory_growth("guided")
    plain_peak, plain_kept = memory_growth("plain")
    assert peak <= output + 4 * mask + slack
    assert kept <= 4 * mask + slack
    assert plain_peak >= 3.5 * output
    assert plain_kept >= 3.5 * output
