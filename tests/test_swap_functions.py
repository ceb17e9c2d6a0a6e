"""Activations inside somebody's autograd.Functions, where no gradient is recorded."""

import pytest
import torch
import torch.nn.functional as F
import zoo
from swapped_models import Wrapped, run
from torch import nn

from pyrevgrad import GUIDED, SwapError, SwapWarning, swap
from pyrevgrad.attribution import GuidedBackprop


class CheckpointFunction(torch.autograd.Function):
    """A checkpoint of somebody else's, of the same name as PyTorch's."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx, g):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.function(x)
        return None, torch.autograd.grad(y, x, g)[0]


class Sparing(torch.autograd.Function):
    """A relu that keeps its output alone, as libraries write it to save memory."""

    @staticmethod
    def forward(ctx, x):
        y = F.relu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        return g * (ctx.saved_tensors[0] > 0)


@pytest.mark.filterwarnings("ignore::pyrevgrad.swapping.SwapWarning")
def test_an_activation_inside_a_custom_function_is_not_replaced():
    model, x = nn.Sequential(nn.Linear(4, 4), zoo.Layer(Sparing.apply)), torch.randn(3, 4)
    said = "replaced no activation .* no gradient is recorded, as in an autograd.Function; it left"
    with pytest.raises(SwapError, match=said):
        GuidedBackprop(model).attribute(x, 1)
    with pytest.raises(SwapError, match=said), swap(model, GUIDED):
        model(x.requires_grad_())
    model.append(nn.ReLU())
    assert GuidedBackprop(model).attribute(x, 1).shape == x.shape


@pytest.mark.filterwarnings("ignore::pyrevgrad.swapping.SwapWarning")
def test_what_a_custom_function_recomputes_in_the_swap_is_replaced():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    outer, x = (
        zoo.Layer(lambda x: CheckpointFunction.apply(model, x)),
        torch.randn(3, 4).double().requires_grad_(),
    )
    outer.model = model
    with swap(outer, GUIDED):
        outer(x)[:, 1].sum().backward()
    torch.testing.assert_close(x.grad, GuidedBackprop(model).attribute(x, 1))


def test_a_checkpoint_of_ones_own_is_not_taken_for_pytorchs():
    model = Wrapped(lambda x: CheckpointFunction.apply(F.relu, x))
    with (
        pytest.warns(SwapWarning, match="custom autograd.Function called CheckpointFunction"),
        swap(model, GUIDED),
    ):
        run(model, dtype=torch.float32)
