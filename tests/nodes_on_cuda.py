"""The C++ nodes on CUDA tensors, by the device of cuda_device.py: who serves, what is refused.

Run by test_nodes_on_cuda.py in a process of its own, which has that device from the start. It may
import the package, grids.py and oracle.py.
"""

from __future__ import annotations

import threading

import cuda_device
import pytest
import torch
from cuda_device import ASKED, TOO_OLD, on
from grids import DTYPES, grid, run, same_bits
from oracle import FORMULAS, SPECS, rule_and_spec

import pyrevgrad
from pyrevgrad import DECONVNET, EXACT, GUIDED, BackendError, autograd, backends, reverse

FUNCTIONS = ("_CallBackward", "_CallWithEdgeBackward", "_ViewBackward")
OLD = 2
#: A pair for each thing that a plan keeps.
PAIRS = (("identity", DECONVNET), ("relu", GUIDED), ("tanh", EXACT), ("tanh", reverse(2.0)),
         ("gelu", reverse(0.5)))  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def device():
    cuda_device.install()


@pytest.fixture
def served():
    """cuda:0, of which it is known that the kernels run there."""
    pyrevgrad.relu(on(0, torch.ones(1)))


def host(tensor):
    return on(-1, tensor)


def name_of(y):
    return y.grad_fn.name()


def test_nodes_take_a_device_over_once_python_has_asked_it():
    x = on(1, torch.randn(5)).requires_grad_()
    assert name_of(pyrevgrad.relu(x)) in FUNCTIONS
    assert name_of(pyrevgrad.relu(x)) == "ModifiedBackward"
    assert name_of(pyrevgrad.reverse_gradient(x)) == "ModifiedBackward"
    half = on(1, torch.randn(5).bfloat16()).requires_grad_()
    assert name_of(pyrevgrad.tanh(half)) == "ModifiedBackward"
    with pyrevgrad.backend("native"):
        assert name_of(pyrevgrad.relu(x)) == "ModifiedBackward"
    assert pyrevgrad.relu(x.detach()).grad_fn is None
    assert ASKED.count(1) == 1


@pytest.mark.parametrize("rule_name", SPECS)
def test_every_pair_gives_the_bits_of_the_same_kernels_on_the_cpu(served, rule_name):
    rule, _ = rule_and_spec(rule_name)
    for name in FORMULAS:
        for dtype in DTYPES:
            x, g = (part[:200] for part in grid(dtype))
            y, gx = run(on(0, x), on(0, g), name, rule)
            assert y.device == gx.device == torch.device("cuda", 0)
            wanted = run(x, g, name, rule)
            assert same_bits(host(y), wanted[0]) and same_bits(host(gx), wanted[1])


@pytest.mark.parametrize(("name", "rule"), PAIRS)
def test_layout_is_kept_and_a_gradient_of_another_is_laid_out(served, name, rule):
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    g = torch.randn(2, 3, 4, 5)
    y, gx = run(on(0, x), on(0, g), name, rule)
    assert y.stride() == x.stride()
    wanted = run(x, g, name, rule)
    assert same_bits(host(y), wanted[0]) and same_bits(host(gx), wanted[1])


