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
    "relu by where of a tensor": lambda h: torch.where(h > 0, h, torch.tensor(0.0).double()),
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
    "a normalisation": lambda h: h / h.norm(dim=-1, keepdim=True).clamp(min=1e-6),
    "a floor": lambda h: torch.maximum(h, torch.full_like(h, 1e-6)),
    "a bound": lambda h: h.masked_fill(h > 9.0, 9.0),
    "zeros that were filled": lambda h: torch.maximum(h, torch.zeros_like(h).copy_(h.flip(0))),
}


@pytest.mark.parametrize("name", INNOCENT)
def test_what_is_no_activation_by_hand_does_not_warn(name):
    model = Wrapped(INNOCENT[name]).double()
    with swap(model, GUIDED, strict="all"):
        run(model)


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
