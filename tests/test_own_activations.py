"""Swaps of custom activations, of ours by name, and of what is computed of parameters alone."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyrevgrad
from pyrevgrad import GUIDED, SwapError, assert_overridden, swap
from pyrevgrad.activations import CUSTOM
from pyrevgrad.attribution import GuidedBackprop
from pyrevgrad.swapping import layers


def gate(x):
    return torch.sigmoid(1.702 * x)


@pytest.fixture
def quick_gelu():
    made = pyrevgrad.custom(
        "quick_gelu_here",
        lambda x: x * gate(x),
        lambda x: gate(x) * (1 + 1.702 * x * (1 - gate(x))),
        rectifier=True,
    )
    yield made
    del CUSTOM["quick_gelu_here"]
    pyrevgrad.customizing._MADE.pop("quick_gelu_here")


@pytest.mark.parametrize("where", [None, "1", pyrevgrad.nn.Activation], ids=str)
def test_a_custom_rectifier_is_taken_and_not_suspected_inside(quick_gelu, where):
    model = nn.Sequential(
        nn.Linear(4, 8), pyrevgrad.nn.Activation("quick_gelu_here"), nn.Linear(8, 2)
    ).double()
    x = torch.randn(5, 4, dtype=torch.float64).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with swap(model, GUIDED, where=where, strict="all") as swapped:
            model(x).sum().backward()
    (wanted,) = torch.autograd.grad(model[2](quick_gelu(model[0](x), GUIDED)).sum(), x)
    torch.testing.assert_close(x.grad, wanted)
    assert len(swapped.report.sites) == 1


def test_a_custom_activation_that_is_left_is_told_its_cures_and_its_place():
    swish = pyrevgrad.custom("swish_left_here", lambda x: x * gate(x), gate)
    model = nn.Sequential(nn.Linear(4, 4), pyrevgrad.nn.Activation("swish_left_here"))
    with pytest.raises(SwapError) as caught, swap(model, GUIDED):
        model(torch.randn(5, 4))
    assert str(caught.value).endswith(
        "pyrevgrad.swish_left_here in 1 (nn.Sequential): not a rectifier "
        '(make it by custom(..., rectifier=True), or pass where="all")'
    )
    x = torch.randn(5, 4, requires_grad=True)
    with swap(model, GUIDED, where="all"):
        model(x).sum().backward()
    (wanted,) = torch.autograd.grad(swish(model[0](x), GUIDED).sum(), x)
    torch.testing.assert_close(x.grad, wanted)


def test_our_own_saturating_layer_is_taken_where_it_is_named_exactly():
    model = nn.Sequential(nn.Linear(4, 4), pyrevgrad.nn.Activation("tanh"), nn.Linear(4, 2))
    for where in ("1", pyrevgrad.nn.Activation):
        assert assert_overridden(model, GUIDED, torch.randn(5, 4), where=where).must_differ


class Learned(nn.Module):
    """Its coefficients pass an activation, and the data does not."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(1))
        self.first = nn.Linear(4, 4)

    def forward(self, x):
        low, high = F.softplus(self.a.double()).float(), F.softplus(self.a)
        h = self.first(x)
        return torch.where(h > 0, high * h, low * h * h)


@pytest.mark.filterwarnings("ignore::pyrevgrad.SwapWarning")
def test_an_activation_of_parameters_is_none_of_the_data():
    model, x = Learned(), torch.randn(3, 4, requires_grad=True)
    with pytest.raises(SwapError, match="replaced no") as caught, swap(model, GUIDED):
        model(x)
    assert str(caught.value).count("its input is a parameter of the model") == 2
    with pytest.raises(SwapError, match="replaced no activation"):
        GuidedBackprop(model, where=None).attribute(x, target=0)
    image = nn.Parameter(torch.randn(3, 4))
    with swap(nn.ReLU(), GUIDED) as swapped:
        swapped.model(image).sum().backward()
    assert swapped.report.replaced[0].backward == 1


MADE = {
    "itself": lambda a: a,
    "plus a constant": lambda a: a + 1e-3,
    "an exponential": lambda a: a.exp(),
    "scaled and cast": lambda a: (2 * a.double() - 0.1).float(),
    "expanded": lambda a: a.expand(4, 4),
}


