"""Layers written by hand that are declared to be an activation, and what must not pass for one."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pyrevgrad
from pyrevgrad import GUIDED, SwapError, SwapWarning, assert_overridden, reverse, swap
from pyrevgrad.attribution import GuidedBackprop, jacobian
from pyrevgrad.rules import RULES
from pyrevgrad.swapping import layers


class Hand(nn.Module):
    """gelu_tanh, as much of the field writes it."""

    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class Leaky(nn.Module):
    def forward(self, x):
        return torch.maximum(x, 0.2 * x)


@pytest.fixture(autouse=True)
def declarations(monkeypatch):
    monkeypatch.setattr(layers, "DECLARED", {})


def network(act, dtype=torch.float64):
    torch.manual_seed(0)
    layers = (nn.Linear(4, 8), act, nn.Linear(8, 8), copy.deepcopy(act), nn.Linear(8, 2))
    return nn.Sequential(*layers).to(dtype)


def x_of(dtype=torch.float64):
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)


def gradients(model, x, rule, **options):
    x = x.clone().requires_grad_()
    with swap(model, rule, strict="all", **options) as swapped:
        y = model(x)
        found = torch.autograd.grad(y.sum(), [x, *model.parameters()])
    return y.detach(), found, swapped.report


HANDS = {
    "gelu_tanh": (Hand, "gelu_tanh", {}, nn.GELU("tanh")),
    "leaky_relu": (Leaky, "leaky_relu", {"negative_slope": 0.2}, nn.LeakyReLU(0.2)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("hand", HANDS)
def test_a_declared_layer_has_the_gradients_of_pytorchs_own(hand, rule, dtype):
    cls, name, params, own = HANDS[hand]
    pyrevgrad.declare(cls, name, **params)
    model, x = network(cls(), dtype), x_of(dtype)
    with torch.no_grad():
        plain = model(x)
    y, found, report = gradients(model, x, RULES[rule])
    _, wanted, _ = gradients(network(own, dtype), x, RULES[rule])
    torch.testing.assert_close(found, wanted)
    assert torch.equal(y, plain)
    assert [site.spelling for site in report.replaced] == [cls.__name__] * 2 and not report.left


def test_without_a_declaration_the_swap_says_how_to_make_one():
    told = r"if Hand is one, say so by pyrevgrad\.declare\(Hand, "
    with pytest.raises(SwapError, match=told), pytest.warns(pyrevgrad.SwapWarning, match=told):
        gradients(network(Hand()), x_of(), GUIDED)


def test_what_is_declared_is_taken_by_subclass_name_and_type_as_any_layer():
    class Smaller(Hand):
        pass

    pyrevgrad.declare(Hand, "gelu_tanh")
    model = nn.Sequential(nn.Linear(4, 4), Smaller(), nn.Linear(4, 4), Hand()).double()
    for where, taken in ((None, 2), (Hand, 2), (Smaller, 1), ("1", 1), ({"3": None}, 1)):
        with swap(model, GUIDED, where=where) as swapped:
            model(x_of().requires_grad_()).sum().backward()
        assert len([site for site in swapped.report.replaced if site.forward]) == taken
    pyrevgrad.declare(Hand, "tanh")
    for where, taken in ((None, 0), (Hand, 2)):
        swapped = swap(model, GUIDED, where=where, strict=False)
        swapped.revert()
        assert len(swapped.report.replaced) == taken


def test_a_declared_layer_that_is_left_hides_nothing_and_is_not_suspected():
    class Own(nn.Module):
        def forward(self, x):
            return F.gelu(x, approximate="tanh")

    pyrevgrad.declare(Own, "gelu_tanh")
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Own()).double(), x_of().requires_grad_()
    with swap(model, GUIDED, where={"2": None}, strict="all") as swapped:
        (found,) = torch.autograd.grad(model(x).sum(), x)
    wanted = F.gelu(pyrevgrad.relu(model[0](x), GUIDED), approximate="tanh")
    torch.testing.assert_close(found, torch.autograd.grad(wanted.sum(), x)[0])
    assert [site.reason for site in swapped.report.left] == ["left out by where"]


def run_twice(model, x):
    return model(x) + model(x)


RUNS = {
    "called": lambda model, x: model(x),
    "its forward called": lambda model, x: nn.Sequential.forward(model, x),
    "twice": run_twice,
    "checkpointed": lambda model, x: checkpoint(model, x, use_reentrant=False),
    "under torch.func": lambda model, x: torch.func.functional_call(model, {}, (x,)),
}


@pytest.mark.parametrize("run", RUNS)
def test_however_the_model_runs(run):
    pyrevgrad.declare(Hand, "gelu_tanh")
    found = []
    for act in (Hand(), nn.GELU("tanh")):
        model, x = network(act), x_of().requires_grad_()
        with swap(model, GUIDED):
            RUNS[run](model, x).sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(*found)


def test_hooks_run_autocast_holds_and_a_copy_is_plain():
    pyrevgrad.declare(Hand, "gelu_tanh")
    model, x, seen = network(Hand(), torch.float32), x_of(torch.float32).requires_grad_(), []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    with swap(model, GUIDED), torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        copied = copy.deepcopy(model)
    assert y.dtype == torch.bfloat16 and len(seen) == 1 and type(copied[1]) is Hand
    y.sum().backward()
    assert x.grad.abs().sum() > 0


def test_inside_a_swap_of_part_of_the_model_and_inside_another_swap():
    pyrevgrad.declare(Hand, "gelu_tanh")
    model, x = network(Hand()), x_of().requires_grad_()
    with swap(model, reverse(0.5), strict=False), swap(model[1], GUIDED) as inner:
        (found,) = torch.autograd.grad(model(x).sum(), x)
    h = model[0](x)
    y = pyrevgrad.gelu_tanh(model[2](pyrevgrad.gelu_tanh(h, GUIDED)), reverse(0.5))
    (wanted,) = torch.autograd.grad(model[4](y).sum(), x)
    torch.testing.assert_close(found, wanted)
    assert inner.report.replaced[0].backward == 1


def test_the_proof_sees_a_declaration_that_is_not_true():
    pyrevgrad.declare(Hand, "gelu_tanh")
    proof = assert_overridden(network(Hand()), GUIDED, x_of())
    assert proof.differing == proof.must_differ > 0
    pyrevgrad.declare(Hand, "silu")
    with pytest.raises(SwapError, match="is declared to be silu, and its own gradient is another"):
        assert_overridden(network(Hand()), GUIDED, x_of())


def test_a_layer_that_changes_shape_is_no_activation():
    class Halves(nn.Module):
        def forward(self, x):
            return x[:, :4] * torch.sigmoid(x[:, 4:])

    pyrevgrad.declare(Halves, "silu")
    model = nn.Sequential(nn.Linear(4, 8), Halves())
    sentence = "did not return a tensor of its input's shape and dtype"
    with pytest.raises(SwapError, match=sentence), swap(model, GUIDED):
        model(torch.randn(2, 4, requires_grad=True))
    assert type(model[1]) is Halves


class Takes(nn.Module):
    """A layer called by a keyword, with more than it needs, or by a forward of the instance's."""

    def __init__(self, how):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 6), Flexible(), nn.Linear(6, 2)
        self.how = how
        if how == "instance":
            own = self.act.forward
            self.act.forward = lambda *args, **kwargs: own(*args, **kwargs)

    def forward(self, x):
        h = torch.relu(self.a(x))
        if self.how == "more":
            return self.b(self.act(h, 2))
        if self.how == "named":
            return self.b(self.act(h, other=False))
        return self.b(self.act(x=h) if self.how == "keyword" else self.act(h))


