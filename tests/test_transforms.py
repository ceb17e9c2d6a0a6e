"""torch.func and forward mode: every transform honours the rule or refuses, never drops it."""

import pytest
import torch
from expected import BACKENDS, SAMPLE, gradient, points, value
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp
from torch.func import vmap as vectorized

import pyrevgrad
from pyrevgrad import (
    DECONVNET,
    EXACT,
    GUIDED,
    STRAIGHT_THROUGH,
    BackendError,
    TracingError,
    activation,
    clipped_straight_through,
    reverse,
    reverse_gradient,
)
from pyrevgrad.activations import ACTIVATIONS
from pyrevgrad.rules import RULES

LINEAR = [name for name, rule in RULES.items() if rule.is_linear]
NOT_LINEAR = [name for name, rule in RULES.items() if not rule.is_linear]
every_sample = pytest.mark.parametrize(("name", "rule"), SAMPLE)
NO_JVP = r"is not linear in the gradient, so it has no jvp"


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def test_the_rules_that_are_linear_in_the_gradient_are_those_without_a_gradient_gate():
    assert set(LINEAR) == {"EXACT", "reverse", "STRAIGHT_THROUGH", "clipped_straight_through"}


# Reverse mode.


@pytest.mark.parametrize(
    ("transform", "scale"), [(grad, 0.1231), (vectorized, 0.1232), (jacfwd, 0.1233)]
)
def test_a_rule_first_met_inside_a_transform_serves_later_calls(transform, scale):
    x = draw(5)
    transform(lambda at: activation(at, "relu", reverse(scale)).sum())(x)
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(activation(leaf, "relu", reverse(scale)).sum(), leaf)
    torch.testing.assert_close(found, -scale * (x > 0).double())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_grad_and_vjp_give_the_modified_gradient_as_eager_does(name, rule):
    x, g = points(name, rule)
    wanted = gradient(name, rule, x, g).detach()
    found = grad(lambda at: (g * activation(at, name, RULES[rule])).sum())(x)
    torch.testing.assert_close(found, wanted)
    y, pull = vjp(lambda at: activation(at, name, RULES[rule]), x)
    torch.testing.assert_close(y, value(name, x))
    torch.testing.assert_close(pull(g)[0], wanted)
    leaf = x.clone().requires_grad_()
    eager = torch.autograd.grad(activation(leaf, name, RULES[rule]), leaf, g)[0]
    torch.testing.assert_close(found, eager)


@every_sample
@pytest.mark.parametrize("inplace", [False, True])
def test_the_nestings_of_vmap_and_grad_agree(name, rule, inplace):
    x, g = points(name, rule)
    x, g = x[:30].reshape(5, 6), g[:30].reshape(5, 6)
    wanted = gradient(name, rule, x, g).detach()

    def loss(at, weight):
        at = at.clone() if inplace else at
        return (weight * activation(at, name, RULES[rule], inplace=inplace)).sum()

    torch.testing.assert_close(vectorized(grad(loss))(x, g), wanted)
    batched = grad(lambda at: vectorized(loss)(at, g).sum())(x)
    torch.testing.assert_close(batched, wanted)
    twice = vectorized(vectorized(grad(loss)), in_dims=1, out_dims=1)
    torch.testing.assert_close(twice(x.unsqueeze(-1), g.unsqueeze(-1)).squeeze(-1), wanted)
    chunked = vectorized(grad(loss), in_dims=1, out_dims=1, chunk_size=2)
    torch.testing.assert_close(chunked(x, g), wanted)


@every_sample
def test_jacrev_is_the_diagonal_of_the_modified_slopes(name, rule):
    x, _ = points(name, rule)
    x = x[::4]
    ones = torch.ones_like(x)
    wanted = gradient(name, rule, x, ones).detach()
    found = jacrev(lambda at: activation(at, name, RULES[rule]))(x)
    torch.testing.assert_close(torch.diagonal(found), wanted)
    assert not (found - torch.diag(torch.diagonal(found))).any()


@every_sample
def test_second_derivatives_by_jacrev_of_jacrev_are_eagers(name, rule):
    x, _ = points(name, rule)
    x, weight = x[::5], draw(len(x[::5]))

    def loss(at):
        y = activation(at, name, RULES[rule])
        return (weight * y * y).sum()

    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    rows = [
        torch.autograd.grad(part, leaf, retain_graph=True, allow_unused=True)[0]
        if part.requires_grad
        else None
        for part in first
    ]
    wanted = torch.stack([torch.zeros_like(x) if row is None else row for row in rows])
    torch.testing.assert_close(jacrev(jacrev(loss))(x), wanted)


# Forward mode.


