"""Gradients of gradients: every activation and rule, gates held fixed, to the third order."""

import pytest
import torch
from expected import BACKENDS, SAMPLE, gradient, points, slope
from torch import nn

import pyrevgrad
from pyrevgrad import EXACT, GUIDED, activation, plan, reverse, reverse_gradient
from pyrevgrad.activations import ACTIVATIONS
from pyrevgrad.rules import RULES

pytestmark = pytest.mark.usefixtures("nodes")

every_pair = [
    pytest.mark.parametrize("name", ACTIVATIONS),
    pytest.mark.parametrize("rule", RULES),
]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def for_every_pair(test):
    for mark in every_pair:
        test = mark(test)
    return test


def leaves(name, rule):
    x, g = points(name, rule)
    return x.requires_grad_(), g.requires_grad_()


def derivatives(y, inputs):
    """dy/d(inputs), 0 where y does not depend on one, differentiable again."""
    if not y.requires_grad:
        return [torch.zeros_like(at) for at in inputs]
    found = torch.autograd.grad(y, inputs, create_graph=True, allow_unused=True)
    return [
        torch.zeros_like(at) if one is None else one for one, at in zip(found, inputs, strict=True)
    ]


def weights(like, seed=0):
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(like.dtype)


def orders(gx, x, g):
    """gx, its derivatives in x and g, and theirs, each contracted with fixed weights."""
    second = derivatives((weights(gx) * gx).sum(), (x, g))
    third = derivatives(sum((weights(one, 1) * one * one).sum() for one in second), (x, g))
    return [gx, *second, *third]


@every_backend
@for_every_pair
def test_gx_and_its_derivatives_to_third_order_are_those_of_the_formula(name, rule, backend):
    x, g = leaves(name, rule)
    with pyrevgrad.backend(backend):
        y = activation(x, name, RULES[rule])
    (gx,) = torch.autograd.grad(y, x, g, create_graph=True)
    for order, (ours, wanted) in enumerate(
        zip(orders(gx, x, g), orders(gradient(name, rule, x, g), x, g), strict=True)
    ):
        torch.testing.assert_close(ours, wanted, msg=lambda text, n=order: f"part {n}: {text}")


@every_backend
@for_every_pair
def test_a_first_order_backward_is_the_formula(name, rule, backend):
    x, g = points(name, rule)
    x.requires_grad_()
    with pyrevgrad.backend(backend):
        y = activation(x, name, RULES[rule])
    (gx,) = torch.autograd.grad(y, x, g)
    torch.testing.assert_close(gx, gradient(name, rule, x, g).detach())
    assert gx.grad_fn is None


@for_every_pair
def test_the_derivative_of_a_gradient_is_its_finite_difference(name, rule):
    x, g = leaves(name, rule)
    x, g = x[::3].detach().requires_grad_(), g[::3].detach().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda at: activation(at, name, RULES[rule]), (x,), (g,), fast_mode=False
    )


@every_backend
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_exact_gradient_is_the_finite_difference_of_the_value(name, backend):
    x, _ = points(name, "EXACT")
    with pyrevgrad.backend(backend):
        assert torch.autograd.gradcheck(
            lambda at: activation(at, name), (x.requires_grad_(),), fast_mode=False
        )


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("name", "rule"), SAMPLE)
def test_double_backward_reaches_what_lies_before_the_activation(name, rule, inplace):
    """The kept tensor leads back to x, through an activation in place too."""
    w, g = leaves(name, rule)
    x = 1.1 * w
    y = activation(x.clone(), name, RULES[rule], inplace=inplace)
    gw = derivatives((y * g).sum(), (w,))[0]
    wanted = 1.1 * gradient(name, rule, x, g)
    torch.testing.assert_close(gw, wanted)
    for ours, theirs in zip(
        derivatives((weights(gw) * gw).sum(), (w, g)),
        derivatives((weights(gw) * wanted).sum(), (w, g)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("name", "rule"), SAMPLE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_first_order_with_a_graph_agrees_with_the_one_without_in_half_types(name, rule, dtype):
    x, g = (part.to(dtype) for part in points(name, rule))
    x.requires_grad_()
    plain = torch.autograd.grad(activation(x, name, RULES[rule]), x, g)[0]
    with_graph = torch.autograd.grad(
        activation(x, name, RULES[rule]), x, g.requires_grad_(), create_graph=True
    )[0]
    assert with_graph.dtype == plain.dtype == dtype
    torch.testing.assert_close(with_graph.detach(), plain)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "identity"])
