"""The layers: values and gradients, what may be set, schedules, and readable reprs."""

import copy

import pytest
import torch
from expected import SAMPLE, gradient, points, slopes, value
from torch import nn
from torch._subclasses import FakeTensorMode

import pyrevgrad
from pyrevgrad import DECONVNET, GUIDED, activation, reverse
from pyrevgrad.activations import ACTIVATIONS
from pyrevgrad.nn import Activation, GradientReversal, ReversedLinear
from pyrevgrad.rules import RULES
from pyrevgrad.schedules import GaninSchedule, LinearSchedule

# Value and gradient.


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_layer_is_its_function(name, rule):
    x, g = points(name, rule)
    x.requires_grad_()
    y = Activation(name, RULES[rule])(x)
    torch.testing.assert_close(y, value(name, x))
    (gx,) = torch.autograd.grad(y, x, g)
    wanted = torch.autograd.grad(activation(x, name, RULES[rule]), x, g)[0]
    assert torch.equal(gx, wanted)


@pytest.mark.parametrize(("name", "rule"), SAMPLE)
def test_training_or_eval_mode_changes_nothing(name, rule):
    x, g = points(name, rule)
    layer = Activation(name, RULES[rule])
    for mode in (layer.train(), layer.eval()):
        at = x.clone().requires_grad_()
        mode(at).backward(g)
        torch.testing.assert_close(at.grad, gradient(name, rule, x, g).detach())
    reversal = GradientReversal(0.5)
    assert slopes(reversal.train()) == slopes(reversal.eval()) == [-0.5, -0.5]


def test_parameters_and_inplace_reach_the_function():
    layer = Activation("leaky_relu", rule=reverse(0.5), inplace=True, negative_slope=0.25)
    leaf = torch.tensor([-4.0, 4.0], requires_grad=True)
    x = leaf * 1.0
    assert layer(x) is x
    assert x.tolist() == [-1.0, 4.0]
    x.sum().backward()
    assert leaf.grad.tolist() == [-0.125, -0.5]


def test_gradient_reversal_is_a_view_and_scales_by_minus_lambda():
    x = torch.ones(2, requires_grad=True)
    y = GradientReversal(0.25)(x)
    assert y._is_view() and y.data_ptr() == x.data_ptr()
    y.sum().backward()
    assert x.grad.tolist() == [-0.25, -0.25]


def test_gradient_reversal_without_an_argument_reverses_by_one():
    assert slopes(GradientReversal()) == [-1.0, -1.0]


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor(0.5, dtype=torch.bfloat16)])
def test_a_tensor_scale_is_copied(scale):
    layers = [GradientReversal(scale), Activation("relu", reverse(scale))]
    scale.fill_(9.0)
    for layer in layers:
        assert slopes(layer) == [-0.5, -0.5]
        assert layer.scale.dtype == torch.float64 and layer.scale.shape == ()


# Setting.


@pytest.mark.parametrize("new", [0.25, 2, torch.tensor(0.75), torch.tensor(3.0).double()])
@pytest.mark.parametrize(
    "layer", [GradientReversal(1.0), Activation("relu", reverse(torch.tensor(1.0)))], ids=repr
)
def test_a_scale_is_set_by_assignment_in_place(layer, new):
    layer = copy.deepcopy(layer)
    buffer = layer.scale
    x = torch.ones(2, requires_grad=True)
    y = layer(x)
    layer.scale = new
    assert layer.scale is buffer and buffer.dtype == torch.float64
    y.sum().backward()
    assert x.grad.tolist() == [-float(new)] * 2 == slopes(layer)
    layer.set_scale(4.0)
    assert slopes(layer) == [-4.0, -4.0]


@pytest.mark.parametrize("bad", ["0.5", None, True, torch.ones(2), torch.tensor(1)])
def test_a_bad_scale_is_refused_and_the_old_one_stays(bad):
    layer = GradientReversal(0.5)
    with pytest.raises((TypeError, ValueError), match="scale must be"):
        layer.scale = bad
    assert slopes(layer) == [-0.5, -0.5]