@pytest.mark.parametrize("rule", LINEAR)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_jvp_of_a_linear_rule_is_its_modified_slope_times_the_tangent(name, rule):
    x, tangent = points(name, rule)
    wanted = gradient(name, rule, x, tangent).detach()
    y, found = jvp(lambda at: activation(at, name, RULES[rule]), (x,), (tangent,))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(y, value(name, x))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        found = forward_ad.unpack_dual(activation(dual, name, RULES[rule])).tangent
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("rule", NOT_LINEAR)
@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "identity"])
def test_forward_mode_of_another_rule_is_refused(name, rule):
    x, tangent = points(name, rule)

    def function(at):
        return activation(at, name, RULES[rule])

    with pytest.raises(TracingError, match=NO_JVP):
        jvp(function, (x,), (tangent,))
    with pytest.raises(TracingError, match=NO_JVP):
        jacfwd(function)(x)
    with pytest.raises(TracingError, match=NO_JVP):
        hessian(lambda at: function(at).sum())(x)
    with forward_ad.dual_level(), pytest.raises(TracingError, match=NO_JVP):
        function(forward_ad.make_dual(x, tangent))


def test_a_dual_level_leaves_tensors_without_a_tangent_alone():
    x = torch.tensor([1.0, -1.0], requires_grad=True)
    with forward_ad.dual_level():
        activation(x, "relu", GUIDED).sum().backward()
    assert torch.equal(x.grad, torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("rule", LINEAR)
@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "elu", "identity"])
def test_jacfwd_is_jacrev_and_hessian_is_jacrev_of_jacrev(name, rule):
    x, _ = points(name, rule)
    x, weight = x[::5], draw(len(x[::5]))

    def function(at):
        return activation(at, name, RULES[rule])

    def loss(at):
        return (weight * function(at).square()).sum()

    torch.testing.assert_close(jacfwd(function)(x), jacrev(function)(x))
    torch.testing.assert_close(hessian(loss)(x), jacrev(jacrev(loss))(x))
    torch.testing.assert_close(jacrev(jacfwd(loss))(x), jacrev(jacrev(loss))(x))


@pytest.mark.parametrize("rule", LINEAR)
@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "elu", "identity"])
def test_forward_mode_of_forward_mode_is_right_where_exact_and_refused_elsewhere(name, rule):
    """PyTorch drops the outer derivative of a custom Function's jvp without a word."""
    x, _ = points(name, rule)

    def loss(at):
        return activation(at, name, RULES[rule]).square().sum()

    if rule != "EXACT":
        with pytest.raises(TracingError, match="forward-mode of forward-mode"):
            jacfwd(jacfwd(loss))(x[::5])
        return
    torch.testing.assert_close(jacfwd(jacfwd(loss))(x[::5]), jacrev(jacrev(loss))(x[::5]))


@pytest.mark.parametrize("name", ["tanh", "softplus", "silu"])
def test_the_hessian_of_the_exact_rule_is_torchs(name):
    x = draw(5)
    weight = draw(5, seed=1)
    found = hessian(lambda at: (weight * activation(at, name).square()).sum())(x)
    wanted = hessian(lambda at: (weight * getattr(torch.nn.functional, name)(at).square()).sum())(x)
    torch.testing.assert_close(found, wanted)


# Scales.


def test_a_batched_scale_scales_each_sample():
    x, scales = draw(4, 3), torch.tensor([0.0, 0.5, 1.0, 2.0])
    wanted = -scales.double().unsqueeze(1).expand(4, 3)

    def one(at, scale):
        return grad(lambda z: reverse_gradient(z, scale).sum())(at)

    assert torch.equal(vectorized(one)(x, scales), wanted)
    assert torch.equal(vectorized(one, in_dims=(1, 0))(x.T, scales), wanted)
    shared = vectorized(one, in_dims=(None, 0))(x[0], scales)
    assert torch.equal(shared, wanted)


@every_sample
def test_a_batched_scale_multiplies_every_rule(name, rule):
    x, g = points(name, rule)
    x, g = x[:30].reshape(5, 6), g[:30].reshape(5, 6)
    scales = torch.tensor([0.5, -1.0, 2.0, 0.25, 4.0])
    rules = RULES[rule]
    wanted = scales.double().unsqueeze(1) * gradient(name, rule, x, g).detach()

    def loss(at, weight, scale):
        return (weight * activation(at, name, rules.scaled(scale))).sum()

    torch.testing.assert_close(vectorized(grad(loss))(x, g, scales), wanted)

    def total(at):
        return vectorized(loss)(at, g, scales).sum()

    torch.testing.assert_close(grad(total)(x), wanted)


def test_a_live_scale_is_read_when_the_pullback_runs():
    scale = torch.tensor(1.0)
    _, pull = vjp(lambda at: reverse_gradient(at, scale), torch.ones(2))
    scale.fill_(3.0)
    assert torch.equal(pull(torch.ones(2))[0], torch.full((2,), -3.0))