@pytest.mark.parametrize(("name", "rule"), PAIRS)
def test_double_backward_is_that_of_the_cpu(served, name, rule):
    def second(x, g, v):
        x, g = x.requires_grad_(), g.requires_grad_()
        y = pyrevgrad.activation(x, name, rule)
        assert name_of(y) == "ModifiedBackward"
        (gx,) = torch.autograd.grad(y, x, g, create_graph=True)
        return torch.autograd.grad(gx, (x, g), v, allow_unused=True)

    points = [torch.randn(9) for _ in range(3)]
    wanted = second(*(point.clone() for point in points))
    for found, expected in zip(second(*(on(0, p.clone()) for p in points)), wanted, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(host(found), expected)


@pytest.mark.parametrize(("name", "rule"), PAIRS)
def test_live_scale_is_read_when_backward_runs(served, name, rule):
    x, g = torch.randn(9), torch.randn(9)
    scale = on(0, torch.tensor(1.0))
    leaf = on(0, x).requires_grad_()
    y = pyrevgrad.activation(leaf, name, rule.scaled(scale))
    assert name_of(y) == "ModifiedBackward"
    host(scale).fill_(-0.25)
    (gx,) = torch.autograd.grad(y, leaf, on(0, g))
    assert same_bits(host(gx), run(x, g, name, rule.scaled(-0.25))[1])


def test_gradients_of_a_batch_are_those_of_its_rows(served):
    x, g = on(0, torch.randn(7)).requires_grad_(), on(0, torch.randn(3, 7))
    y = pyrevgrad.gelu(x, reverse(2.0))
    (together,) = torch.autograd.grad(y, x, g, is_grads_batched=True, retain_graph=True)
    for row, one in enumerate(host(together)):
        (wanted,) = torch.autograd.grad(y, x, on(0, host(g)[row].clone()), retain_graph=True)
        assert same_bits(one, host(wanted))


def test_backward_runs_in_the_thread_of_the_device_and_its_error_reaches_the_caller(
    served, monkeypatch
):
    threads = []

    def fails(*_):
        threads.append(threading.get_ident())
        raise ArithmeticError("as asked")

    monkeypatch.setattr(autograd.eager, "gradient_of_input", fails)
    x = on(0, torch.randn(5)).requires_grad_()
    y = pyrevgrad.gelu(x, reverse(2.0))
    assert name_of(y) == "ModifiedBackward"
    with pytest.raises(ArithmeticError, match="as asked"):
        torch.autograd.grad(y, x, on(0, torch.ones(5)), create_graph=True)
    assert threads and threads[0] != threading.get_ident()


# What the nodes cannot decide goes to Python, which says what is wrong.


@pytest.mark.parametrize("elsewhere", [-1, 1])
def test_scale_on_another_device_is_refused(served, elsewhere):
    scale = on(elsewhere, torch.tensor(1.0))
    where = "cpu" if elsewhere < 0 else "cuda:1"
    with pytest.raises(ValueError, match=f"the tensor scale is on {where} and x on cuda:0"):
        pyrevgrad.relu(on(0, torch.ones(3)).requires_grad_(), reverse(scale))
    with pytest.raises(ValueError, match="the tensor scale is on cuda:0 and x on cpu"):
        pyrevgrad.relu(torch.ones(3, requires_grad=True), reverse(on(0, torch.tensor(1.0))))


def test_scale_that_requires_grad_is_refused(served):
    scale = on(0, torch.tensor(1.0))
    rule = reverse(scale)
    scale.requires_grad_()
    with pytest.raises(ValueError, match="no gradient flows to scale"):
        pyrevgrad.relu(on(0, torch.ones(3)).requires_grad_(), rule)


def test_numbers_of_another_type_are_refused(served):
    with pytest.raises(TypeError, match=r"relu takes float16, .* got torch\.int64"):
        pyrevgrad.relu(on(0, torch.ones(3, dtype=torch.int64)))


def test_a_device_that_does_not_run_the_kernels_is_never_served_by_the_nodes(served, monkeypatch):
    x = on(OLD, torch.randn(5)).requires_grad_()
    monkeypatch.setattr(backends.triton_backend, "backend_for", lambda *_: None)
    backends._say_once.cache_clear()
    with pytest.warns(RuntimeWarning, match=f"on its reference backend.*: {TOO_OLD}"):
        y = pyrevgrad.relu(x, GUIDED)
    for _ in range(2):
        assert name_of(y) in FUNCTIONS and y.grad_fn.call[2] is backends.REFERENCE
        y = pyrevgrad.relu(x, GUIDED)
    with (
        pyrevgrad.backend("native"),
        pytest.raises(BackendError, match=f"does not serve relu on cuda tensors: {TOO_OLD}"),
    ):
        pyrevgrad.relu(x, GUIDED)
    served = on(0, host(x)).requires_grad_()
    assert name_of(pyrevgrad.relu(served, GUIDED)) == "ModifiedBackward"


def test_another_backend_that_is_named_is_the_one_that_serves(served):
    x = on(0, torch.randn(5)).requires_grad_()
    with pyrevgrad.backend("reference"):
        assert pyrevgrad.relu(x).grad_fn.call[2] is backends.REFERENCE
    assert name_of(pyrevgrad.relu(x)) == "ModifiedBackward"


def test_subclasses_are_left_to_the_functions_and_a_call_in_place_is_not(served):
    class Own(torch.Tensor):
        pass

    x = on(0, torch.randn(5)).requires_grad_()
    assert name_of(pyrevgrad.relu(x.as_subclass(Own))) in FUNCTIONS
    assert name_of(pyrevgrad.relu(pyrevgrad.tanh(x), inplace=True)) == "ModifiedBackward"
