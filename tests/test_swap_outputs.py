"""What a model returns its tensors in: the graph behind them is read, and the proof finds them."""

from __future__ import annotations

import dataclasses
from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from swapped_models import Wrapped

import pyrevgrad
from pyrevgrad import GUIDED, SwapError


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


def test_verify_says_what_kind_of_output_holds_no_tensor_that_it_finds():
    class Own:
        def __init__(self, y):
            self.y = y

    with pytest.raises(SwapError, match="no tensor was found in the Own that the model returns"):
        pyrevgrad.assert_overridden(Wrapped(Own), GUIDED, torch.randn(5, 4))