def test_a_gradient_in_the_scale_is_refused():
    x = torch.ones(3)
    with pytest.raises(ValueError, match="no gradient flows to scale"):
        grad(lambda scale: reverse_gradient(x, scale).sum())(torch.tensor(0.5))


# Networks.


class Adversarial(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Linear(3, 5)
        self.guided = pyrevgrad.nn.Activation("tanh", reverse(torch.tensor(0.7)))
        self.reversal = pyrevgrad.nn.GradientReversal(0.5)
        self.relu = pyrevgrad.nn.Activation("relu", GUIDED)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.relu(self.reversal(self.guided(self.features(x)))))


def test_per_sample_gradients_are_those_of_each_sample_alone():
    model = Adversarial().double()
    x, labels = draw(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters, at, label):
        logits = functional_call(model, (parameters, buffers), (at.unsqueeze(0),))
        return nn.functional.cross_entropy(logits, label.unsqueeze(0))

    found = vectorized(grad(loss), in_dims=(None, 0, 0))(parameters, x, labels)
    for i in range(6):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[i : i + 1]), labels[i : i + 1]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][i], parameter.grad)


def test_an_ensemble_keeps_each_models_own_scale():
    models = [Adversarial().double() for _ in range(3)]
    for model, scale in zip(models, (0.1, 0.5, 2.0), strict=True):
        model.reversal.scale = scale
    parameters, buffers = stack_module_state(models)
    x = draw(4, 3)

    def loss(parameters, buffers):
        return functional_call(models[0], (parameters, buffers), (x,)).square().sum()

    found = vectorized(grad(loss))(parameters, buffers)
    for i, model in enumerate(models):
        model(x).square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][i], parameter.grad)


@pytest.mark.parametrize("strategy", ["forward-mode", "reverse-mode"])
@pytest.mark.parametrize("rule", [STRAIGHT_THROUGH, clipped_straight_through(-1, 1), reverse(2.0)])
def test_the_jacobian_of_torch_autograd_is_the_modified_one(rule, strategy):
    x = torch.tensor([-2.0, -0.5, 0.5], dtype=torch.float64)
    found = torch.autograd.functional.jacobian(
        lambda at: activation(at, "sign", rule), x, vectorize=True, strategy=strategy
    )
    wanted = {-2.0: [0.0, 0.0, 0.0]}.get(rule.scale)
    if wanted is None:
        wanted = [1.0, 1.0, 1.0] if rule.input_gate is None else [0.0, 1.0, 1.0]
    assert torch.equal(found, torch.diag(torch.tensor(wanted, dtype=torch.float64)))


def test_deconvnet_in_a_batched_jacobian_blocks_each_row_by_its_own_gradient():
    model = nn.Sequential(nn.Linear(3, 4), pyrevgrad.nn.Activation("relu", DECONVNET)).double()
    x = draw(3)
    found = torch.autograd.functional.jacobian(lambda at: -model(at), x, vectorize=True)
    assert not found.any()


@pytest.mark.skipif("native" not in BACKENDS, reason="the native library is not built")
def test_a_backend_that_serves_no_transform_is_refused():
    with pyrevgrad.backend("native"), pytest.raises(BackendError, match=r"torch\.func transforms"):
        grad(lambda at: activation(at, "relu", GUIDED).sum())(torch.ones(2))
    with pyrevgrad.backend("reference"):
        grad(lambda at: activation(at, "relu", GUIDED).sum())(torch.ones(2))


@pytest.mark.parametrize("recorder", ["nodes", "functions"])
@pytest.mark.parametrize("rule", [EXACT, reverse(0.3)], ids=repr)
@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "identity"])
def test_the_tangent_of_an_incoming_gradient_is_sent_along(name, rule, recorder, monkeypatch):
    if recorder == "functions":
        monkeypatch.setattr(pyrevgrad.autograd, "NODES", None)
    x = torch.randn(5, requires_grad=True)
    g, tangent = torch.randn(5), torch.randn(5)
    y = pyrevgrad.activation(x, name, rule)
    (wanted,) = torch.autograd.grad(y, x, tangent, retain_graph=True)
    with forward_ad.dual_level():
        (gx,) = torch.autograd.grad(y, x, forward_ad.make_dual(g, tangent))
        found = forward_ad.unpack_dual(gx).tangent
    # The gradient is linear in g: what happens to a tangent happens to g.
    torch.testing.assert_close(found, wanted)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rule", [GUIDED, reverse(0.3)], ids=repr)
@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_vmap_over_a_plain_calls_gradient_is_silent_and_right(name, rule):
    x, g = torch.randn(5, requires_grad=True), torch.randn(3, 5)
    y = pyrevgrad.activation(x, name, rule)

    def backward(one):
        return torch.autograd.grad(y, x, one, retain_graph=True)[0]

    torch.testing.assert_close(torch.func.vmap(backward)(g), torch.stack([*map(backward, g)]))