class Scales(nn.Module):
    """A learned factor, made positive by an activation; `layer` is one that was written by hand."""

    def __init__(self, made, layer=None):
        super().__init__()
        self.a, self.linear, self.layer = nn.Parameter(-torch.ones(4)), nn.Linear(4, 4), layer
        self.made = made

    def forward(self, x):
        factor = self.made(self.a)
        factor = F.softplus(factor) if self.layer is None else self.layer(factor)
        return F.relu(-self.linear(x)) * factor.mean()


@pytest.mark.parametrize("how", ["called", "functional_call"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("by_hand", [False, True])
def test_what_is_made_of_a_parameter_and_constants_keeps_its_gradient(
    by_hand, made, frozen, how, monkeypatch
):
    class Hand(nn.Module):
        def forward(self, x):
            return x / (1 + torch.exp(-x))

    monkeypatch.setattr(layers, "DECLARED", {})
    pyrevgrad.declare(Hand, "silu")
    torch.manual_seed(0)
    model = Scales(MADE[made], Hand() if by_hand else None)
    model.a.requires_grad_(not frozen)
    x = torch.randn(3, 4, requires_grad=True)
    asked = [x, *(p for p in model.parameters() if p.requires_grad)]
    with swap(model, GUIDED, strict="all") as swapped:
        y = model(x) if how == "called" else torch.func.functional_call(model, {}, (x,))
        found = torch.autograd.grad(y.sum(), asked)
    factor = MADE[made](model.a)
    factor = F.silu(factor) if by_hand else F.softplus(factor)
    y = pyrevgrad.relu(-model.linear(x), GUIDED) * factor.mean()
    torch.testing.assert_close(found, torch.autograd.grad(y.sum(), asked))
    assert [site.kind for site in swapped.report.replaced if site.forward] == ["relu"]


def test_parameters_that_are_given_to_a_functional_call_are_the_model_s():
    torch.manual_seed(0)
    model, x = Scales(MADE["itself"]), torch.randn(3, 4)

    def loss(given):
        return torch.func.functional_call(model, given, (x,)).sum()

    state = {name: p.detach() for name, p in model.named_parameters()}
    with swap(model, GUIDED):
        found = torch.func.grad(loss)(state)
    with torch.no_grad():
        rest = F.relu(-model.linear(x)).sum() / 4
    torch.testing.assert_close(found["a"], rest * torch.sigmoid(model.a.detach()))


class Both(nn.Module):
    """One layer that meets a parameter and the data, in either order."""

    def __init__(self, first):
        super().__init__()
        self.a, self.act, self.linear = nn.Parameter(torch.randn(4)), nn.SiLU(), nn.Linear(4, 4)
        self.first = first

    def forward(self, x):
        gate = self.act(self.a) if self.first else 0
        h = self.act(self.linear(x))
        return h * (gate if self.first else self.act(self.a))


@pytest.mark.parametrize("first", [True, False])
def test_one_layer_may_meet_a_parameter_and_the_data(first):
    torch.manual_seed(0)
    model, x = Both(first), torch.randn(3, 4, requires_grad=True)
    with swap(model, GUIDED, strict="all"):
        found = torch.autograd.grad(model(x).sum(), [x, model.a])
    h = pyrevgrad.silu(model.linear(x), GUIDED)
    wanted = torch.autograd.grad((h * F.silu(model.a)).sum(), [x, model.a])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "look",
    [lambda e, i: e(i), lambda e, i: e.weight[i], lambda e, i: e.weight.index_select(0, i)],
    ids=["embedding", "index", "index_select"],
)
def test_what_is_looked_up_in_parameters_is_data(look):
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.linear = nn.Embedding(5, 4), nn.Linear(4, 2)

        def forward(self, i):
            return self.linear(F.relu(look(self.table, i)))

    model = Looks()
    with swap(model, GUIDED) as swapped:
        model(torch.tensor([1, 3])).sum().backward()
    assert swapped.report.replaced[0].backward == 1 and not swapped.report.left


def test_code_that_cannot_be_hashed_may_call_an_activation():
    def act(x):
        return F.relu(x)

    act.__code__ = act.__code__.replace(co_consts=(*act.__code__.co_consts, [1]))
    with pytest.raises(TypeError, match="unhashable"):
        hash(act.__code__)

    class Calls(nn.Module):
        def forward(self, x):
            return act(x)

    with swap(Calls(), GUIDED) as swapped:
        swapped.model(torch.randn(3, requires_grad=True)).sum().backward()
    assert swapped.report.replaced[0].source.startswith("test_own_activations.py:")
