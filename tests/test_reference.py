"""The reference backend: its own derivatives, the NumPy gates that check it, and where it serves.

It may import the package, the gates and the oracle in oracle.py.
"""

import numpy as np
import pytest
import torch
from grids import (
    array,
    one_thread,  # noqa: F401
    run,
)
from oracle import (
    DEFAULTS,
    FORMULAS,
    FROM_OUTPUT,
)

import pyrevgrad
from pyrevgrad import EXACT, GUIDED, backend, rectgrad, reverse, rules
from pyrevgrad.activations import ACTIVATIONS
from pyrevgrad.backends import REFERENCE, pairs_of
from pyrevgrad.reference import eager, gates

SMOOTH_SECOND = ("softplus", "sigmoid", "logsigmoid", "tanh", "tanhshrink", "gelu", "gelu_tanh",
                 "silu", "mish", "relu_squared", "elu", "selu", "celu", "softsign")  # fmt: skip
#: Two-slope rows whose output tells which slope holds.
TELLING = ("relu", "leaky_relu", "relu6", "hardtanh", "hardshrink")


@pytest.fixture(autouse=True)
def on_the_reference():
    with backend("reference"):
        yield


def away_from_kinks(name, count=401):
    """Numbers of [-8, 8] at least .01 from every kink, where a difference quotient is honest."""
    row = ACTIVATIONS[name]
    x = torch.linspace(-8, 8, count, dtype=torch.float64) + 1.234e-3
    kinks = [0.0, *row.kink_values(row.resolve({}))]
    if name == "round":
        return x[((x % 1) - 0.5).abs() > 0.01]
    return x[torch.stack([(x - kink).abs() > 0.01 for kink in kinks]).all(0)]


@pytest.mark.parametrize("name", FORMULAS)
def test_slope_is_the_difference_quotient_of_the_value(name):
    x, step = away_from_kinks(name), 1e-6
    pair = pairs_of(name, EXACT, {}).full
    quotient = (eager.value(x + step, pair) - eager.value(x - step, pair)) / (2 * step)
    _, gx = run(x, torch.ones_like(x), name, EXACT)
    torch.testing.assert_close(gx, quotient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FORMULAS)
def test_slope_is_autograds_derivative_of_the_value(name):
    x = away_from_kinks(name).requires_grad_()
    y = eager.value(x, pairs_of(name, EXACT, {}).full)
    if not y.requires_grad:
        wanted = torch.zeros_like(x)
    else:
        (wanted,) = torch.autograd.grad(y.sum(), x)
    _, gx = run(x, torch.ones_like(x), name, EXACT)
    torch.testing.assert_close(gx, wanted)


