"""What a model returns its tensors in: the graph behind them is read, and the proof finds them."""

from __future__ import annotations

import dataclasses
from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from swapped_models import Wrapped
from torch import nn

import pyrevgrad
from pyrevgrad import GUIDED, SwapError, reverse, swap


def sixth(x):
    return F.relu6(x)


class Records(list):
    """A list that a library has made its own."""


@dataclasses.dataclass
class Node:
    """A result that refers to itself."""

    tensor: torch.Tensor
    root: Node | None = None


def in_a_tree(y):
    node = Node(y)
    node.root = node
    return node


CONTAINERS = {
    "dict subclass": lambda y: type("Result", (dict,), {})(y=y),
    "UserDict": lambda y: UserDict(y=[y]),
    "list subclass": lambda y: Records([y]),
    "set": lambda y: {y},
    "namespace": lambda y: SimpleNamespace(y=y),
    "dataclass that refers to itself": in_a_tree,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CONTAINERS)
def test_outputs_in_containers_of_any_kind_are_read_and_proved(name):
    made = CONTAINERS[name]
    x = torch.randn(5, 4)
    assert pyrevgrad.assert_overridden(Wrapped(made), GUIDED, x).differing
    hidden = Wrapped(lambda y: made(torch.jit.script(sixth)(y)))
    with pytest.raises(SwapError, match="HardtanhBackward is in the graph"):
        pyrevgrad.assert_overridden(hidden, GUIDED, x)


class Forces(nn.Module):
    """Forces of an energy, of which a second network makes the output."""

    def __init__(self, by):
        super().__init__()
        torch.manual_seed(0)
        self.energy, self.head, self.by = self.layers(), self.layers(), by

    def layers(self):
        return nn.Sequential(
            nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)
        )

    def forward(self, x):
        if self.by == "torch.func":
            force = torch.func.grad(lambda x: self.energy(x).sum())(x)
        else:
            (force,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return self.head(force)


class Scripted(Forces):
    def layers(self):
        return Wrapped(torch.jit.script(sixth))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("by", ["torch.autograd", "torch.func"])
def test_what_a_gradient_in_the_forward_leaves_in_the_graph_is_no_unseen_activation(by):
    x = torch.randn(5, 4, requires_grad=True)
    model = Forces(by)
    with swap(model, reverse(1.0), where="all", strict="all") as swapped:
        model(x).sum().backward()
    assert [site.forward for site in swapped.report.replaced] == [1, 1, 1, 1]
    hidden = Scripted(by)
    with pytest.raises(SwapError, match="HardtanhBackward is in the graph"), swap(hidden, GUIDED):
        hidden(x)


def test_verify_says_what_kind_of_output_holds_no_tensor_that_it_finds():
    class Own:
        def __init__(self, y):
            self.y = y

    with pytest.raises(SwapError, match="no tensor was found in the Own that the model returns"):
        pyrevgrad.assert_overridden(Wrapped(Own), GUIDED, torch.randn(5, 4))
