"""Exporters, tracers and functionalize refuse a rule that they would drop, and serve inference."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functionalize, grad, jvp, vmap

import pyrevgrad
from pyrevgrad import EXACT, GUIDED, TracingError, activation, reverse

pytestmark = pytest.mark.filterwarnings("ignore")

MODIFIED = [
    pyrevgrad.nn.Activation("relu", GUIDED),
    pyrevgrad.nn.Activation("gelu", reverse(0.3)),
    pyrevgrad.nn.GradientReversal(0.5),
]


def network(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), layer, nn.Linear(5, 2))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("layer", MODIFIED, ids=repr)
def test_export_refuses_a_modified_rule(layer, strict):
    with pytest.raises(Exception, match="would replace the backward of") as caught:
        torch.export.export(network(layer), (torch.randn(3, 4),), strict=strict)
    if not strict:
        assert isinstance(caught.value, TracingError)


def test_the_refusal_of_a_live_scale_names_no_number():
    message = r"the backward of reverse\(1.0\), times a scale that is a tensor, by the plain"
    with pytest.raises(TracingError, match=message):
        torch.jit.trace(pyrevgrad.nn.GradientReversal(0.5), torch.randn(3, requires_grad=True))


@pytest.mark.parametrize("layer", [*MODIFIED, pyrevgrad.nn.ReversedLinear(4, 5)], ids=repr)
def test_scripting_is_refused_by_name(layer):
    sentence = f"torch.jit.script cannot record the backward of {type(layer).__name__}; for"
    with pytest.raises(TracingError, match=sentence):
        torch.jit.script(nn.Sequential(layer))


class WithALiveScale(nn.Module):
    def forward(self, x, scale):
        return pyrevgrad.relu(pyrevgrad.reverse_gradient(x, scale), GUIDED.scaled(scale))


@pytest.mark.parametrize("strict", [True, False])
def test_export_of_a_function_with_a_live_scale_says_why_it_refuses(strict):
    given = (torch.randn(3, requires_grad=True), torch.tensor(0.5))
    with pytest.raises(Exception, match="would replace the backward of"):
        torch.export.export(WithALiveScale(), given, strict=strict)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("layer", MODIFIED, ids=repr)
def test_export_serves_inference(layer, strict):
    model, x = network(layer), torch.randn(3, 4)
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=strict)
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("layer", MODIFIED, ids=repr)
def test_a_program_exported_for_inference_gives_no_plain_gradient(layer):
    model, x = network(layer), torch.randn(3, 4, requires_grad=True)
    with torch.no_grad():
        program = torch.export.export(model, (x.detach(),), strict=False)
    y = program.module()(x).sum()
    gradient = torch.autograd.grad(y, x, allow_unused=True)[0] if y.requires_grad else None
    assert gradient is None


def test_export_keeps_the_exact_rule():
    model = network(pyrevgrad.nn.Activation("gelu", EXACT))
    x = torch.randn(3, 4, requires_grad=True)
    program = torch.export.export(model, (x.detach(),))
    expected = torch.autograd.grad(model(x).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(program.module()(x).sum(), x)[0], expected)


@pytest.mark.parametrize("layer", MODIFIED, ids=repr)
def test_symbolic_trace_refuses_a_modified_rule(layer):
    with pytest.raises(TracingError, match="symbolic_trace would replace the backward of"):
        torch.fx.symbolic_trace(network(layer))


@pytest.mark.parametrize("layer", MODIFIED, ids=repr)
def test_symbolic_trace_serves_inference_and_then_refuses_a_gradient(layer):
    model, x = network(layer), torch.randn(3, 4)
    with torch.no_grad():
        traced = torch.fx.symbolic_trace(model)
        assert torch.equal(traced(x), model(x))
    with pytest.raises(TracingError, match=r"traced under torch\.no_grad"):
        traced(x)


def test_symbolic_trace_keeps_the_exact_rule():
    model = network(pyrevgrad.nn.Activation("leaky_relu", negative_slope=0.2))
    x = torch.randn(3, 4, requires_grad=True)
    traced = torch.fx.symbolic_trace(model)
    expected = torch.autograd.grad(model(x).sum(), x)[0]
    assert torch.equal(torch.autograd.grad(traced(x).sum(), x)[0], expected)


@pytest.mark.parametrize("layer", MODIFIED, ids=repr)
def test_jit_trace_refuses_a_modified_rule(layer):
    with pytest.raises(TracingError, match="would replace the backward of"):
        torch.jit.trace(network(layer), torch.randn(3, 4))


def test_make_fx_keeps_the_modified_gradient():
    from torch.fx.experimental.proxy_tensor import make_fx

    def function(x, g):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(pyrevgrad.relu(x, GUIDED), x, g)[0]

    x, g = torch.randn(9), torch.randn(9)
    assert torch.equal(make_fx(function)(x, g)(x, g), function(x, g))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("rule", [EXACT, GUIDED, reverse(torch.tensor(2.0))], ids=str)
def test_functionalize_gives_the_value_where_no_gradient_can_be_needed(rule, inplace):
    function = functionalize(lambda x: activation(x * 1, "tanh", rule, inplace=inplace))
    x = torch.linspace(-2, 2, 7)
    torch.testing.assert_close(function(x), x.tanh())
    with torch.no_grad():
        torch.testing.assert_close(function(x.clone().requires_grad_()), x.tanh())
    if not inplace:
        torch.testing.assert_close(vmap(function)(x), x.tanh())


def test_functionalize_refuses_a_modified_rule_where_a_gradient_can_be_needed():
    function = functionalize(lambda x: activation(x, "tanh", reverse(2.0)))
    x = torch.linspace(-2, 2, 7)
    leaf = x.clone().requires_grad_()
    for call in (
        lambda: function(leaf),
        lambda: vmap(function)(leaf),
        lambda: functionalize(lambda x: activation(leaf, "tanh", reverse(2.0)) * x)(x),
        lambda: grad(lambda x: function(x).sum())(x),
        lambda: functionalize(grad(lambda x: activation(x, "tanh", reverse(2.0)).sum()))(x),
        lambda: jvp(function, (x,), (x,)),
    ):
        with pytest.raises(TracingError, match=r"functionalize .* backward of reverse\(2\.0\)"):
            call()


def test_functionalize_keeps_the_exact_rules_gradient():
    function = functionalize(lambda x: activation(x, "tanh"))
    x = torch.linspace(-2, 2, 7)
    slope = 1 - x.tanh() ** 2
    torch.testing.assert_close(grad(lambda x: function(x).sum())(x), slope)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(function(leaf).sum(), leaf)[0], slope)
    torch.testing.assert_close(jvp(function, (x,), (x,))[1], slope * x)


def test_fake_tensors_get_shapes_and_strides():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(2, 3, 4, 5, requires_grad=True)
        x = x.contiguous(memory_format=torch.channels_last)
        y = pyrevgrad.relu(x, GUIDED)
        gx = torch.autograd.grad(y.sum(), x)[0]
    assert y.shape == gx.shape == (2, 3, 4, 5)
    assert y.stride() == x.stride()


def test_meta_tensors_are_served_by_the_reference():
    x = torch.empty(3, 4, device="meta", requires_grad=True)
    y = pyrevgrad.gelu(x, reverse(0.3))
    assert y.is_meta and torch.autograd.grad(y.sum(), x)[0].shape == (3, 4)
