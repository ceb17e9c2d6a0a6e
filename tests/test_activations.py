"""The activation table: what its rows state, and that both backends and PyTorch agree with it.

It may import the package, PyTorch and the oracle in oracle.py.
"""

import math

import numpy as np
import pytest
import torch
from grids import (
    BACKENDS,
    DTYPES,
    FULL,
    needs_native,
    one_thread,  # noqa: F401
)
from oracle import (
    DEFAULTS,
    FORMULAS,
)

import pyrevgrad
from pyrevgrad import backend, backends
from pyrevgrad.activations import ACTIVATIONS, find

NAN, INF = math.nan, math.inf
POINTS = (NAN, INF, -INF, 0.0, -0.0)
WITH_TORCH = [name for name, row in ACTIVATIONS.items() if row.torch_name]
#: Parameters to compare with PyTorch's function, besides the defaults.
OTHER_PARAMETERS = {
    "leaky_relu": [{"negative_slope": 0.0}, {"negative_slope": -0.5}, {"negative_slope": 2.5}],
    "hardtanh": [{"min_val": -0.7, "max_val": 2.5}, {"min_val": 1.0, "max_val": 2.0}],
    "elu": [{"alpha": -1.0}, {"alpha": 0.0}, {"alpha": 0.5}],
    "celu": [{"alpha": 0.3}, {"alpha": 2.0}],
    "softplus": [{"beta": 2.0, "threshold": 1.0}, {"beta": 0.25}],
    "hardshrink": [{"lambd": 0.0}, {"lambd": 1.5}],
    "softshrink": [{"lambd": 0.0}, {"lambd": 1.5}],
}
CASES = [(name, params) for name in WITH_TORCH for params in ({}, *OTHER_PARAMETERS.get(name, ()))]


def torch_function(row, params):
    """PyTorch's function of a row, as the table names it."""
    function = torch
    for part in row.torch_name.split("."):
        function = getattr(function, part)
    return lambda x: function(x, **row.torch_arguments, **params)


