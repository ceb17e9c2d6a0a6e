"""RectGrad's percentile: of which samples, in which dimensions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from torch import nn

from pyrevgrad.attribution import RectGrad


def test_rectgrad_passes_what_is_above_the_percentile_of_its_sample():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    x = torch.randn(4, 5).double()
    found = RectGrad(model, percentile=70).attribute(x, 1)
    pre = (x @ model[0].weight.T + model[0].bias).detach().numpy()
    g = model[2].weight[1].detach().numpy()
    product = np.maximum(pre, 0) * g
    threshold = np.percentile(product, 70, axis=1, keepdims=True)
    sent = np.where((product > threshold) & (pre > 0), g, 0.0)
    np.testing.assert_allclose(found, sent @ model[0].weight.detach().numpy(), rtol=1e-12)


class Sequence(nn.Module):
    """A layer that wants the sequence first, given samples first."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


def test_rectgrad_takes_one_sample_whole_wherever_its_dimensions_stand():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0).double().eval()
    first = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().eval()
    first.load_state_dict(layer.state_dict())
    x = torch.randn(3, 5, 8).double()
    whole = RectGrad(first, percentile=60).attribute(x, target=(1, 2))
    for sample, wanted in zip(x, whole, strict=True):
        found = RectGrad(Sequence(layer), percentile=60).attribute(sample[None], target=(1, 2))
        torch.testing.assert_close(found[0], wanted)
    sentence = (
        r"F\.relu meets 5 along the first dimension .* given 3 samples; give one sample a call"
    )
    with pytest.raises(ValueError, match=sentence):
        RectGrad(Sequence(layer), percentile=60).attribute(x, target=(1, 2))


class Paired(nn.Module):
    """One query beside many samples."""

    def __init__(self):
        super().__init__()
        self.product = nn.Bilinear(1, 4, 6)

    def forward(self, query, x):
        return torch.relu(self.product(query.expand(len(x), 1), x)).cumsum(1)


def test_rectgrad_counts_samples_of_all_inputs():
    torch.manual_seed(0)
    q, x = torch.randn(1, 1), torch.randn(5, 4)
    both = Paired()
    whole = RectGrad(both, 60.0).attribute((q, x), target=4)[1]
    for i in range(5):
        one = RectGrad(both, 60.0).attribute((q, x[i : i + 1]), target=4)[1]
        torch.testing.assert_close(whole[i : i + 1], one)
    assert RectGrad(both, 60.0).attribute((q, x[:0]), target=4)[1].shape == (0, 4)


def test_rectgrad_of_activations_of_one_dimension_and_of_none():
    model = zoo.Layer(lambda x: torch.relu(x.sum(1))[:, None].expand(-1, 2))
    assert torch.equal(RectGrad(model).attribute(torch.ones(3, 4), 1), torch.zeros(3, 4))
    single = zoo.Layer(lambda x: torch.relu(x.sum()).expand(1, 2))
    assert torch.equal(RectGrad(single).attribute(torch.ones(1, 4), 1), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="meets 1 along the first dimension"):
        RectGrad(single).attribute(torch.ones(3, 4), 1)
