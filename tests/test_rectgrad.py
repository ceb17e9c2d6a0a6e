"""RectGrad's percentile: of which samples, in which dimensions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from torch import nn

from pyrevgrad import DECONVNET, rectgrad
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


class Biased(nn.Module):
    """A bias that layers with a relu make of fixed places, as in Swin V2, beside the samples."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.places = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 20))
        self.first, self.relu, self.head = nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 3)
        self.register_buffer("table", torch.randn(7, 2))

    def forward(self, x):
        return self.head(self.relu(self.first(x) + self.places(self.table).mean(0)))


def test_rectgrad_asks_no_samples_of_activations_that_the_map_does_not_depend_on():
    model, x = Biased(), torch.randn(5, 4)
    found = RectGrad(model, percentile=60).attribute(x, 1)
    for i in range(5):
        one = RectGrad(model, percentile=60, where="relu").attribute(x[i : i + 1], 1)
        torch.testing.assert_close(found[i : i + 1], one)
    assert found.any()


def two_layers():
    torch.manual_seed(0)
    parts = nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)
    return nn.Sequential(*parts).double(), torch.randn(4, 5).double()


def test_the_report_says_which_percentile_ran():
    model, x = two_layers()
    method = RectGrad(model, percentile=97.5)
    method.attribute(x, 1)
    report, name = method.report, "rectgrad(percentile 97.5)"
    assert [repr(site.rule) for site in report.replaced] == [name] * 2
    assert str(report).startswith(f"{name} on Sequential") and str(report).count(name) == 3
    assert report.as_dict()["rule"] == report.as_dict()["replaced"][0]["rule"] == name
    assert "rectgrad(0" not in str(report) + report.to_json()
    constant = RectGrad(model, threshold=0.25)
    constant.attribute(x, 1)
    assert str(constant.report).count("rectgrad(0.25)") == 3
    assert RectGrad(model).rule.formula("relu") == rectgrad(0.0).formula("relu")


def test_a_rule_that_where_gives_an_activation_runs_beside_the_percentile():
    model, x = two_layers()
    method = RectGrad(model, percentile=60, where={"1": DECONVNET})
    found = method.attribute(x, 1)
    one, two, three = (part.weight.detach().numpy() for part in model[::2])
    h = np.maximum(model[0](x).detach().numpy(), 0)
    pre, g = (model[2](torch.from_numpy(h))).detach().numpy(), three[1]
    product = np.maximum(pre, 0) * g
    passes = (product > np.percentile(product, 60, axis=1, keepdims=True)) & (pre > 0)
    back = np.where(passes, g, 0.0) @ two
    np.testing.assert_allclose(found, np.maximum(back, 0) @ one, rtol=1e-12)
    assert [repr(site.rule) for site in method.report.replaced] == [
        "DECONVNET", "rectgrad(percentile 60)",
    ]  # fmt: skip
