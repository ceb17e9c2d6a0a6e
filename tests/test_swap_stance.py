"""Models that compile a part of themselves: under a swap it runs uncompiled, and seen."""

import inspect
import threading

import pytest
import torch
from compiling import fresh_compiler  # noqa: F401
from torch import nn

from pyrevgrad import GUIDED, assert_overridden, swap
from pyrevgrad.attribution import GuidedBackprop
from pyrevgrad.swapping import stance
from pyrevgrad.swapping.patterns import Patterns

#: The compiler asks tensors for what they warn of.
pytestmark = pytest.mark.filterwarnings("ignore")


class Partly(nn.Module):
    """Two linear layers, and between them a function that is compiled."""

    def __init__(self, backend, function=torch.relu):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.part = torch.compile(function, backend=backend, dynamic=True)

    def forward(self, x):
        return self.b(self.part(self.a(x)))


class Kept:
    """A backend that compiles nothing, and keeps the graphs that it is given."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, _):
        self.graphs.append(graph)
        return graph.forward


def guided_map(model, x, column):
    """By the weights, where one ReLU stands between them."""
    g = model.b.weight[column].expand(len(x), -1)
    return (g * ((model.a(x) > 0) & (g > 0))).detach() @ model.a.weight.detach()


def test_a_part_that_the_model_compiles_runs_uncompiled_and_takes_the_rule():
    backend, x = Kept(), torch.randn(4, 6)
    model = Partly(backend)
    found = GuidedBackprop(model).attribute(x, 1)
    assert not backend.graphs
    torch.testing.assert_close(found, guided_map(model, x, 1))
    model(x)
    assert len(backend.graphs) == 1


def test_verify_compares_with_values_that_nothing_compiled():
    def rounding(graph, _):
        return lambda *given: tuple(y * 1.0001 for y in graph.forward(*given))

    assert assert_overridden(Partly(rounding), GUIDED, torch.randn(4, 6)).differing


def test_behind_a_graph_break_nothing_of_the_swap_is_compiled(monkeypatch):
    monkeypatch.setattr(stance, "_inside_compiler", lambda: True)
    x = torch.randn(4, 6)

    def part(x):
        return x.relu() * torch.arange(3.0)[:, None].clamp(min=0).mean()

    model = Partly("eager", part)
    torch.testing.assert_close(GuidedBackprop(model).attribute(x, 1), guided_map(model, x, 1))
    methods = [method for method in vars(Patterns).values() if inspect.isfunction(method)]
    compiled = torch._C._dynamo.eval_frame._debug_get_cache_entry_list
    assert methods and not [method for method in methods if compiled(method.__code__)]


def test_an_operator_that_pytorch_compiles_whole_runs_in_a_swap():
    from torch.nn.attention.flex_attention import flex_attention

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = torch.compile(flex_attention, backend="eager")

        def forward(self, x):
            return self.part(x, x, x).relu()

    model, x = Attending(), torch.randn(1, 2, 16, 16)
    with torch.no_grad(), swap(model, GUIDED):
        y = model(x)
    expected = nn.functional.scaled_dot_product_attention(x, x, x).relu()
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("own", ["default", "eager_on_recompile"])
def test_the_stance_is_as_before_once_every_thread_has_left(own):
    def now():
        return torch._dynamo.eval_frame._stance.stance

    inside, leave = threading.Event(), threading.Event()

    def other():
        with stance.uncompiled():
            inside.set()
            leave.wait()

    with torch.compiler.set_stance(own):
        thread = threading.Thread(target=other)
        with stance.uncompiled():
            thread.start()
            inside.wait()
        assert now() == "force_eager"
        leave.set()
        thread.join()
        assert now() == own


def test_a_stance_that_the_model_takes_for_good_stays():
    with torch.compiler.set_stance("default"):
        with stance.uncompiled():
            torch.compiler.set_stance("eager_on_recompile")
        assert torch._dynamo.eval_frame._stance.stance == "eager_on_recompile"
