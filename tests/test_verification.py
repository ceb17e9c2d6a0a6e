"""What `verify` proves of models that keep a graph, and what it says where it cannot."""

import pytest
import torch
from torch import nn

from pyrevgrad import GUIDED, SwapError, assert_overridden


class Caching(nn.Module):
    """In evaluation it computes a bias of its parameters once, as LeViT does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.act, self.b = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)
        self.biases, self.cached = nn.Parameter(torch.randn(4)), None

    def forward(self, x):
        if self.cached is None:
            self.cached = self.biases.repeat(2).exp()
        return self.b(self.act(self.a(x) + self.cached))


def test_a_model_that_keeps_what_it_computed_of_parameters_is_proved_again_and_again():
    model, x = Caching(), torch.randn(5, 4)
    for _ in range(2):
        proof = assert_overridden(model, GUIDED, x)
        assert proof.differing == proof.must_differ > 0


def test_gradients_that_are_all_zero_are_not_blamed_on_the_inputs():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.zeros_(model[2].weight)
    said = "no gradient but zero reached an activation .*, as before a layer of zero weights"
    with pytest.raises(SwapError, match=said):
        assert_overridden(model, GUIDED, torch.randn(5, 4))
    positive = nn.Sequential(nn.Linear(4, 1), nn.ReLU())
    nn.init.constant_(positive[0].bias, 100.0)
    with pytest.raises(SwapError, match="give other inputs"):
        assert_overridden(positive, GUIDED, torch.zeros(1, 4))
