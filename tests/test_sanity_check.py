"""sanity_check: layers from the top, both measures by another formula, nothing left changed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyrevgrad.attribution import Deconvolution, GuidedBackprop, Saliency, sanity, sanity_check
from pyrevgrad.attribution.sanity import _cosine, _ranks


class Net(nn.Module):
    """Registered in another order than it runs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.unused = nn.Linear(24, 3), nn.Linear(2, 2)
        self.second, self.first = nn.Linear(24, 24), nn.Linear(10, 24)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def test_layers_are_randomised_from_the_output_down_in_the_order_they_run():
    model, x = Net(), torch.randn(20, 10)
    before = copy.deepcopy(model.state_dict())
    check = sanity_check(model, x)
    assert check.layers == ["head", "second", "first"]
    assert set(check.cosines) == {"GuidedBackprop", "plain gradient"}
    assert all(torch.equal(a, before[name]) for name, a in model.state_dict().items())
    again = sanity_check(model, x)
    assert again.cosines == check.cosines and again.ranks == check.ranks
    other = sanity_check(model, x, seed=1)
    assert other.cosines != check.cosines


class Uncalled(nn.Module):
    """Uses parameters of modules that it does not call."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.tied, self.unused = nn.Linear(8, 3), nn.Linear(8, 8), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.body = nn.ModuleDict({"inner": nn.Linear(8, 8)})
        self.tied.weight = self.body["inner"].weight
        self.scales = nn.ParameterList([nn.Parameter(torch.randn(8)) for _ in range(2)])
        self.shifts = nn.ParameterDict({"a": nn.Parameter(torch.randn(8))})

    def forward(self, x):
        x = x.to(self.head.weight.dtype)
        x = F.linear(x, self.body["inner"].weight) * self.scales[0]
        x = torch.relu(self.tied(x + self.shifts["a"]))
        return self.head(self.attention(x, x, x)[0].mean(1) * self.scales[1])


def test_layers_whose_parameters_are_used_without_a_call_of_theirs_are_randomised(monkeypatch):
    model, randomised = Uncalled().eval(), []
    monkeypatch.setattr(sanity, "_randomise", lambda module, own: randomised.append(module))
    check = sanity_check(model, torch.randn(4, 5, 8), target=1)
    assert check.layers == [
        *("head", "attention.out_proj", "attention", "shifts", "scales", "tied"),
    ]
    assert [type(module).__name__ for module in randomised[:3]] == [
        *("Linear", "NonDynamicallyQuantizableLinear", "MultiheadAttention"),
    ]


def test_it_gives_the_same_in_inference_mode():
    model, x = Net(), torch.randn(5, 10)
    with torch.inference_mode():
        found = sanity_check(model, x.clone())
    assert found == sanity_check(model, x)


def test_guided_backpropagation_forgets_less_than_the_gradient():
    check = sanity_check(Net(), torch.randn(50, 10))
    assert check.cosines["GuidedBackprop"][0] > 0.3 > abs(check.cosines["plain gradient"][0])


def test_a_map_of_the_input_alone_stays_at_one():
    class Constant:
        def __init__(self, model):
            pass

        def attribute(self, inputs, target, additional_forward_args):
            return inputs.clone()

    check = sanity_check(Net(), torch.randn(5, 10), target=1, method=Constant)
    assert check.cosines["Constant"] == pytest.approx([1.0] * 3)
    assert check.ranks["Constant"] == pytest.approx([1.0] * 3)


def test_ranks_compare_sizes_whatever_the_sign():
    class Flipping:
        """Maps of fixed sizes, whose signs are others at each call."""

        calls = 0

        def __init__(self, model):
            pass

        def attribute(self, inputs, target, additional_forward_args):
            Flipping.calls += 1
            return inputs * torch.where(torch.arange(10) % (Flipping.calls + 1) == 0, -1.0, 1.0)

    check = sanity_check(Net(), torch.randn(5, 10), target=1, method=Flipping)
    assert check.ranks["Flipping"] == pytest.approx([1.0] * 3)
    assert max(check.cosines["Flipping"]) < 0.99


def test_rank_correlation_is_spearmans():
    stats = pytest.importorskip("scipy.stats")
    a, b = torch.randn(1, 40).double(), torch.randn(1, 40).double().round()
    a[0, :5] = b[0, :7].max()
    wanted = stats.spearmanr(a[0].numpy(), b[0].numpy()).statistic
    assert _cosine(_ranks(a), _ranks(b)) == pytest.approx(wanted)


def test_the_table_and_the_plot(tmp_path):
    check = sanity_check(Net(), torch.randn(5, 10), method=Deconvolution)
    text = str(check)
    assert "Deconvolution: cosine" in text and "1810.03292" in text
    pytest.importorskip("matplotlib")
    check.plot(tmp_path / "check.png")
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")


def test_targets_and_errors():
    model = Net()
    check = sanity_check(model, torch.randn(4, 10), target=[0, 1, 2, 0], method=GuidedBackprop)
    assert len(check.layers) == 3
    with pytest.raises(TypeError, match=r"method must make an .*; got an object of Saliency"):
        sanity_check(model, torch.randn(4, 10), method=Saliency(model))
    with pytest.raises(ValueError, match="no layer with parameters ran"):
        sanity_check(nn.ReLU(), torch.randn(2, 1), method=Saliency)


def test_inputs_of_one_number_a_sample():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.head = nn.Linear(1, 9), nn.Linear(9, 2)

        def forward(self, x):
            return self.head(torch.relu(self.first(x.reshape(-1, 1))))

    x, model = torch.randn(6), Wide()
    check = sanity_check(model, x, target=1)
    assert check == sanity_check(model, x[:, None], target=1)
    assert check.layers == ["head", "first"]
