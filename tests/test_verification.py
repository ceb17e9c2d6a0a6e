"""What `verify` proves of models that keep a graph, and what it says where it cannot."""

import torch
from torch import nn

from pyrevgrad import GUIDED, assert_overridden


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
