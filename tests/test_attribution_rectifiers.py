"""Rectifiers other than ReLU in a model that is attributed by default: named where they matter."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyrevgrad
from pyrevgrad import SwapError
from pyrevgrad.attribution import Deconvolution, GuidedBackprop, RectGrad


class Detector(nn.Module):
    """A score, and coordinates that are bounded by a clamp; one of them is returned."""

    def __init__(self, returned, bound=lambda x: x.clamp(min=0, max=96)):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.score, self.box = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 4)
        self.returned, self.bound = returned, bound

    def forward(self, x):
        h = torch.relu(self.body(x))
        return {"box": self.bound(self.box(h)), "score": self.score(h)}[self.returned]


def in_place_on_a_view(x):
    x = x * 1
    x[:, :2].clamp_(min=0, max=96)
    return x


def test_a_rectifier_that_no_gradient_reaches_is_no_reason_to_refuse():
    model, x = Detector("score"), torch.randn(3, 4)
    g = model.score.weight[1].expand(3, -1)
    wanted = (g * ((model.body(x) > 0) & (g > 0))).detach() @ model.body.weight.detach()
    torch.testing.assert_close(GuidedBackprop(model).attribute(x, 1), wanted)


@pytest.mark.parametrize("bound", [F.gelu, nn.Hardswish(), nn.PReLU(), in_place_on_a_view])
def test_one_that_a_gradient_reaches_is_named(bound):
    with pytest.raises(SwapError, match="has rectifiers other than ReLU"):
        GuidedBackprop(Detector("box", bound)).attribute(torch.randn(3, 4), 1)


@pytest.mark.parametrize("method", [GuidedBackprop, Deconvolution])
def test_prelu_is_served_as_the_refusals_say(method):
    model, x = Detector("box", nn.PReLU()), torch.randn(3, 4)
    with pytest.raises(SwapError, match=r"where=None after pyrevgrad\.declare\(nn\.PReLU, 'leaky"):
        method(model).attribute(x, 1)
    with pytest.raises(
        SwapError, match=r'served after pyrevgrad\.declare\(nn\.PReLU, "leaky_relu"'
    ):
        method(model, where=None).attribute(x, 1)
    pyrevgrad.declare(nn.PReLU, "leaky_relu")
    try:
        assert len(swapped(method(model, where=None), x).replaced) == 2
    finally:
        pyrevgrad.declare(nn.PReLU, None)


def test_prelu_is_not_offered_to_a_rule_that_asks_for_its_slope():
    for where in ({}, {"where": None}):
        with pytest.raises(SwapError) as error:
            RectGrad(Detector("box", nn.PReLU()), **where).attribute(torch.randn(3, 4), 1)
        assert "declare" not in str(error.value)


def swapped(method, x):
    method.attribute(x, 1)
    return method.report


def test_of_clamps_it_is_said_first_how_to_leave_them():
    model, x = Detector("box"), torch.randn(3, 4)
    said = (
        r"pass where=lambda site: site\.kind == 'relu' to leave them plain, as where a clamp "
        "bounds coordinates, or where=None to take every rectifier$"
    )
    with pytest.raises(SwapError, match=said):
        GuidedBackprop(model).attribute(x, 1)
    left = GuidedBackprop(model, where=lambda site: site.kind == "relu").attribute(x, 1)
    g = model.box.weight[1] * (model(x)[:, 1:2] > 0)
    wanted = (g * ((model.body(x) > 0) & (g > 0))).detach() @ model.body.weight.detach()
    torch.testing.assert_close(left, wanted)
