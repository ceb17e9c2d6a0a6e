"""Attribution: formulas by hand, every target, and models and inputs left as they were."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import nn

import pyrevgrad
from pyrevgrad import SwapError, attribution, guided
from pyrevgrad.attribution import (
    Deconvolution,
    GuidedBackprop,
    GuidedGradCam,
    NeuronDeconvolution,
    NeuronGuidedBackprop,
    RectGrad,
    Saliency,
)


class Convolutions(nn.Module):
    """Two convolutions with a layer and a function, a linear head of 4 classes."""

    def __init__(self, act=F.relu, layer=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.relu, self.head = layer or nn.ReLU(inplace=True), nn.Linear(6, 4)
        self.act = act
        self.double()

    def forward(self, x, factor=1.0):
        h = self.relu(self.first(x))
        return self.head(self.act(self.second(h)).mean((2, 3))) * factor


def oracle(rule):
    return Convolutions(zoo.site_of("relu", rule), zoo.Layer(zoo.site_of("relu", rule)))


def batch():
    return torch.randn(3, 2, 6, 6, dtype=torch.float64)


def by_oracle(rule, x, choose):
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(choose(oracle(rule)(x)).sum(), x)[0]


METHODS = {"GUIDED": GuidedBackprop, "DECONVNET": Deconvolution, "EXACT": Saliency}
TARGETS = {
    "int": (2, lambda y: y[:, 2]),
    "negative int": (-1, lambda y: y[:, 3]),
    "tuple": ((1,), lambda y: y[:, 1]),
    "list": ([0, 3, 1], lambda y: y[torch.arange(3), torch.tensor([0, 3, 1])]),
    "list of tuples": ([(0,), (3,), (1,)], lambda y: y[torch.arange(3), torch.tensor([0, 3, 1])]),
    "tensor": (torch.tensor([2, 2, 0]), lambda y: y[torch.arange(3), torch.tensor([2, 2, 0])]),
    "tensor of one": (torch.tensor(3), lambda y: y[:, 3]),
    "NumPy's int": (np.int64(3), lambda y: y[:, 3]),
    "array": (np.array([0, 3, 1])[::-1], lambda y: y[torch.arange(3), torch.tensor([1, 3, 0])]),
    "list of tensors": (
        [torch.tensor(2), torch.tensor(2), torch.tensor(0)],
        lambda y: y[torch.arange(3), torch.tensor([2, 2, 0])],
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("rule", METHODS)
def test_every_kind_of_target(rule, target):
    given, choose = TARGETS[target]
    x = batch()
    options = {"abs": False} if rule == "EXACT" else {}
    found = METHODS[rule](Convolutions()).attribute(x, given, **options)
    torch.testing.assert_close(found, by_oracle(rule, x, choose), rtol=1e-10, atol=1e-14)


def test_every_method_that_replaces_activations_reports_them():
    x, model = batch(), Convolutions()
    methods = (
        GuidedGradCam(model, model.second),
        NeuronGuidedBackprop(model, model.second),
        NeuronDeconvolution(model, model.second),
    )
    for method, chosen in zip(methods, (1, (3, 1, 2), (3, 1, 2)), strict=True):
        assert method.report is None
        method.attribute(x, chosen)
        assert [site.spelling for site in method.report.replaced] == ["nn.ReLU", "F.relu"]


def test_a_target_of_several_dimensions_and_none():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Unflatten(1, (2, 3))).double()
    x = torch.randn(5, 4).double()
    found = GuidedBackprop(model).attribute(x, (1, 2))
    single = nn.Sequential(nn.Linear(4, 6), nn.ReLU()).double()
    single[0] = model[0]
    assert torch.equal(found, GuidedBackprop(single).attribute(x, 5))
    one = nn.Sequential(nn.Linear(4, 1), nn.ReLU()).double()
    assert GuidedBackprop(one).attribute(x).shape == x.shape
    flat = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Flatten(0)).double()
    flat[0] = one[0]
    assert torch.equal(GuidedBackprop(flat).attribute(x), GuidedBackprop(one).attribute(x))


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (None, ValueError, "target is needed: each sample has 4 outputs"),
        (4, ValueError, "out of range for outputs of shape"),
        ((1, 2), ValueError, "has 2 indices, and each sample's output has the shape"),
        ([1, 2], ValueError, "2 targets for 3 samples"),
        (torch.tensor([1, 2]), ValueError, "must have one element or 3"),
        (torch.tensor([1.0]), TypeError, "must hold integers"),
        ("cat", TypeError, "target must be None, an int"),
        (True, TypeError, "not bool"),
        ([True] * 3, TypeError, "target must be made of ints, got True"),
        ([1.0] * 3, TypeError, "target must be made of ints, got 1.0"),
        ((1.0,), TypeError, "target must be made of ints, got 1.0"),
        ((slice(None),), TypeError, r"target must be made of ints, got slice\(None"),
        (torch.tensor([True] * 3), TypeError, r"must hold integers, got torch\.bool"),
        (np.array([0.5] * 3), TypeError, r"must hold integers, got torch\.float64"),
        (np.array([1, 2]), ValueError, "must have one element or 3"),
    ],
)
def test_a_target_that_does_not_fit(target, error, message):
    model = Convolutions()
    with pytest.raises(error, match=message):
        GuidedBackprop(model).attribute(batch(), target)
    assert type(model) is Convolutions


def test_inputs_that_have_no_gradient():
    with pytest.raises(TypeError, match=r"floating point to have a gradient, got torch\.int64"):
        GuidedBackprop(Convolutions()).attribute(torch.ones(1, 2, 6, 6).long(), 0)
    with pytest.raises(TypeError, match="a tensor or a tuple of tensors, not list"):
        GuidedBackprop(Convolutions()).attribute([1.0], 0)
    constant = nn.Sequential(nn.ReLU(), zoo.Layer(lambda x: torch.ones(3, 1)))
    with pytest.raises(ValueError, match="do not depend on the inputs"):
        Saliency(constant).attribute(torch.ones(3, 2))
    weight = nn.Parameter(torch.ones(1))
    other = nn.Sequential(nn.ReLU(), zoo.Layer(lambda x: weight.expand(3, 1)))
    with pytest.raises(ValueError, match="the target does not depend on any of the inputs"):
        Saliency(other).attribute(torch.ones(3, 2))


def test_a_model_of_one_number_and_an_input_of_one():
    x, factor = torch.tensor([[1.0, -2.0]]), torch.tensor(3.0)
    model = nn.Sequential(nn.ReLU(), zoo.Layer(lambda y: y.sum()))
    assert GuidedBackprop(model).attribute(x).tolist() == [[1, 0]]
    product = zoo.Layer(None)
    product.forward = lambda x, factor: (F.relu(x) * factor).sum(1)
    found = GuidedBackprop(product).attribute((x, factor))
    assert [part.tolist() for part in found] == [[[3, 0]], 1]
    alone = RectGrad(nn.Sequential(nn.ReLU(), nn.Tanh()), threshold=0)
    assert alone.attribute(factor).item() == pytest.approx(1 - torch.tanh(factor).item() ** 2)


def test_several_inputs_and_additional_arguments():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Convolutions()

        def forward(self, x, y, factor, unused):
            return self.net(x * y.mean((1, 2, 3), keepdim=True), factor)

    x, y = batch(), batch()
    found = GuidedBackprop(Two()).attribute((x, y), 1, (2.0, None))
    assert isinstance(found, tuple) and found[0].shape == x.shape and found[1].shape == y.shape
    at = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    out = oracle("GUIDED")(at[0] * at[1].mean((1, 2, 3), keepdim=True), 2.0)[:, 1].sum()
    for part, wanted in zip(found, torch.autograd.grad(out, at), strict=True):
        torch.testing.assert_close(part, wanted)


def test_saliency_is_absolute_unless_told_otherwise():
    x, model = batch(), Convolutions()
    signed = Saliency(model).attribute(x, 1, abs=False)
    assert torch.equal(Saliency(model).attribute(x, 1), signed.abs())
    assert torch.equal(Saliency(lambda x: model(x)).attribute(x, 1, False), signed)


def test_a_batch_is_one_call():
    x, method = batch(), GuidedBackprop(Convolutions())
    whole = method.attribute(x, [0, 1, 2])
    for i in range(3):
        torch.testing.assert_close(whole[i : i + 1], method.attribute(x[i : i + 1], i))


def test_neurons_and_layers():
    x, model = batch(), Convolutions()
    found = NeuronGuidedBackprop(model, model.second).attribute(x, (3, 1, 2))
    at = x.clone().requires_grad_()
    reference = oracle("GUIDED")
    inner = reference.second(reference.relu(reference.first(at)))
    (wanted,) = torch.autograd.grad(inner[:, 3, 1, 2].sum(), at, retain_graph=True)
    torch.testing.assert_close(found, wanted)
    block = NeuronGuidedBackprop(model, model.second).attribute(x, (3, slice(1, 3), 2))
    (wanted,) = torch.autograd.grad(inner[:, 3, 1:3, 2].sum(), at, retain_graph=True)
    torch.testing.assert_close(block, wanted)
    largest = NeuronGuidedBackprop(model, model.second).attribute(x, lambda y: y.flatten(1).amax(1))
    (wanted,) = torch.autograd.grad(inner.flatten(1).amax(1).sum(), at, retain_graph=True)
    torch.testing.assert_close(largest, wanted)
    by_name = Convolutions()
    by_name.second.register_forward_pre_hook(
        lambda module, args, kwargs: ((), {"input": args[0]}), with_kwargs=True, prepend=True
    )
    with pytest.raises(TypeError, match="called with keyword arguments alone"):
        NeuronGuidedBackprop(by_name, "second").attribute(
            x, (3, 1, 2), attribute_to_neuron_input=True
        )
    mapping = nn.Sequential(zoo.Layer(lambda x: {"x": x}), zoo.Layer(lambda d: F.relu(d["x"])))
    with pytest.raises(TypeError, match="the layer must give one tensor, or a tuple that begins"):
        GuidedBackprop(mapping, layer="0").attribute(x)
    layer = GuidedBackprop(model, layer="second").attribute(x)
    torch.testing.assert_close(layer, torch.autograd.grad(inner.sum(), at)[0])
    assert NeuronDeconvolution(model, "first", where=None)._of_layer.layer is model.first
    neuron = NeuronGuidedBackprop(model, model.second)
    for wrong, sentence in (
        (
            (slice(0, 2),) * 4,
            "neuron_selector has 4 indices, and each sample's output has the shape",
        ),
        ((9, slice(0, 2)), r"neuron_selector .* does not index \(6, 6, 6\): index 9"),
        ((9, 1, 2), "out of range"),
        (lambda y: y.sum(), r"one number for each of 3 samples, shape \(3,\); it made \(\)"),
        (lambda y: 3, "it made int"),
    ):
        with pytest.raises(ValueError, match=sentence):
            neuron.attribute(x, wrong)
    with pytest.raises(ValueError, match="no module named 'secnd': did you mean 'second'"):
        GuidedBackprop(model, layer="secnd")
    with pytest.raises(ValueError, match="Linear is not a module of the model"):
        GuidedBackprop(model, layer=nn.Linear(1, 1))


Pair = namedtuple("Pair", "values indices")


@pytest.mark.parametrize("kind", ["namedtuple", "return_types"])
def test_a_layer_whose_output_is_read_by_name_is_explained(kind):
    class Highest(nn.Module):
        def forward(self, x):
            found = torch.relu(x).topk(2, 1)
            return found if kind == "return_types" else Pair(*found)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layer = nn.Linear(4, 8), Highest()

        def forward(self, x):
            return self.layer(self.first(x)).values

    model, x = Model(), torch.randn(3, 4)
    h = model.first(x)
    top = h.relu().argmax(1)
    wanted = model.first.weight[top] * (h.amax(1, keepdim=True) > 0)
    for method in (GuidedBackprop(model), GuidedBackprop(model, layer="layer")):
        torch.testing.assert_close(method.attribute(x, target=0), wanted)
    torch.testing.assert_close(NeuronGuidedBackprop(model, "layer").attribute(x, 0), wanted)


def test_a_layer_of_one_number_a_sample_is_explained_without_a_target():
    model = nn.Sequential(
        nn.Linear(4, 1), nn.Flatten(0), nn.ReLU(), nn.Unflatten(0, (-1, 1))
    ).double()
    x = torch.randn(5, 4).double()
    found = GuidedBackprop(model, layer="2").attribute(x)
    on = model[0](x) > 0
    torch.testing.assert_close(found, on * model[0].weight.detach())
    assert torch.equal(NeuronGuidedBackprop(model, "2").attribute(x, ()), found)


def test_everything_is_left_as_it_was_and_a_second_call_gives_the_same():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(64, 3),
    ).double()  # fmt: skip
    x = batch().requires_grad_()
    x.grad = torch.ones_like(x)
    mean, state = model[1].running_mean.clone(), torch.get_rng_state()
    before = repr(model)
    first = GuidedBackprop(model).attribute(x, 1)
    second = GuidedBackprop(model).attribute(x, 1)
    assert torch.equal(first, second)
    assert torch.equal(model[1].running_mean, mean) and repr(model) == before
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert torch.equal(x.grad, torch.ones_like(x)) and x.requires_grad and not first.requires_grad
    assert all(p.grad is None for p in model.parameters())
    quiet = x.detach()
    GuidedBackprop(model).attribute(quiet, 1)
    assert not quiet.requires_grad and quiet.grad is None


def test_an_in_place_layer_on_the_models_input():
    model, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)).double(), torch.randn(3, 4)
    x = x.double()
    kept = x.clone()
    found = GuidedBackprop(model).attribute(x, 0)
    assert torch.equal(x, kept)
    weight = model[1].weight[0].detach()
    assert torch.equal(found, torch.where((x > 0) & (weight > 0), weight, 0.0))


@pytest.mark.parametrize("method", [GuidedBackprop, Deconvolution, RectGrad])
def test_other_rectifiers_raise_unless_where_says_otherwise(method):
    model = Convolutions(act=F.gelu)
    with pytest.raises(SwapError, match=r"rectifiers other than ReLU \(gelu\)"):
        method(model).attribute(batch(), 0)
    assert method(model, where=None).attribute(batch(), 0).shape == (3, 2, 6, 6)
    assert method(model, where=nn.ReLU).attribute(batch(), 0).shape == (3, 2, 6, 6)


def test_rectifiers_are_named_where_there_is_no_relu_at_all():
    model = nn.Sequential(nn.Linear(4, 3), nn.SiLU())
    with pytest.raises(SwapError, match=r"other than ReLU \(silu\)(.|\n)*where=None to take every"):
        GuidedBackprop(model).attribute(torch.randn(2, 4), 0)
    assert GuidedBackprop(model, where=None).attribute(torch.randn(2, 4), 0).shape == (2, 4)


@pytest.mark.parametrize(
    ("head", "slope"),
    [
        (nn.Sigmoid, lambda z: torch.sigmoid(z) * (1 - torch.sigmoid(z))),
        (nn.Tanh, lambda z: 1 - torch.tanh(z) ** 2),
    ],
)
def test_guided_on_a_head_that_saturates_blocks_negative_logits_and_so_leaves_it(head, slope):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), head()).double()
    nn.init.constant_(model[2].bias, -3.0)
    x = torch.randn(5, 4).double()
    hidden = model[0](x)
    logits = model[2](torch.relu(hidden))
    assert (logits < 0).all()
    for where in ("all", (nn.ReLU, head), ("1", "3")):
        assert not GuidedBackprop(model, where=where).attribute(x, 1).any()
    g = slope(logits[:, 1:]) * model[2].weight[1]
    wanted = torch.where((hidden > 0) & (g > 0), g, 0.0) @ model[0].weight
    assert wanted.any(1).all()
    for given in ({}, {"where": None}):
        torch.testing.assert_close(GuidedBackprop(model, **given).attribute(x, 1), wanted)
    leaf = x.clone().requires_grad_()
    with pyrevgrad.swap(model, pyrevgrad.GUIDED) as swapped:
        y = model(leaf)[:, 1].sum()
    torch.testing.assert_close(torch.autograd.grad(y, leaf)[0], wanted)
    assert [site.kind for site in swapped.report.left] == [head.__name__.lower()]


def test_the_cure_holds_for_custom_rectifiers_too():
    pyrevgrad.custom(
        "shifted_relu_of_attribution",
        lambda x: torch.where(x > 1, x, 0.0),
        lambda x: (x > 1).to(x.dtype),
        rectifier=True,
    )
    act = pyrevgrad.nn.Activation("shifted_relu_of_attribution")
    model = nn.Sequential(nn.Linear(4, 3), act)
    with pytest.raises(SwapError, match="where=None to take every rectifier"):
        GuidedBackprop(model).attribute(torch.randn(2, 4), 0)


def test_a_model_without_relu_raises():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    with pytest.raises(SwapError, match="replaced no activation"):
        GuidedBackprop(model).attribute(torch.randn(2, 4), 0)


def test_other_forms_of_the_rule():
    model, x = Convolutions(act=F.silu), batch()
    found = GuidedBackprop(model, where=None, rule=guided("slope")).attribute(x, 2)
    reference = Convolutions(
        zoo.site_of("silu", "guided_slope"), zoo.Layer(zoo.site_of("relu", "guided_slope"))
    )
    at = x.clone().requires_grad_()
    wanted = torch.autograd.grad(reference(at)[:, 2].sum(), at)[0]
    torch.testing.assert_close(found, wanted)


def test_maps_can_be_differentiated():
    model, x = Convolutions(layer=nn.ReLU()), batch().requires_grad_()
    found = GuidedBackprop(model).attribute(x, 1, create_graph=True)
    weight = model.first.weight
    (into,) = torch.autograd.grad(found.pow(2).sum(), weight)
    at = x.detach().requires_grad_()
    reference = oracle("GUIDED")
    with torch.no_grad():
        gates = [reference.first(at) > 0]
        gates.append(reference.second(torch.relu(reference.first(at))) > 0)
    g = model.head.weight[1][None, :, None, None].expand(3, 6, 6, 6) / 36
    g = F.conv_transpose2d(g * (gates[1] & (g > 0)), model.second.weight, padding=1)
    g = F.conv_transpose2d(g * (gates[0] & (g > 0)), weight, padding=1)
    torch.testing.assert_close(found, g)
    torch.testing.assert_close(into, torch.autograd.grad(g.pow(2).sum(), weight)[0])


# RectGrad.


def test_rectgrad_with_a_constant_threshold():
    x = batch()
    found = RectGrad(Convolutions(), threshold=0.1).attribute(x * 20, 1)
    torch.testing.assert_close(found, by_oracle("rectgrad", x * 20, lambda y: y[:, 1]))
    zero = RectGrad(Convolutions(), threshold=0.0).attribute(x, 1)
    torch.testing.assert_close(zero, GuidedBackprop(Convolutions()).attribute(x, 1))
    with pytest.raises(ValueError, match=r"percentile must be in \[0, 100\], got 101"):
        RectGrad(Convolutions(), percentile=101)


# Guided Grad-CAM.


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_guided_gradcam_is_its_formula(mode):
    model, x = Convolutions(), batch()
    cam = GuidedGradCam(model, model.second)
    found = cam.attribute(x, 1, interpolate_mode=mode)
    with torch.no_grad():
        inner = model.second(torch.relu(model.first(x)))
        slope = model.head.weight[1][None, :, None, None] * (inner > 0) / 36
        coarse = (slope.mean((2, 3), keepdim=True) * inner).sum(1, keepdim=True).relu()
        fine = F.interpolate(coarse, (6, 6), mode=mode)
    wanted = GuidedBackprop(model).attribute(x, 1) * fine
    torch.testing.assert_close(found, wanted)
    assert cam.grad_cam(x, 1).shape == (3, 1, 6, 6)
    by_input = cam.grad_cam(x, 1, attribute_to_layer_input=True)
    assert by_input.shape == (3, 1, 6, 6) and not torch.equal(by_input, coarse)
    with pytest.raises(ValueError, match="has channels and places"):
        GuidedGradCam(model, "head").attribute(x, 1)


def test_guided_gradcam_of_sequences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(15, 2))
    x = torch.randn(4, 2, 7)
    with torch.no_grad():
        inner = model[0](x)
        slope = model[3].weight[1].reshape(1, 3, 5) * (inner > 0)
        coarse = (slope.mean(2, keepdim=True) * inner).sum(1, keepdim=True).relu()
    wanted = GuidedBackprop(model).attribute(x, 1) * F.interpolate(coarse, 7)
    torch.testing.assert_close(GuidedGradCam(model, "0").attribute(x, 1), wanted)


# All of them.


def test_reachable_after_import():
    assert pyrevgrad.attribution is attribution and pyrevgrad.nn and pyrevgrad.schedules


def test_every_method_of_the_package_is_an_attribution():
    public = [getattr(attribution, name) for name in attribution.__all__]
    methods = {one for one in public if hasattr(one, "attribute")}
    assert {NeuronGuidedBackprop, NeuronDeconvolution, GuidedBackprop, Saliency} < methods
    assert all(issubclass(method, attribution.Attribution) for method in methods)


def test_one_sample_without_a_batch_is_told_how_to_make_one():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    with pytest.raises(ValueError, match=r"the shape \(\); .* give inputs\.unsqueeze\(0\)"):
        GuidedBackprop(model).attribute(torch.ones(3), target=1)