def value_and_slope(function, x):
    """f(x) and f'(x) by autograd."""
    leaf = x.detach().clone().requires_grad_()
    y = function(leaf)
    (slope,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    return y.detach(), slope


def ours(name, params=None):
    return lambda x: pyrevgrad.activation(x, name, **(params or {}))


def wide_grid(row, params):
    """Even steps over [-30, 30], every kink and its neighbours, large numbers of both signs."""
    numbers = row.resolve(params)
    kinks = torch.tensor([0.0, *row.kink_values(numbers)], dtype=torch.float64)
    up = torch.full_like(kinks, INF)
    large = torch.tensor([40.0, 100.0, 700.0, 1e4, 1e12], dtype=torch.float64)
    steps = torch.linspace(-30.0, 30.0, 4801, dtype=torch.float64)
    return torch.cat(
        [steps, kinks, torch.nextafter(kinks, up), torch.nextafter(kinks, -up), large, -large]
    )


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize(("name", "params"), CASES)
def test_value_and_gradient_agree_with_pytorch_kinks_included(name, params, backend_name):
    row = ACTIVATIONS[name]
    x = wide_grid(row, params)
    y, slope = value_and_slope(torch_function(row, params), x)
    with backend(backend_name):
        our_y, our_slope = value_and_slope(ours(name, params), x)
    torch.testing.assert_close(our_y, y)
    torch.testing.assert_close(our_slope, slope)


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize(
    ("name", "value", "slope"),
    (
        ("identity", lambda x: x, lambda x: 1.0 + 0 * x),
        ("relu_squared", lambda x: (x > 0) * x * x, lambda x: (x > 0) * 2 * x),
        ("heaviside", lambda x: (x > 0).double(), lambda x: 0.0 * x),
    ),
)
def test_rows_that_pytorch_lacks_follow_their_formula(name, value, slope, backend_name):
    x = wide_grid(ACTIVATIONS[name], {})
    with backend(backend_name):
        our_y, our_slope = value_and_slope(ours(name), x)
    torch.testing.assert_close(our_y, value(x))
    torch.testing.assert_close(our_slope, slope(x))


def test_only_four_rows_have_no_function_in_pytorch():
    without = set(ACTIVATIONS) - set(WITH_TORCH)
    assert without == {"identity", "relu_squared", "quick_gelu", "heaviside"}


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("values", (0.0, 0.5, -2.0))
def test_heaviside_takes_its_value_at_zero_as_pytorchs(values, backend_name):
    x = torch.tensor([-1.0, -0.0, 0.0, 1e-30, 2.0])
    with backend(backend_name):
        y = pyrevgrad.heaviside(x, values=values)
    assert torch.equal(y, torch.heaviside(x, torch.tensor(values)))


@pytest.mark.parametrize("size", (1, 7, 64))
@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_five_stated_points_hold(name, backend_name, size):
    for dtype in DTYPES:
        for point, (value, slope) in zip(POINTS, ACTIVATIONS[name].points, strict=True):
            x = torch.full((size,), point, dtype=dtype)
            with backend(backend_name):
                y, our_slope = value_and_slope(ours(name), x)
            message = f"{name} at {point} in {dtype}"
            for got, stated in ((y, value), (our_slope, slope)):
                wanted = torch.full_like(got, stated)
                torch.testing.assert_close(got, wanted, equal_nan=True, msg=message)
            if value == 0:
                assert torch.equal(y.signbit(), torch.full_like(y, value).signbit()), message


def agreed(name, point):
    """What PyTorch's vector and scalar paths say at a point, in both full dtypes: value and slope,
    NaN-equal, None where they disagree; and the sign of a value of 0, None where that differs.
    """
    results = [
        value_and_slope(
            torch_function(ACTIVATIONS[name], {}), torch.full((size,), point, dtype=dtype)
        )
        for dtype in FULL
        for size in (1, 64)
    ]
    found = []
    for part in range(2):
        numbers = torch.cat([result[part].double() for result in results])
        same = torch.isclose(numbers, numbers[0], rtol=1e-6, atol=1e-7, equal_nan=True).all()
        found.append(numbers[0].item() if same else None)
    signs = {bool(sign) for result in results for sign in result[0].signbit()}
    return *found, (signs.pop() if len(signs) == 1 else None)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", WITH_TORCH)
def test_stated_points_are_pytorchs_wherever_its_own_paths_agree(name, point):
    at = [str(p) for p in POINTS].index(str(point))
    stated_value, stated_slope = ACTIVATIONS[name].points[at]
    value, slope, sign = agreed(name, point)
    if value is not None:
        assert stated_value == pytest.approx(value, rel=1e-6, abs=1e-7, nan_ok=True)
        if value == 0 and sign is not None:
            assert (math.copysign(1, stated_value) < 0) == sign
    if slope is not None:
        assert stated_slope == pytest.approx(slope, rel=1e-6, abs=1e-7, nan_ok=True)


def test_names_of_the_compiled_library_are_the_tables():
    if backends._native is None:
        pytest.skip("no compiled library")
    assert list(backends._native.codes) == list(ACTIVATIONS)


def test_the_table_has_every_activation_of_the_design():
    assert list(ACTIVATIONS) == list(FORMULAS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_defaults_are_pytorchs(name):
    numbers = ACTIVATIONS[name].resolve({})
    assert numbers == DEFAULTS.get(name, ())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_has_a_function_of_its_name(name):
    x = torch.linspace(-3, 3, 13)
    assert torch.equal(getattr(pyrevgrad, name)(x), pyrevgrad.activation(x, name))


@pytest.mark.parametrize(
    ("wrong", "message"),
    (
        ("rellu", "unknown activation 'rellu': did you mean 'relu'"),
        ("Gelu", "unknown activation 'Gelu': did you mean 'gelu'"),
        ("hardswis", "unknown activation 'hardswis': did you mean 'hardswish'"),
        ("xyz", "unknown activation 'xyz': choose from celu, elu, gelu"),
    ),
)
def test_unknown_activation_lists_the_close_names(wrong, message):
    with pytest.raises(ValueError) as caught:
        pyrevgrad.activation(torch.ones(2), wrong)
    assert message in str(caught.value)


def test_activation_must_be_named_by_a_string():
    with pytest.raises(TypeError, match="an activation is named by a string, not list"):
        find(["relu"])


@pytest.mark.parametrize(
    ("name", "params", "message"),
    (
        ("celu", {"alpha": 0.0}, "celu: alpha must be finite and > 0, got 0.0"),
        ("celu", {"alpha": -1}, "celu: alpha must be finite and > 0, got -1.0"),
        ("softplus", {"beta": 0}, "softplus: beta must be finite and > 0, got 0.0"),
        ("hardshrink", {"lambd": -0.1}, "hardshrink: lambd must be finite and >= 0, got -0.1"),
        ("softshrink", {"lambd": -0.1}, "softshrink: lambd must be finite and >= 0, got -0.1"),
        ("elu", {"alpha": INF}, "elu: alpha must be finite, got inf"),
        ("leaky_relu", {"negative_slope": NAN}, "negative_slope must be finite, got nan"),
        (
            "hardtanh", {"min_val": 2.0, "max_val": 2.0},
            "hardtanh: min_val must be below max_val, got 2.0 and 2.0",
        ),
        ("hardtanh", {"min_val": 3}, "min_val must be below max_val, got 3.0 and 1.0"),
    ),
)  # fmt: skip
def test_parameter_out_of_bounds_is_refused(name, params, message):
    with pytest.raises(ValueError) as caught:
        pyrevgrad.activation(torch.ones(2), name, **params)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", (True, "0.1", None, [1.0], 1j, torch.tensor(0.1)))
def test_parameter_that_is_no_number_is_refused(value):
    pyrevgrad.leaky_relu(torch.ones(2), negative_slope=1)
    kind = type(value).__name__
    with pytest.raises(TypeError) as caught:
        pyrevgrad.leaky_relu(torch.ones(2), negative_slope=value)
    assert f"leaky_relu: negative_slope must be a number, not {kind}" in str(caught.value)


@pytest.mark.parametrize("value", (np.float32(0.25), np.float64(0.25), 0.25))
def test_parameter_may_be_any_real_number_as_a_scale_may(value):
    y = pyrevgrad.leaky_relu(torch.tensor([-4.0, 4.0]), negative_slope=value)
    assert y.tolist() == [-1.0, 4.0]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    (
        ("elu", "alfa", "elu has no parameter 'alfa': did you mean 'alpha'?"),
        ("relu", "alpha", "relu has no parameter 'alpha': it takes none"),
        ("hardtanh", "x", "hardtanh has no parameter 'x': choose from max_val, min_val"),
    ),
)
def test_unknown_parameter_lists_the_close_names(name, given, message):
    with pytest.raises(TypeError) as caught:
        pyrevgrad.activations.find(name).resolve({given: 1.0})
    assert str(caught.value) == message


@needs_native
@pytest.mark.parametrize("name", [row for row in WITH_TORCH if row != "gelu_tanh"])
def test_slope_far_beyond_saturation_is_the_limit(name):
    for dtype in FULL:
        x = torch.tensor([1e30, -1e30, 1e19, -1e19], dtype=dtype)
        _, slope = value_and_slope(torch_function(ACTIVATIONS[name], {}), x)
        with backend("native"):
            _, our_slope = value_and_slope(ours(name), x)
        torch.testing.assert_close(our_slope, slope, equal_nan=True)