@pytest.mark.parametrize("nan", [float("nan"), torch.tensor(float("nan"))], ids=["float", "tensor"])
def test_a_scale_of_nan_is_refused_and_the_old_one_stays(nan):
    for make in (GradientReversal, lambda scale: ReversedLinear(2, 2, scale=scale)):
        with pytest.raises(ValueError, match="scale must not be NaN"):
            make(nan)
        layer = make(0.5)
        with pytest.raises(ValueError, match="scale must not be NaN"):
            layer.set_scale(nan)
        assert layer.scale.item() == 0.5
    layer = Activation("relu", reverse(torch.tensor(0.5)))
    with pytest.raises(ValueError, match="scale must not be NaN"):
        layer.rule = reverse(nan)
    assert slopes(layer) == [-0.5, -0.5]


@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
def test_compiled_code_sets_a_scale_by_a_tensor_and_a_fake_one_makes_a_layer():
    layer = GradientReversal(0.5)

    def setting(x, scale):
        layer.scale = scale
        return layer(x)

    setting = torch.compile(setting, backend="aot_eager")
    assert slopes(lambda x: setting(x, torch.tensor(0.25))) == [-0.25, -0.25]
    with FakeTensorMode():
        assert GradientReversal(torch.tensor(0.5)).scale.shape == ()


@pytest.mark.parametrize("new", [0.5, torch.tensor(0.5), torch.ones(3)])
def test_a_layer_whose_rule_has_a_number_says_how_to_change_its_scale(new):
    layer = Activation("relu", reverse(0.3))
    with pytest.raises((TypeError, ValueError), match="rule"):
        layer.scale = new
    with pytest.raises((TypeError, ValueError), match="rule"):
        layer.set_scale(new)
    torch.testing.assert_close(slopes(layer), [-0.3, -0.3])


def test_a_rule_is_set_by_assignment():
    layer = Activation("relu")
    assert slopes(layer, (-1.0, 2.0)) == [0.0, 1.0]
    layer.rule = reverse(torch.tensor(0.5))
    assert slopes(layer, (-1.0, 2.0)) == [0.0, -0.5]
    assert "scale" in layer.state_dict()
    layer.scale = 2.0
    assert slopes(layer, (-1.0, 2.0)) == [0.0, -2.0]
    layer.rule = DECONVNET
    assert slopes(layer, (-1.0, 2.0)) == [1.0, 1.0]
    assert layer.rule == DECONVNET and not layer.state_dict()
    with pytest.raises(TypeError, match="rule must be a"):
        layer.rule = "guided"
    assert layer.rule == DECONVNET