@pytest.mark.parametrize("name", SMOOTH_SECOND)
def test_second_derivative_is_the_difference_quotient_of_the_slope(name):
    x, step = away_from_kinks(name), 1e-6
    ones = torch.ones_like(x)
    quotient = run(x + step, ones, name, EXACT)[1] - run(x - step, ones, name, EXACT)[1]
    leaf = x.clone().requires_grad_()
    y = pyrevgrad.activation(leaf, name)
    (gx,) = torch.autograd.grad(y, leaf, ones, create_graph=True)
    (second,) = torch.autograd.grad(gx.sum(), leaf)
    torch.testing.assert_close(second, quotient / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", (*FROM_OUTPUT, *TELLING))
def test_slope_from_the_output_is_the_slope_from_the_input(name):
    pair = pairs_of(name, EXACT, {}).full
    x = torch.linspace(-6, 6, 241, dtype=torch.float64)
    y = eager.value(x, pair)
    from_output, _ = eager.slope_of_output(y, pair)
    from_input, _ = eager.slope_of_input(x, pair)
    torch.testing.assert_close(from_output, from_input, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", (*FROM_OUTPUT, *TELLING, "identity"))
def test_derivative_of_output_ignores_the_rule(name):
    pair = pairs_of(name, rectgrad(1e9), {}).full
    assert pair.keeps == "output"
    x = away_from_kinks(name, 61)
    g = torch.linspace(-2, 2, len(x), dtype=torch.float64)
    got = eager.derivative_of_output(g, eager.value(x, pair), pair)
    slope = FORMULAS[name].slope(x.numpy(), *DEFAULTS.get(name, ()))
    torch.testing.assert_close(got, g * torch.from_numpy(np.asarray(slope)))


@pytest.mark.parametrize(
    ("gate", "name", "rule"),
    (
        (gates.Sigmoid, "sigmoid", EXACT),
        (gates.Tanh, "tanh", EXACT),
        (gates.Relu, "relu", EXACT),
        (gates.GuidedRelu, "relu", GUIDED),
        (lambda: gates.Reversal(0.3), "identity", reverse(0.3)),
    ),
)
def test_gates_agree_with_the_reference(gate, name, rule):
    generator = np.random.default_rng(0)
    x, g = 4 * generator.standard_normal((2, 7, 19))
    made = gate()
    value = made.forward(x)
    (gradient,) = made.backward(g)
    y, gx = run(torch.from_numpy(x), torch.from_numpy(g), name, rule)
    np.testing.assert_allclose(array(y), value.ravel(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(array(gx), gradient.ravel(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", FORMULAS)
def test_meta_tensors_are_served(name):
    x = torch.empty(2, 3, 4, 5, device="meta").to(memory_format=torch.channels_last)
    for rule_name in ("EXACT", "GUIDED", "clipped_straight_through", "rectgrad"):
        leaf = x.detach().requires_grad_()
        y = pyrevgrad.activation(leaf, name, rules.RULES[rule_name])
        y.sum().backward()
        assert y.device.type == "meta"
        assert y.shape == leaf.grad.shape == x.shape
        assert y.stride() == x.stride()


@pytest.mark.parametrize("name", FORMULAS)
def test_masks_of_the_reference_are_booleans_of_the_input(name):
    pair = pairs_of(name, GUIDED, {}).full
    x = torch.tensor([-1.0, -0.0, 0.0, 1e-40, 2.0, float("nan"), float("inf"), -float("inf")])
    y, mask = REFERENCE.value_and_mask(x, pair)
    assert mask.tolist() == [False, False, False, True, True, True, True, False]
    assert y.shape == x.shape


@pytest.mark.parametrize("name", FORMULAS)
def test_half_types_compute_in_float32_and_round_once(name):
    pair = pairs_of(name, EXACT, {}).half
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.linspace(-7, 7, 999).to(dtype)
        torch.testing.assert_close(
            eager.value(x, pair), eager.value(x.float(), pair).to(dtype), rtol=0, atol=0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensor_scale_is_multiplied_in_float64_and_rounded_once(dtype):
    x, g = torch.zeros(7, dtype=dtype, requires_grad=True), torch.randn(7).to(dtype)
    for tensor in torch.linspace(0.1, 3, 50, dtype=torch.float64):
        y = pyrevgrad.activation(x, "identity", reverse(0.1).scaled(tensor))
        (gx,) = torch.autograd.grad(y, x, g)
        scale = np.float32(-0.1 * tensor.item())
        assert torch.equal(gx, torch.from_numpy(scale * g.float().numpy()).to(dtype))


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "identity"])
def test_number_past_float32_times_a_small_tensor_is_what_their_product_says(name):
    rule = reverse(1e39).scaled(torch.tensor(1e-10, dtype=torch.float64))
    x, g = torch.tensor([-0.7, 0.4, 1.3]), torch.tensor([1.0, -2.0, 0.5])
    with pyrevgrad.backend("reference"):
        _, gx = run(x, g, name, rule)
    slope = torch.as_tensor(FORMULAS[name].slope(x.double().numpy(), *DEFAULTS.get(name, ())))
    torch.testing.assert_close(gx, (-1e29 * slope * g).float())