class Flexible(nn.Module):
    def forward(self, x, other=None):
        _, _ = x.shape  # of two dimensions, and no empty probe
        return x / (1 + torch.exp(-x))


class OnlyCall(nn.Module):
    def __call__(self, x):
        return x / (1 + torch.exp(-x))


@pytest.mark.parametrize("how", ["plainly", "keyword", "instance"])
def test_however_the_layer_is_called(how):
    pyrevgrad.declare(Flexible, "silu")
    torch.manual_seed(0)
    model, x = Takes(how).double(), x_of().requires_grad_()
    with swap(model, GUIDED, strict="all") as swapped:
        (found,) = torch.autograd.grad(model(x).sum(), x)
    h = pyrevgrad.silu(pyrevgrad.relu(model.a(x), GUIDED), GUIDED)
    torch.testing.assert_close(found, torch.autograd.grad(model.b(h).sum(), x)[0])
    assert [site.backward for site in swapped.report.replaced] == [1, 1]
    with torch.autocast("cpu", torch.bfloat16), swap(model.float(), GUIDED):
        model(x.detach().float().requires_grad_()).sum().backward()


def test_a_class_that_defines_its_call_alone():
    pyrevgrad.declare(OnlyCall, "silu")
    y, found, _ = gradients(network(OnlyCall()), x_of(), reverse(0.5))
    wanted_y, wanted, _ = gradients(network(nn.SiLU()), x_of(), reverse(0.5))
    torch.testing.assert_close((y, found), (wanted_y, wanted))


