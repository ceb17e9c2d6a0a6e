"""Steps that a model calls by PyTorch's functions: who has them taken, and what is said of them."""

from __future__ import annotations

import pytest
import torch
import zoo
from torch import nn

from pyrevgrad import GUIDED, STRAIGHT_THROUGH, SwapError, reverse, swap
from pyrevgrad.nn import Activation

HALF = torch.tensor(0.5)
STEPS = {
    "torch.round": ("round", torch.round),
    "torch.round(decimals=0)": ("round", lambda x: torch.round(x, decimals=0)),
    "Tensor.round": ("round", lambda x: x.round()),
    "Tensor.round_": ("round", lambda x: (x * 1).round_()),
    "ops.aten.round": ("round", torch.ops.aten.round.default),
    "torch.sign": ("sign", torch.sign),
    "torch.sgn": ("sign", torch.sgn),
    "Tensor.sign_": ("sign", lambda x: (x * 1).sign_()),
    "torch.heaviside": ("heaviside", lambda x: torch.heaviside(x, HALF)),
    "Tensor.heaviside": ("heaviside", lambda x: x.heaviside(values=HALF)),
}
X = torch.tensor([-1.5, -0.2, 0.0, 0.5, 2.5])
each_step = pytest.mark.parametrize(("kind", "step"), STEPS.values(), ids=STEPS)


def yes(site):
    return True


def gradient(model, rule, where=None):
    """The report, y, and the gradient of the input for g = 2."""
    x = X.clone().requires_grad_()
    with swap(model, rule, where) as swapped:
        y = model(x)
        y.backward(torch.full_like(y, 2.0))
    return swapped.report, y.detach(), x.grad


@each_step
def test_a_predicate_takes_a_step_straight_through(kind, step):
    for rule, factor in ((STRAIGHT_THROUGH, 1.0), (STRAIGHT_THROUGH.scaled(-0.5), -0.5)):
        report, y, gx = gradient(zoo.Layer(step), rule, lambda site: site.kind == kind)
        assert torch.equal(y, step(X)) and gx.tolist() == [2.0 * factor] * 5
        (site,) = report.sites
        assert (site.kind, site.forward, site.backward) == (kind, 1, 1)


@pytest.mark.parametrize("where", [None, "all", "1", zoo.Layer, nn.Sequential])
@pytest.mark.parametrize("step", [torch.round, torch.sign])
def test_a_step_is_left_and_listed_unless_a_predicate_asks_for_it(step, where):
    model = nn.Sequential(nn.ReLU(), zoo.Layer(lambda x: torch.relu(step(x))))
    report, _, gx = gradient(model, STRAIGHT_THROUGH, where)
    (site,) = [site for site in report.left if site.spelling == f"torch.{step.__name__}"]
    assert site.reason == (
        "a step, which models take for other ends too; "
        f"where=lambda site: site.kind == '{step.__name__}' takes it"
    )
    assert gx.tolist() == [0.0] * 5


def test_a_rectifier_that_rounds_is_no_step_by_its_name():
    class Quantised(nn.ReLU):
        def forward(self, x):
            return torch.round(super().forward(x))

    report, _, gx = gradient(nn.Sequential(Quantised()), GUIDED, nn.ReLU)
    assert [site.kind for site in report.replaced] == ["relu"]
    assert [site.kind for site in report.left] == ["round"] and gx.tolist() == [0.0] * 5


def test_a_step_whose_input_needs_no_gradient_is_not_mentioned():
    model = zoo.Layer(lambda x: torch.relu(x) + torch.round(x.detach()))
    for where in (None, yes):
        report, _, gx = gradient(model, GUIDED, where)
        assert [site.kind for site in report.sites] == ["relu"]
        assert gx.tolist() == [0.0, 0.0, 0.0, 2.0, 2.0]


def test_a_model_of_steps_alone_raises_with_the_way_to_take_them():
    way = r"torch\.sign in the model itself .* where=lambda site: site.kind == 'sign' takes it"
    with pytest.raises(SwapError, match=way):
        gradient(zoo.Layer(torch.sign), STRAIGHT_THROUGH)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda x: torch.round(x, decimals=1), "its decimals is not 0"),
        (lambda x: x.round(decimals=-1), "its decimals is not 0"),
        (lambda x: torch.heaviside(x, X), "its values is not one number"),
        (lambda x: torch.heaviside(x.sum(), X[:1]), "its values is not one number"),
    ],
)
def test_a_form_that_no_row_computes_is_refused_by_its_reason(step, reason):
    x = X.clone().requires_grad_()
    with (
        pytest.raises(SwapError, match=reason),
        swap(zoo.Layer(step), reverse(0.3), yes) as swapped,
    ):
        swapped.model(x)
    with swap(zoo.Layer(step), STRAIGHT_THROUGH, yes, strict=False) as swapped:
        assert torch.equal(swapped.model(x), step(X))
    assert [site.reason for site in swapped.report.left] == [reason]


def test_a_layer_of_ours_that_is_a_step_is_taken_by_name_and_by_all():
    for where in ("0", "all", Activation):
        report, _, gx = gradient(nn.Sequential(Activation("sign")), STRAIGHT_THROUGH, where)
        assert len(report.replaced) == 1 and gx.tolist() == [2.0] * 5


def test_verify_proves_a_step_straight_through():
    model = nn.Sequential(nn.Linear(5, 5), zoo.Layer(torch.round))
    with swap(model, STRAIGHT_THROUGH, yes) as swapped:
        proof = swapped.verify(torch.randn(3, 5))
    assert proof.differing == proof.must_differ == 15
