"""The functions a user calls: names, values, fresh storage, strides, views, signatures."""

import inspect
import math

import numpy
import pytest
import torch
import torch.nn.functional as F
from expected import BACKENDS, gradient, points, value
from threads import together
from torch.utils._python_dispatch import TorchDispatchMode

import pyrevgrad
from pyrevgrad import (
    EXACT,
    GUIDED,
    activation,
    backends,
    functional,
    reverse,
    reverse_gradient,
)
from pyrevgrad.activations import ACTIVATIONS
from pyrevgrad.rules import RULES

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)


class Operations(TorchDispatchMode):
    """The names of the operations that run inside the block."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@every_activation
def test_there_is_a_function_named_after_each_activation(name):
    x, g = points(name, "reverse")
    x.requires_grad_()
    y = getattr(pyrevgrad, name)(x, RULES["reverse"])
    torch.testing.assert_close(y, value(name, x))
    y.backward(g)
    torch.testing.assert_close(x.grad, gradient(name, "reverse", x.detach(), g).detach())
    assert name in functional.__all__


@every_activation
def test_a_named_function_shows_its_parameters_and_defaults(name):
    function = getattr(pyrevgrad, name)
    parameters = inspect.signature(function).parameters
    assert list(parameters)[:3] == ["x", "rule", "inplace"]
    assert parameters["rule"].default == EXACT and parameters["inplace"].default is False
    shown = {key: parameter.default for key, parameter in list(parameters.items())[3:]}
    assert shown == {p.name: p.default for p in ACTIVATIONS[name].parameters}
    assert function.__name__ == name and ACTIVATIONS[name].value in function.__doc__
    assert function.__module__ == "pyrevgrad.functional"


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("leaky_relu", {"negative_slope": 0.2}),
        ("hardtanh", {"min_val": -0.5, "max_val": 2.0}),
        ("elu", {"alpha": 0.7}),
        ("celu", {"alpha": 1.7}),
        ("softplus", {"beta": 2.0, "threshold": 3.0}),
        ("hardshrink", {"lambd": 0.9}),
        ("softshrink", {"lambd": 0.9}),
    ],
)
@every_backend
def test_parameters_have_torchs_names_and_meaning(name, params, backend):
    x, g = points(name, "EXACT")
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with pyrevgrad.backend(backend):
        y = getattr(pyrevgrad, name)(ours, **params)
    wanted = getattr(torch.nn.functional, name)(theirs, **params)
    torch.testing.assert_close(y, wanted)
    y.backward(g)
    wanted.backward(g)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_heaviside_takes_its_value_at_zero():
    x = torch.tensor([-1.0, 0.0, 2.0])
    assert pyrevgrad.heaviside(x, values=0.5).tolist() == [0.0, 0.5, 1.0]


def test_an_integer_parameter_is_a_number():
    assert pyrevgrad.leaky_relu(torch.tensor([-1.0]), negative_slope=2).item() == -2.0


@every_backend
@every_activation
def test_the_result_is_fresh_storage_with_the_strides_of_empty_like(name, backend):
    x = torch.randn(2, 3, 4, 5)
    layouts = [
        x,
        x.to(memory_format=torch.channels_last),
        x.transpose(0, 3),
        x[:, ::2],
        x[:, :1].expand(2, 3, 4, 5),
        x[0, 0, 0, 0],
        x[:0],
    ]
    with pyrevgrad.backend(backend):
        for at in layouts:
            for needs in (False, True):
                y = activation(at.detach().requires_grad_(needs), name)
                assert y.shape == at.shape and y.dtype == at.dtype
                assert y.stride() == torch.empty_like(at).stride()
                assert y.untyped_storage().data_ptr() != at.untyped_storage().data_ptr()
                torch.testing.assert_close(
                    y.detach().double(), value(name, at.double()), rtol=1e-5, atol=1e-5
                )


@every_backend
def test_the_identity_returns_fresh_storage_under_every_rule(backend):
    x = torch.randn(4, requires_grad=True)
    with pyrevgrad.backend(backend):
        for rule in RULES.values():
            y = activation(x, "identity", rule)
            assert torch.equal(y, x) and y.data_ptr() != x.data_ptr() and not y._is_view()


@pytest.mark.parametrize("needs", [False, True])
def test_reverse_gradient_returns_a_view(needs):
    x = torch.randn(3, 4, requires_grad=needs).t()
    y = reverse_gradient(x, 0.5)
    assert y is not x and y._is_view()
    assert y.data_ptr() == x.data_ptr() and y.stride() == x.stride() and torch.equal(y, x)


def test_reverse_gradient_runs_no_kernel_forward_and_one_backward():
    x = torch.randn(8, requires_grad=True) * 1.0
    with Operations() as forward:
        y = reverse_gradient(x, 0.5)
    assert not [name for name in forward.names if "view" not in name and "alias" not in name]
    g = torch.ones(8)
    with Operations() as backward:
        torch.autograd.grad(y, x, g)
    assert len([name for name in backward.names if "detach" not in name]) <= 2


def test_reversing_by_minus_one_hands_the_gradient_on():
    x = torch.randn(8, requires_grad=True) * 1.0
    g = torch.randn(8)
    (gx,) = torch.autograd.grad(reverse_gradient(x, -1.0), x, g)
    assert gx.data_ptr() == g.data_ptr()


@pytest.mark.parametrize("scale", [0.0, 0.5, 1, -2.0, torch.tensor(0.5)])
def test_reverse_gradient_multiplies_by_minus_the_scale(scale):
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    reverse_gradient(x, scale).backward(torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64))
    wanted = -float(scale) * torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
    assert torch.equal(x.grad, wanted)


def test_reverse_gradient_makes_the_rule_of_a_number_once(monkeypatch):
    """To make it costs more than the rest of the call."""
    x = torch.ones(2, requires_grad=True)
    reverse_gradient(x, 0.8125)
    monkeypatch.setattr(functional, "reverse", None)
    (gx,) = torch.autograd.grad(reverse_gradient(x, 0.8125), x, torch.ones(2))
    assert gx.tolist() == [-0.8125, -0.8125]


def test_reverse_gradient_tells_zero_from_minus_zero_whatever_came_before():
    x, g = torch.ones(1, requires_grad=True), torch.ones(1)
    for scale in (0.0, -0.0, 0.0):
        (gx,) = torch.autograd.grad(reverse_gradient(x, scale), x, g)
        assert math.copysign(1, gx.item()) == -math.copysign(1, scale)


@pytest.mark.parametrize("number", [float, numpy.float32])
@pytest.mark.parametrize(
    ("name", "parameter", "x", "function"),
    [
        ("leaky_relu", "negative_slope", -1.0, F.leaky_relu),
        ("hardtanh", "min_val", -1.0, F.hardtanh),
        ("elu", "alpha", -1.0, F.elu),
        ("heaviside", "values", 0.0, lambda x, values: torch.heaviside(x, torch.tensor(values))),
    ],
)
def test_parameter_of_zero_is_told_from_minus_zero_whatever_came_before(
    name, parameter, x, function, number
):
    x = torch.tensor([x])
    for zero in (0.0, -0.0, 0.0):
        y = activation(x, name, **{parameter: number(zero)})
        assert math.copysign(1, y.item()) == math.copysign(1, function(x, zero).item())


def test_reverse_gradient_by_nothing_given_is_minus_one():
    x = torch.ones(2, requires_grad=True)
    reverse_gradient(x).sum().backward()
    assert x.grad.tolist() == [-1.0, -1.0]


def test_two_reversals_cancel_and_one_does_not():
    x = torch.ones(2, requires_grad=True)
    reverse_gradient(reverse_gradient(x)).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_a_parameter_is_an_input_like_any_other():
    x = torch.nn.Parameter(torch.tensor([-1.0, 2.0]))
    y = activation(x, "relu", reverse(3.0))
    assert type(y) is torch.Tensor
    y.sum().backward()
    assert x.grad.tolist() == [0.0, -3.0]


@every_backend
def test_a_single_number_and_an_empty_tensor_go_through(backend):
    with pyrevgrad.backend(backend):
        x = torch.tensor(2.0, requires_grad=True)
        activation(x, "relu", GUIDED.scaled(-0.5)).backward()
        assert x.grad.item() == -0.5
        for shape in [(0,), (3, 0, 2)]:
            x = torch.empty(shape, requires_grad=True)
            for name, rule in [("relu", GUIDED), ("tanh", EXACT), ("gelu", reverse(2.0))]:
                y = activation(x, name, rule)
                assert y.shape == shape
                (gx,) = torch.autograd.grad(y.sum(), x)
                assert gx.shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@every_backend
def test_the_dtype_of_value_and_gradient_is_the_inputs(dtype, backend):
    x = torch.tensor([-1.0, 0.5], dtype=dtype, requires_grad=True)
    with pyrevgrad.backend(backend):
        for name in ("relu", "tanh", "gelu"):
            y = activation(x, name, reverse(torch.tensor(0.5)))
            (gx,) = torch.autograd.grad(y.sum(), x)
            assert y.dtype == gx.dtype == dtype


def test_a_meta_tensor_gives_shapes():
    x = torch.empty(2, 3, device="meta", requires_grad=True)
    y = activation(x, "relu", GUIDED)
    assert y.is_meta and y.shape == (2, 3)
    y.sum().backward()
    assert x.grad.is_meta and x.grad.shape == (2, 3)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "identity"])
def test_a_functional_call_keeps_no_scale_alive(name):
    """A loop that makes a new λ each step must not pile them up."""
    import gc
    import weakref

    x = torch.ones(2, requires_grad=True)
    scales = [torch.tensor(float(i)) for i in range(3)]
    watches = [weakref.ref(scale) for scale in scales]
    for scale in scales:
        activation(x, name, reverse(scale)).sum().backward()
        reverse_gradient(x, scale).sum().backward()
    del scale, scales
    gc.collect()
    assert all(watch() is None for watch in watches)


#: The same gradient of a positive x, −λ·g, by what is kept for each λ in one of two places.
REVERSED = {
    "by the rule": lambda x, number: pyrevgrad.relu(x, reverse(number)),
    "by the scale": lambda x, number: reverse_gradient(x, number),
}


@pytest.mark.parametrize("call", REVERSED.values(), ids=REVERSED)
def test_what_is_first_used_after_thousands_of_others_is_made_once(call, monkeypatch):
    made = []

    class Counted(backends.Pairs):
        def __init__(self, *arguments):
            made.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(backends, "MOST_KEPT", 8)
    monkeypatch.setattr(backends, "Pairs", Counted)
    # What other tests have left there is more than that.
    backends._PAIRS.clear()
    functional._REVERSALS.clear()
    x = torch.ones(1, requires_grad=True)
    for number in range(1, 100):
        call(x, number / 1024)
    made.clear()
    for _ in range(5):
        y = call(x, 0.777)
        assert torch.autograd.grad(y, x)[0] == torch.tensor(-0.777)
    assert len(made) == 1
    assert len(backends._PAIRS) <= 8 and len(functional._REVERSALS) <= 8


@pytest.mark.parametrize("call", REVERSED.values(), ids=REVERSED)
def test_threads_that_fill_what_is_kept_get_each_its_own_gradient(call, monkeypatch):
    monkeypatch.setattr(backends, "MOST_KEPT", 4)
    numbers = [number / 64 for number in range(1, 8)]

    def work():
        x = torch.ones(1, requires_grad=True)
        for _ in range(50):
            for number in numbers:
                assert torch.autograd.grad(call(x, number), x)[0].item() == -number

    together(work, 4, interval=1e-6)