@pytest.mark.parametrize(
    ("ours", "pytorchs"),
    [
        (Activation("leaky_relu", negative_slope=0.25), nn.LeakyReLU(0.25)),
        (Activation("hardtanh", min_val=-2.0), nn.Hardtanh(-2.0)),
        (Activation("elu"), nn.ELU()),
        (Activation("celu", alpha=2.0), nn.CELU(2.0)),
        (Activation("softplus", beta=3.0), nn.Softplus(3.0)),
        (Activation("hardshrink"), nn.Hardshrink()),
        (Activation("softshrink", lambd=0.75), nn.Softshrink(0.75)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_parameters_are_attributes_that_may_be_set_as_those_of_pytorchs_layers(ours, pytorchs):
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    names = [parameter.name for parameter in ACTIVATIONS[ours.name].parameters]
    assert [getattr(ours, name) for name in names] == [getattr(pytorchs, name) for name in names]
    for number, name in zip((2.5, 0.5), reversed(names), strict=False):
        for layer in (ours, pytorchs):
            setattr(layer, name, number)
        at, where = x.clone().requires_grad_(), x.clone().requires_grad_()
        torch.testing.assert_close(ours(at), pytorchs(where))
        ours(at).sum().backward()
        pytorchs(where).sum().backward()
        torch.testing.assert_close(at.grad, where.grad)
        assert f"{name}={number}" in repr(ours)


def test_a_parameter_that_is_refused_stays_as_it_was():
    layer = Activation("softplus", GUIDED, beta=2.0)
    with pytest.raises(ValueError, match="softplus: beta must be finite and > 0, got -1"):
        layer.beta = -1.0
    with pytest.raises(TypeError, match="softplus: beta must be a number, not Tensor"):
        layer.beta = torch.tensor(1.0)
    assert layer.beta == 2.0 and repr(layer) == "Activation('softplus', rule=GUIDED, beta=2.0)"
    layer.threshold = 1.0
    assert layer(torch.tensor([3.0])).item() == 3.0 and layer.rule == GUIDED


def test_a_set_parameter_keeps_the_rule_and_its_live_scale():
    layer = Activation("leaky_relu", reverse(torch.tensor(0.5)))
    layer.negative_slope = 0.25
    assert slopes(layer, (-1.0, 2.0)) == [-0.125, -0.5]
    layer.rule = reverse(2.0)
    assert slopes(layer, (-1.0, 2.0)) == [-0.5, -2.0]


def test_a_custom_parameter_by_the_name_of_what_every_layer_has_leaves_that_alone():
    pyrevgrad.custom(
        "stretched", lambda x, training: x * training, lambda x, training: x * 0 + training,
        parameters={"training": 2.0},
    )  # fmt: skip
    layer = Activation("stretched", training=3.0)
    assert layer.training is True and layer.eval().training is False
    assert slopes(layer) == [3.0, 3.0]


@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
def test_a_compiled_layer_sees_a_parameter_that_is_set():
    torch._dynamo.reset()
    layer = Activation("leaky_relu")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for slope in (0.01, 0.25, 0.5):
        layer.negative_slope = slope
        assert slopes(compiled, (-1.0, 2.0)) == pytest.approx([slope, 1.0])


def test_the_rule_of_a_layer_reads_its_scale():
    layer = Activation("relu", GUIDED.scaled(torch.tensor(0.5)))
    layer.scale = 3.0
    assert slopes(Activation("relu", layer.rule)) == [3.0, 3.0]


# Schedules.


def test_a_layer_follows_its_schedule():
    schedule = GaninSchedule(max_steps=10)
    layer = GradientReversal(schedule)
    assert layer.schedule is schedule and layer.scale.item() == 0.0
    schedule.step()
    assert round(layer.scale.item(), 4) == 0.4621
    x = torch.ones(1, requires_grad=True)
    y = layer(x)
    schedule.step()
    y.backward()
    assert x.grad.item() == pytest.approx(-schedule.value, rel=1e-7)


def test_a_schedule_can_be_assigned_and_the_old_one_lets_go():
    first, second = LinearSchedule(4), LinearSchedule(4, high=8.0)
    layer = GradientReversal(first)
    layer.scale = second
    second.step()
    assert layer.scale.item() == 2.0 and layer.schedule is second
    first.step()
    assert layer.scale.item() == 2.0


def test_an_activation_takes_no_schedule():
    layer = Activation("relu", reverse(torch.tensor(1.0)))
    with pytest.raises(TypeError, match="Activation takes no schedule"):
        layer.scale = LinearSchedule(4)


# Reprs and hooks.


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (Activation("relu"), "Activation('relu')"),
        (Activation("relu", GUIDED), "Activation('relu', rule=GUIDED)"),
        (
            Activation("leaky_relu", reverse(0.3), inplace=True, negative_slope=0.1),
            "Activation('leaky_relu', rule=reverse(0.3), inplace=True, negative_slope=0.1)",
        ),
        (GradientReversal(0.5), "GradientReversal(scale=0.5)"),
        (
            GradientReversal(0.5, record_norm=True),
            "GradientReversal(scale=0.5, record_norm=True)",
        ),
        (
            GradientReversal(GaninSchedule(10)),
            "GradientReversal(scale=0, schedule=GaninSchedule(max_steps=10, gamma=10, low=0, "
            "high=1))",
        ),
    ],
)
def test_a_layer_reads_as_it_was_made(layer, text):
    assert repr(layer) == text
    assert text in repr(nn.Sequential(layer))


def test_a_layer_with_a_live_scale_shows_it():
    assert "reverse" in repr(Activation("relu", reverse(torch.tensor(0.5))))


def test_full_backward_hooks_see_the_gradient_before_and_after():
    seen = []
    for layer in (GradientReversal(0.5), Activation("relu", reverse(0.5))):
        layer.register_full_backward_hook(lambda _, gx, gy: seen.append((gx[0], gy[0])))
        x = torch.ones(1, requires_grad=True) * 1.0
        layer(x).sum().backward()
    assert [(gx.item(), gy.item()) for gx, gy in seen] == [(-0.5, 1.0)] * 2


def test_the_layers_are_reachable_from_the_package():
    assert pyrevgrad.nn.GradientReversal is GradientReversal
