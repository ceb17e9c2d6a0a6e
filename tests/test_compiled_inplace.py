"""In place under torch.compile: the gradient is that at the input as it was, or a sentence."""

import pytest
import torch
from compiling import fresh_compiler  # noqa: F401
from expected import gradient, points, value

import pyrevgrad
from pyrevgrad import GUIDED, activation, reverse
from pyrevgrad.activations import ACTIVATIONS
from pyrevgrad.rules import RULES

pytestmark = pytest.mark.filterwarnings("ignore")


def overwriting(name, rule, part):
    def function(x):
        z = x * 1.0
        at = z if part == "whole" else z[1:]
        activation(at, name, RULES[rule], inplace=True)
        return z

    return function


def wanted(name, rule, part, x, g):
    """Value and gradient of `overwriting` by the tests' own formulas."""
    y, gx = x.clone(), g.clone()
    inner = slice(0 if part == "whole" else 1, None)
    y[inner] = value(name, x[inner])
    gx[inner] = gradient(name, rule, x[inner], g[inner]).detach()
    return y, gx


@pytest.mark.parametrize("part", ["whole", "view"])
@pytest.mark.parametrize("rule", ["EXACT", "reverse", "GUIDED", "guided_slope", "rectgrad"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_gradient_is_that_at_the_input_as_it_was(name, rule, part):
    x, g = points(name, rule)
    leaf = x.clone().requires_grad_()
    function = torch.compile(overwriting(name, rule, part), fullgraph=True, backend="aot_eager")
    z = function(leaf)
    y, gx = wanted(name, rule, part, x, g)
    torch.testing.assert_close(z.detach(), y)
    torch.testing.assert_close(torch.autograd.grad(z, leaf, g)[0], gx)


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_so_it_is_in_the_compilers_own_code(name):
    x, g = points(name, "reverse")
    leaf = x.clone().requires_grad_()
    z = torch.compile(overwriting(name, "reverse", "whole"), fullgraph=True)(leaf)
    y, gx = wanted(name, "reverse", "whole", x, g)
    torch.testing.assert_close(z.detach(), y)
    torch.testing.assert_close(torch.autograd.grad(z, leaf, g)[0], gx)


@pytest.mark.parametrize("name", ["silu", "mish", "hardswish"])
def test_a_layer_in_a_compiled_model_sends_what_the_eager_one_sends(name):
    torch.manual_seed(0)
    layer = pyrevgrad.nn.Activation(name, reverse(0.5), inplace=True)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), layer, torch.nn.Linear(6, 2))
    x = torch.randn(5, 4, requires_grad=True)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ours, theirs = (
        torch.autograd.grad(run(x).sum(), [x, *model.parameters()]) for run in (compiled, model)
    )
    torch.testing.assert_close(ours, theirs)


REFUSED = {
    "leaf": (lambda: torch.full((3,), -2.0, requires_grad=True), "on a leaf that requires grad"),
    "expanded": (lambda: torch.full((1,), -2.0).expand(3), "on an expanded tensor"),
    "overlapping": (lambda: torch.full((4,), -2.0).unfold(0, 2, 1), "that overlaps itself"),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_overwritten_is_refused_as_without_a_compiler(kind, dynamic):
    make, message = REFUSED[kind]
    x = make()
    function = torch.compile(
        lambda x: activation(x, "relu", GUIDED, inplace=True), backend="aot_eager", dynamic=dynamic
    )
    with pytest.raises(ValueError, match=message):
        function(x)
    assert (x == -2).all()


@pytest.mark.parametrize(
    "make", [lambda x: x.t(), lambda x: x[:, ::2], lambda x: x.unfold(0, 2, 2)]
)
def test_other_layouts_are_written_in_one_graph(make):
    x = torch.randn(4, 6)
    function = torch.compile(
        lambda x: activation(x, "tanh", inplace=True), backend="aot_eager", fullgraph=True
    )
    whole = x.clone()
    function(make(whole))
    part = x.clone()
    make(part).tanh_()
    torch.testing.assert_close(whole, part)