class Static(nn.Module):
    @staticmethod
    def forward(x):
        return x / (1 + torch.exp(-x))


def test_a_static_forward():
    pyrevgrad.declare(Static, "silu")
    y, found, report = gradients(network(Static()), x_of(), reverse(0.5))
    wanted_y, wanted, _ = gradients(network(nn.SiLU()), x_of(), reverse(0.5))
    torch.testing.assert_close((y, found), (wanted_y, wanted))
    assert [site.backward for site in report.replaced] == [1, 1]


def test_inside_inference_mode_and_vmap():
    pyrevgrad.declare(Hand, "gelu_tanh")
    model = network(Hand())
    with torch.inference_mode(), swap(model, GUIDED):
        found = torch.func.vmap(model)(x_of())
    with torch.inference_mode():
        torch.testing.assert_close(found, model(x_of()))


def test_a_layer_that_is_given_more_than_one_tensor_is_refused():
    pyrevgrad.declare(Flexible, "silu")
    for how, given in (("more", "Tensor, int"), ("named", "Tensor, other: bool")):
        with pytest.raises(SwapError, match=rf"Flexible .* more .* than one tensor: \({given}\)"):
            assert_overridden(Takes(how), GUIDED, torch.randn(3, 4))


def test_swaps_of_different_layers_hold_together():
    pyrevgrad.declare(Hand, "gelu_tanh")
    model, own = network(Hand()), network(nn.GELU("tanh"))
    found = []
    for each in (model, own):
        x = x_of().requires_grad_()
        with swap(each, GUIDED, where="1") as outer, swap(each, reverse(0.5), where="3") as inner:
            each(x).sum().backward()
        found.append(x.grad)
        assert [s.report.replaced[0].backward for s in (outer, inner)] == [1, 1]
    torch.testing.assert_close(*found)


