"""jacobian: columns that are the methods' maps, all at once or in chunks, plain or modified."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyrevgrad import GUIDED, SwapError
from pyrevgrad.attribution import GuidedBackprop, Saliency, jacobian


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(80, 4)
    ).double()


def batch():
    return torch.randn(3, 2, 6, 6, dtype=torch.float64)


def test_the_jacobian_of_one_column_and_of_all():
    model, x = network(), batch()
    plain = jacobian(model, x)
    guided_ = jacobian(model, x, rule=GUIDED)
    assert plain.shape == guided_.shape == (3, 4, 2, 6, 6)
    for column in range(4):
        saliency = Saliency(model).attribute(x, column, abs=False)
        torch.testing.assert_close(plain[:, column], saliency)
        torch.testing.assert_close(jacobian(model, x, column), saliency)
        modified = GuidedBackprop(model).attribute(x, column)
        torch.testing.assert_close(guided_[:, column], modified)
        torch.testing.assert_close(jacobian(model, x, (column,), rule=GUIDED), modified)
    chunked = jacobian(model, x, rule=GUIDED, chunk_size=1)
    torch.testing.assert_close(chunked, guided_)


def test_the_jacobian_of_no_samples_has_the_shape_of_some():
    model, x = network(), batch()[:0]
    assert jacobian(model, x).shape == jacobian(model, x, rule=GUIDED).shape == (0, 4, 2, 6, 6)
    assert jacobian(model, x, 1).shape == x.shape


def test_a_jacobian_that_cannot_be():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="output 3 is out of range"):
        jacobian(model, x, 3)
    with pytest.raises(ValueError, match="does not index outputs of shape"):
        jacobian(model, x, (1, 2))
    for output in (1.0, True, slice(None)):
        with pytest.raises(TypeError, match="output must be made of ints, got"):
            jacobian(model, x, output)
    with pytest.raises(TypeError, match="floating point tensor of shape"):
        jacobian(model, x.long())
    several = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    several.register_forward_hook(lambda module, args, y: {"logits": y})
    with pytest.raises(TypeError, match="not dict: wrap it in a module"):
        jacobian(several, x, 0)
    with pytest.raises(TypeError, match="not dict: wrap it in a module"):
        GuidedBackprop(several).attribute(x, 0)
    with pytest.raises(ValueError, match="as many samples as x"):
        jacobian(nn.Flatten(0), x)
    with pytest.raises(SwapError, match="replaced no activation"):
        jacobian(model, x, 0, rule=GUIDED)


def test_a_rule_in_the_place_of_the_output_is_told_where_it_belongs():
    with pytest.raises(
        TypeError, match="output must be made of ints, got a rule; pass rule=GUIDED"
    ):
        jacobian(nn.Linear(2, 2), torch.ones(1, 2), GUIDED)
