"""Declared layers that work in place: where they are told to, and unasked."""

import warnings

import pytest
import torch
from torch import nn

import pyrevgrad
from pyrevgrad import GUIDED, SwapError, reverse, swap
from pyrevgrad.swapping import layers


@pytest.fixture(autouse=True)
def nothing_stays_declared():
    yield
    layers.DECLARED.clear()


class Swish(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return x.mul_(x.sigmoid()) if self.inplace else x.mul(x.sigmoid())


class Deaf(nn.Module):
    """It is told to work in place and does not."""

    inplace = True

    def forward(self, x):
        return x.mul(x.sigmoid())


class Twice(nn.Module):
    """It goes on with what the layer was given, too."""

    def __init__(self, act):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.act, self.b = nn.Linear(4, 8), act, nn.Linear(8, 3)
        self.double()

    def forward(self, x):
        h = self.a(x)
        return self.b(self.act(h) + 2 * h)


def slope(z):
    s = 1 / (1 + torch.exp(-z))
    return s + z * s * (1 - s)


@pytest.mark.parametrize(
    ("act", "of_y", "of_x"), [(Swish(True), 3, 0), (Swish(False), 1, 2), (Deaf(), 1, 2)]
)
def test_the_caller_sees_in_its_tensor_what_it_saw_before(act, of_y, of_x):
    pyrevgrad.declare(type(act), "silu")
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    model = Twice(act)
    plain = model(x)
    with swap(model, reverse(0.5)):
        y = model(x)
    assert torch.equal(y, plain)
    z, g = model.a(x).detach(), model.b.weight.sum(0).detach().expand(5, -1)
    wanted = (-0.5 * slope(z) * of_y * g + of_x * g) @ model.a.weight.detach()
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], wanted)
    assert pyrevgrad.assert_overridden(model, GUIDED, x).differing


def test_a_view_is_written_through_as_before():
    pyrevgrad.declare(Swish, "silu")
    model = nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (2, 4)), Swish(True)).double()
    x = torch.randn(5, 4).double()
    assert pyrevgrad.assert_overridden(model, GUIDED, x).differing


class InPlace(nn.Module):
    def forward(self, x):
        return x.mul_(torch.sigmoid(x))


def test_a_layer_that_works_in_place_is_refused_before_it_writes():
    pyrevgrad.declare(InPlace, "silu")
    model = nn.Sequential(nn.Linear(4, 4), InPlace())
    sentence = "InPlace is declared to be silu and works in place"
    with pytest.raises(SwapError, match=sentence), swap(model, GUIDED):
        model(torch.randn(2, 4, requires_grad=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with swap(nn.Sequential(*model, nn.ReLU()), GUIDED, {"1": None}, "all") as swapped:
            swapped.model(torch.randn(2, 4, requires_grad=True)).sum().backward()