class Inside(nn.Module):
    """hardsigmoid, by way of an activation that a swap would take elsewhere."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x):
        def inner(x):
            return F.relu6(x + 3) / 6

        if self.way == "ours":
            return pyrevgrad.relu6(x + 3) / 6
        if self.way == "plain":
            return inner(x)
        return checkpoint(inner, x, use_reentrant=self.way == "reentrant")


@pytest.mark.parametrize("way", ["plain", "ours", "reentrant", "not reentrant"])
def test_what_a_declared_layer_calls_is_its_own_affair(way):
    pyrevgrad.declare(Inside, "hardsigmoid")
    model, x = network(Inside(way)), x_of().requires_grad_()
    whole = nn.Sequential(nn.Linear(4, 4).double(), nn.ReLU(), model)
    with swap(whole, GUIDED, strict="all") as swapped:
        whole(x).sum().backward()
    at = x_of().requires_grad_()
    y = model(pyrevgrad.relu(whole[0](at), GUIDED))
    y.sum().backward()
    torch.testing.assert_close(x.grad, at.grad)
    assert [site.kind for site in swapped.report.sites] == ["relu", "hardsigmoid", "hardsigmoid"]


def test_a_checkpoint_made_in_one_swap_is_recomputed_inside_another():
    pyrevgrad.declare(Hand, "gelu_tanh")
    found = []
    for act in (Hand(), nn.GELU("tanh")):
        model, x = network(act), x_of().requires_grad_()
        with swap(model, GUIDED):
            y = checkpoint(model, x, use_reentrant=False).sum()
        with swap(model, reverse(0.5), strict=False):
            y.backward()
        found.append(x.grad)
    torch.testing.assert_close(*found)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x):
        return self.factor * x * torch.sigmoid(x)


def test_parameters_that_thaw_during_a_swap_are_refused():
    pyrevgrad.declare(Scaled, "silu")
    model, x = nn.Sequential(nn.Linear(4, 4), Scaled()), torch.randn(2, 4, requires_grad=True)
    sentence = "it has parameters, which would get no gradient"
    with pytest.raises(SwapError, match=sentence), swap(model, GUIDED):
        assert model(x) is not None
        model[1].factor.requires_grad_()
        model(x)


def test_a_declared_clip_from_zero_is_a_rectifier():
    class Clip(nn.Module):
        def forward(self, x):
            return x.clamp(0, 1)

    pyrevgrad.declare(Clip, "hardtanh", min_val=0.0, max_val=1.0)
    assert len(gradients(network(Clip()), x_of(), GUIDED)[2].replaced) == 2


def test_a_layer_with_parameters_is_refused_in_training_and_attributed():
    pyrevgrad.declare(nn.PReLU, "leaky_relu", negative_slope=0.25)
    model, x = network(nn.PReLU()), x_of()
    with pytest.raises(SwapError, match="it has parameters, which would get no gradient"):
        gradients(model, x, GUIDED)
    found = GuidedBackprop(model, where=None).attribute(x, target=1)
    wanted = GuidedBackprop(network(nn.LeakyReLU(0.25)), where=None).attribute(x, target=1)
    torch.testing.assert_close(found, wanted)
    columns = jacobian(model, x, rule=GUIDED)
    torch.testing.assert_close(columns[:, 1], wanted)


class Quick(nn.Module):
    """quick_gelu, as CLIP and all that follow it write it."""

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class HandMish(nn.Module):
    def forward(self, x):
        return x * torch.tanh(torch.log1p(x.exp()))


class HardSwish(nn.Module):
    def forward(self, x):
        return x * (x + 3).clamp(0, 6) / 6


BY_HAND = {
    "gelu_tanh": Hand,
    "quick_gelu": Quick,
    "silu": Swish,
    "mish": HandMish,
    "hardswish": HardSwish,
}


@pytest.mark.parametrize("path", layers._KNOWN)
def test_layers_of_other_libraries_are_known_by_their_names(path):
    module, _, name = path.rpartition(".")
    hand = BY_HAND[layers._KNOWN[path]]
    model, x = network(type(name, (hand,), {"__module__": module, "__qualname__": name})()), x_of()
    assert len(gradients(model, x, GUIDED)[2].replaced) == 2
    pyrevgrad.assert_overridden(model, reverse(0.5), x)


def test_a_declaration_is_taken_back():
    pyrevgrad.declare(Leaky, "leaky_relu", negative_slope=0.2)
    pyrevgrad.declare(Leaky, None)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Leaky(), nn.Linear(8, 2)).double()
    warned = pytest.warns(SwapWarning, match=r"max\(x, c·x\) written by hand in 2")
    with warned, swap(model, GUIDED) as swapped:
        model(x_of().requires_grad_()).sum().backward()
    assert [site.path for site in swapped.report.replaced] == ["1"]


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((Hand(), "gelu"), TypeError, "declare takes a class of layers, not Hand"),
        ((nn.Module, "gelu"), TypeError, "declare takes a class of layers"),
        ((Hand, "gelu_tnh"), ValueError, "did you mean 'gelu_tanh'"),
        ((Hand, 3), TypeError, "named by a string"),
        ((nn.Softmax, "sigmoid"), TypeError, "Softmax of PyTorch is no activation of each element"),
        ((Hand, None), ValueError, "declare: nothing was declared of Hand"),
    ],
)
def test_wrong_declarations(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        pyrevgrad.declare(*arguments)
    with pytest.raises(TypeError, match="has no parameter 'alpha'"):
        pyrevgrad.declare(Hand, "gelu", alpha=1.0)
    assert not layers.DECLARED


def test_convert_leaves_a_declared_layer():
    pyrevgrad.declare(Leaky, "leaky_relu", negative_slope=0.2)
    done = pyrevgrad.convert(network(Leaky()), x_of())
    assert not done.converted and done.skipped["1"] == "no fused layer computes the same"
