"""What a tensor was made of: data and parameters apart, and activations written by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from swapped_models import Wrapped, run
from torch import nn

from pyrevgrad import GUIDED, SwapWarning, swap
from pyrevgrad.attribution import GuidedBackprop

# Data written into what was a parameter.


class Tokens(nn.Module):
    """A learned token that data are added to; `write(token, h)` says how."""

    def __init__(self, write):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.act, self.b = nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16)
        self.c, self.token = nn.Linear(16, 3), nn.Parameter(torch.zeros(8, 16))
        self.write = write
        self.double()

    def forward(self, x):
        return self.c(F.relu(self.write(self.token, self.b(self.act(self.a(x))))))


def copied(into):
    """A way to write that changes a copy of the token."""

    def write(token, h):
        copy = token.clone()
        into(copy, h)
        return copy

    return write


def set_slice(token, h):
    token[:] = h + token


def through_a_view(token, h):
    token.view(-1).add_(h.flatten())


WRITES = {
    "+=": copied(lambda token, h: token.add_(h)),
    "other=": lambda token, h: torch.add(token, other=h),
    "method, other=": lambda token, h: token.add(other=h),
    "sub, other=": lambda token, h: -torch.sub(token, other=h),
    "cast and +=": lambda token, h: token.double().clone().float().double().add_(h),
    "index_add_": copied(lambda token, h: token.index_add_(0, torch.arange(8), h)),
    "a slice": copied(set_slice),
    "a view": copied(through_a_view),
    "copy_": copied(lambda token, h: token.copy_(h)),
}


@pytest.mark.parametrize("name", WRITES)
def test_data_written_into_a_copy_of_a_parameter_are_data(name):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).double()
    plainly = Tokens(lambda token, h: token + h)
    wanted = GuidedBackprop(plainly).attribute(x, target=1)
    model = Tokens(WRITES[name])
    torch.testing.assert_close(GuidedBackprop(model).attribute(x, target=1), wanted)
    with swap(model, GUIDED, strict="all") as swapped:
        model(x.requires_grad_()).sum().backward()
    assert [site.forward for site in swapped.report.replaced] == [1, 1]


def test_what_is_made_of_the_parameter_alone_is_still_left():
    model = Tokens(lambda token, h: h + F.relu(token.clone().mul_(2.0).add_(1.0)))
    with swap(model, GUIDED) as swapped:
        model(torch.randn(8, 6).double().requires_grad_()).sum().backward()
    assert [site.reason for site in swapped.report.left] == [
        "its input is a parameter of the model, and so it is no activation of the data"
    ]


# Written by hand.

BY_HAND = {
    "hard swish": lambda h: h * F.relu6(h + 3) / 6,
    "hard swish by hardtanh": lambda h: h * F.hardtanh(h + 3, 0, 6) / 6,
    "hard swish by clamp": lambda h: h * torch.clamp(h + 3, 0, 6) / 6,
    "hard sigmoid": lambda h: F.relu6(h + 3) / 6,
    "hard sigmoid by clamp": lambda h: (3 + h).clamp(min=0, max=6) / 6,
    "swish by expit": lambda h: h * torch.special.expit(h),
    "swish, in place": lambda h: h.clone().mul_(h.sigmoid()),
    "swish of what is clamped": lambda h: (c := h.clamp(max=7.0)) * torch.sigmoid(1.702 * c),
    "relu by where": lambda h: h.where(h > 0, torch.zeros_like(h)),
    "relu by maximum": lambda h: torch.maximum(h, other=torch.zeros_like(h)),
    "relu by clamp of zeros": lambda h: torch.clamp(h, min=torch.zeros_like(h)),
    "relu by clip of zeros": lambda h: h.clip(h.new_zeros(4)),
    "relu by clamp_ of zeros": lambda h: h.clone().clamp_(torch.zeros(4).double()),
    "relu by clamp_min of zeros": lambda h: torch.clamp_min(h, torch.zeros_like(h)),
    "relu6 by clamp of tensors": lambda h: h.clamp(torch.zeros_like(h), torch.full_like(h, 6)),
    "an operator of clamp": lambda h: torch.ops.aten.clamp.Tensor(h, torch.zeros_like(h)),
    "leaky relu by maximum": lambda h: torch.maximum(h, 0.1 * h),
    "leaky relu by max": lambda h: torch.max(h * 0.01, h),
    "leaky relu by fmax": lambda h: torch.fmax(h, torch.mul(h, 0.2)),
    "leaky relu, in place": lambda h: torch.max(h, h.clone().mul_(0.1)),
    "leaky relu of a constant": lambda h: torch.max(h, h * torch.tensor(0.1)),
    "leaky relu twice scaled": lambda h: torch.max(h, 0.5 * (0.5 * h)),
    "leaky relu of two scaled": lambda h: torch.max(2.0 * h, 0.1 * h),
    "relu by where of a tensor": lambda h: torch.where(h > 0, h, torch.tensor(0.0).double()),
    "swish of a view": lambda h: h * torch.sigmoid(h.view(-1)).reshape(h.shape),
    "swish of another shape": lambda h: h[None] * h.reshape(1, -1, h.shape[1]).sigmoid(),
    "leaky relu of views": lambda h: torch.max(h.flatten(), 0.1 * h.view(-1)),
    "relu by integers": lambda h: h * (h > 0).long(),
    "relu by what is not negative": lambda h: h * (~(h < 0)),
    "relu by a detached gate": lambda h: h * (h.detach() > 0),
    "relu by greater": lambda h: h * torch.greater(h, 0),
    "gelu by ndtr": lambda h: h * torch.special.ndtr(h),
    "relu by masked_fill": lambda h: h.masked_fill(h < 0, 0.0),
    "an operator of ATen": lambda h: torch.ops.aten.mul.Tensor(h, torch.ops.aten.sigmoid(h)),
    "overloads of ATen": lambda h: torch.ops.aten.mul.Tensor(
        h, torch.ops.aten.clamp.default(torch.ops.aten.add.Tensor(h, 3), 0, 6)
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_written_by_hand_warns(name):
    model = Wrapped(BY_HAND[name]).double()
    with pytest.warns(SwapWarning, match="written by hand"), swap(model, GUIDED):
        run(model)


INNOCENT = {
    "a shift into another clamp": lambda h: torch.clamp(h + 3, -6, 6),
    "a clamp of a sum": lambda h: torch.clamp(h + 2, 0, 6),
    "a product of two": lambda h: h * torch.sigmoid(h.flip(0)),
    "a product with its transpose": lambda h: (h[:4] * h[:4].sigmoid().t()).sum(0) + h,
    "a gate of a pair": lambda h: h + (h.reshape(-1, 1) * h.view(1, -1).sigmoid()).sum(),
    "a maximum of a pair": lambda h: h + torch.max(h.reshape(-1, 1), 0.1 * h.view(1, -1)).sum(),
    "a linear unit gated by its other half": lambda h: (
        h + (h[:, :2].contiguous() * h.view(-1, 4)[:, 2:].sigmoid()).sum()
    ),
    "a normalisation": lambda h: h / h.norm(dim=-1, keepdim=True).clamp(min=1e-6),
    "a floor": lambda h: torch.maximum(h, torch.full_like(h, 1e-6)),
    "a bound": lambda h: h.masked_fill(h > 9.0, 9.0),
    "a clamp to a floor of tensors": lambda h: torch.clamp(h, min=torch.full_like(h, 1e-6)),
    "a clamp from above": lambda h: torch.clamp(h, max=torch.zeros_like(h)),
    "a clamp to other data": lambda h: torch.clamp(h, min=h.flip(0)),
    "a clamp_min to other data": lambda h: torch.clamp_min(h, h.flip(0)),
    "a clamp of zeros that were filled": lambda h: h.clamp(
        min=torch.zeros_like(h).copy_(h.flip(0))
    ),
    "a clamp of integers": lambda h: h + torch.arange(4).clamp(min=torch.zeros(4).long()),
    "a maximum of integers": lambda h: h + torch.maximum(h.long(), torch.zeros(4).long()),
    "a maximum of constants": lambda h: h + torch.max(torch.ones(4), torch.zeros(4)),
    "an absolute value": lambda h: torch.max(h, -1.0 * h),
    "an absolute value by neg": lambda h: torch.max(h, -h),
    "a maximum of itself": lambda h: torch.max(h, h.clone()),
    "a maximum of what was scaled": lambda h: torch.max(c := h.clone(), c.mul_(0.1)),
    "a maximum with a shift": lambda h: torch.max(h, h + 1.0),
    "a maximum with a square": lambda h: torch.max(h, h * h),
    "a maximum with a normalisation": lambda h: torch.max(h, h / h.norm()),
    "a maximum with other data": lambda h: torch.max(h, 0.1 * h.flip(0)),
    "a maxout": lambda h: torch.max(h[:, ::2], h[:, 1::2]).repeat(1, 2),
    "a maximum along a dimension": lambda h: h + h.max(1, keepdim=True).values,
    "zeros that were filled": lambda h: torch.maximum(h, torch.zeros_like(h).copy_(h.flip(0))),
}


@pytest.mark.parametrize("name", INNOCENT)
def test_what_is_no_activation_by_hand_does_not_warn(name):
    model = Wrapped(INNOCENT[name]).double()
    with swap(model, GUIDED, strict="all"):
        run(model)


def test_bounds_of_a_parameter_do_not_warn():
    def bounded(token, h):
        floored = torch.clamp(token, min=torch.zeros_like(token))
        return h + floored + torch.maximum(token, torch.zeros(16)) + torch.max(token, 0.1 * token)

    model = Tokens(bounded)
    with swap(model, GUIDED, strict="all"):
        model(torch.randn(8, 6).double().requires_grad_()).sum().backward()


def test_a_clamp_from_one_zero_up_is_taken_and_does_not_warn():
    for zero in (torch.tensor(0.0), torch.zeros(1)):
        model = Wrapped(lambda h, zero=zero: torch.clamp(h, min=zero.double())).double()
        with swap(model, GUIDED, strict="all") as swapped:
            run(model)
        assert swapped.report.replaced[0].kind == "relu" and not swapped.report.left


@pytest.mark.filterwarnings("ignore::pyrevgrad.SwapWarning", "ignore::FutureWarning")
def test_a_decomposed_exported_graph_says_what_it_does_not_take():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act, self.b = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

        def forward(self, x):
            return F.silu(self.b(self.act(self.a(x))))

    exported = torch.export.export(Both(), (torch.randn(2, 4),))
    model = exported.run_decompositions().module()
    with swap(model, GUIDED, strict=False) as swapped:
        model(torch.randn(2, 4, requires_grad=True)).sum().backward()
    found = [(site.kind, site.rule, site.certain) for site in swapped.report.sites]
    by_hand = "x·sigmoid(x) written by hand"
    assert found == [("relu", GUIDED, True), ("sigmoid", None, True), (by_hand, None, False)]


class HandSwish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


def test_layers_of_one_class_are_warned_of_once_and_listed_each():
    model = nn.Sequential(nn.Linear(4, 4), HandSwish(), HandSwish(), nn.ReLU(), HandSwish())
    with pytest.warns(SwapWarning) as warned, swap(model, GUIDED) as swapped:
        model(torch.randn(2, 4, requires_grad=True))
    (only,) = warned
    assert "written by hand in 1 " in str(only.message)
    assert [site.path for site in swapped.report.left if not site.certain] == ["1", "2", "4"]