def test_a_tensor_scale_is_a_constant_of_every_order(name):
    x, g = leaves(name, "EXACT")
    scale = torch.tensor(0.7)
    y = activation(x, name, reverse(scale))
    gx = torch.autograd.grad(y, x, g, create_graph=True)[0]
    factor = -float(scale)
    wanted = gradient(name, "EXACT", x, g, factor)
    for ours, theirs in zip(orders(gx, x, g), orders(wanted, x, g), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert scale.grad is None


OUTPUT_KEEPING = [
    name for name in ACTIVATIONS if plan(name, reverse(0.5), torch.float64).keeps == "output"
]


@pytest.mark.parametrize("name", OUTPUT_KEEPING)
def test_a_loss_of_the_value_and_of_its_gradient_gets_both_parts(name):
    x = points(name, "reverse")[0].requires_grad_()
    # Not a leaf, whose gradient may arrive in two parts and be added up elsewhere.
    y = activation(x * 1.0, name, reverse(0.5))
    (gx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(y.sum() + gx.square().sum(), x)
    # By PyTorch alone: y's part is −f'/2; that of gx² = f'²/4 is f'·f''/2, by the derivative.
    s = slope(name, x)
    (of_square,) = derivatives((s.square() / 4).sum(), [x])
    torch.testing.assert_close(found, of_square - s.detach() / 2)


def test_reversing_twice_differentiated_twice_is_the_plain_second_derivative():
    x = torch.tensor([0.3, -1.2], dtype=torch.float64, requires_grad=True)
    y = reverse_gradient(reverse_gradient(x, 2.0), 0.5) ** 3
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.testing.assert_close(first, 3 * x**2)
    # The derivative of 3·z², z = x forward: each pass through the two reversals gives 2·0.5 = 1.
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, 6 * x.detach())


def test_a_gradient_penalty_trains_through_a_modified_network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), pyrevgrad.nn.Activation("softplus", GUIDED), nn.Linear(4, 1)
    ).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    (gx,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (gx * gx).sum().backward()
    first, last = model[0], model[2]
    # GUIDED has slope 1: gx = (v·gate) W with gates fixed, so b1 gets no gradient at all.
    h = x.detach() @ first.weight.T + first.bias
    with torch.enable_grad():
        W, v = (p.detach().requires_grad_() for p in (first.weight, last.weight))
        by_hand = torch.where((h > 0) & (v > 0), v, 0.0) @ W
        by_hand.square().sum().backward()
    torch.testing.assert_close(gx, by_hand)
    torch.testing.assert_close(first.weight.grad, W.grad)
    torch.testing.assert_close(last.weight.grad, v.grad)
    assert first.bias.grad is None or not first.bias.grad.any()


@pytest.mark.parametrize("name", ["relu", "tanh", "silu"])
def test_a_hessian_of_the_exact_rule_is_that_of_torch(name):
    x = points(name, "EXACT")[0][::4]
    weight = weights(x)

    def ours(at):
        return (weight * activation(at, name, EXACT)).square().sum()

    def theirs(at):
        function = getattr(torch.nn.functional, name)
        return (weight * function(at)).square().sum()

    hessian = torch.autograd.functional.hessian
    torch.testing.assert_close(hessian(ours, x), hessian(theirs, x))


@every_backend
@pytest.mark.parametrize("order", [(0, 3, 1, 2), (3, 0, 2, 1)], ids=["channels_last", "permuted"])
def test_the_derivative_of_gx_in_g_is_the_gate_in_other_memory_orders_too(order, backend):
    dense = [torch.randn(2, 3, 4, 5) for _ in range(2)]
    x, g = (one.permute(order).requires_grad_() for one in dense)
    with pyrevgrad.backend(backend):
        (gx,) = torch.autograd.grad(pyrevgrad.relu(x, GUIDED), x, g, create_graph=True)
        (gg,) = torch.autograd.grad(gx.sum(), g)
    gate = ((x > 0) & (g > 0)).float()
    assert torch.equal(gg, gate) and torch.equal(gx, gate * g)
