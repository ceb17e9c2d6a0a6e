"""SmoothGrad: the mean of a method's maps over noise, for any method and any dtype."""

from __future__ import annotations

import sys

import pytest
import torch
import zoo
from torch import nn

from pyrevgrad.attribution import (
    GuidedBackprop,
    GuidedGradCam,
    NeuronDeconvolution,
    NeuronGuidedBackprop,
    Saliency,
    SmoothGrad,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).double()


def batch():
    return torch.randn(3, 2, 6, dtype=torch.float64)


def test_smoothgrad_is_the_mean_over_seeded_noise():
    model, x = network(), batch()
    method = SmoothGrad(GuidedBackprop(model), samples=4, spread=0.2, seed=3)
    found = method.attribute(x, 1)
    own = torch.Generator().manual_seed(3)
    width = 0.2 * (x.flatten(1).amax(1) - x.flatten(1).amin(1)).reshape(3, 1, 1)
    maps = []
    for _ in range(4):
        noise = torch.randn(x.shape, generator=own, dtype=x.dtype)
        maps.append(GuidedBackprop(model).attribute(x + width * noise, 1))
    torch.testing.assert_close(found, torch.stack(maps).mean(0))
    assert torch.equal(method.attribute(x, 1), found)
    with pytest.raises(ValueError, match="samples must be >= 1, got 0"):
        SmoothGrad(method, samples=0)
    with pytest.raises(TypeError, match="samples must be a whole number, not float"):
        SmoothGrad(method, samples=3.0)
    with pytest.raises(ValueError, match="spread must not be NaN"):
        SmoothGrad(method, spread=float("nan"))
    with pytest.raises(ValueError, match="spread must be >= 0"):
        SmoothGrad(method, spread=-1)


def test_smoothgrad_of_several_inputs_shows_progress(capsys):
    pytest.importorskip("tqdm")
    model = zoo.Layer(lambda x: x)
    model.forward = lambda x, y: (torch.relu(x) * y).sum(1)
    x = torch.randn(3, 4)
    found = SmoothGrad(GuidedBackprop(model), samples=3, progress=True).attribute((x, x))
    assert len(found) == 2 and "SmoothGrad" in capsys.readouterr().err


def test_progress_without_tqdm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    method = SmoothGrad(GuidedBackprop(network()), samples=3, progress=True)
    with pytest.raises(ImportError, match=r'needs tqdm: pip install "pyrevgrad\[demo\]"'):
        method.attribute(batch(), 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_many_maps_in_a_half_type_add_up_to_their_mean(dtype):
    model, x = network().to(dtype), batch().to(dtype)
    found = SmoothGrad(Saliency(model), samples=500, spread=0.0).attribute(x, 1)
    assert found.dtype == dtype
    assert torch.equal(found, Saliency(model).attribute(x, 1))


@pytest.mark.parametrize("neuron", [NeuronGuidedBackprop, NeuronDeconvolution])
def test_methods_of_neurons_are_smoothed_too(neuron):
    method, x = neuron(network(), "1"), batch()
    wanted = method.attribute(x, 3)
    smooth = SmoothGrad(method, samples=2, spread=0.0)
    torch.testing.assert_close(smooth.attribute(x, 3), wanted)
    torch.testing.assert_close(smooth.attribute(x, neuron_selector=3), wanted)


def test_what_follows_the_inputs_stands_as_in_the_methods_own_call():
    model, x = network(), batch()
    found = SmoothGrad(Saliency(model), samples=2, spread=0.0).attribute(x, 1, False)
    torch.testing.assert_close(found, Saliency(model).attribute(x, 1, abs=False))


def test_samples_of_one_number_have_no_range():
    x = torch.randn(6)
    model = zoo.Layer(lambda x: x**3)
    found = SmoothGrad(Saliency(model), samples=2).attribute(x)
    torch.testing.assert_close(found, 3 * x**2)
    torch.testing.assert_close(
        found, SmoothGrad(Saliency(model), samples=2).attribute(x[:, None])[:, 0]
    )
    assert SmoothGrad(Saliency(model), samples=2).attribute(x[:0]).shape == (0,)


class Dropping(nn.Module):
    """A model whose map is half of its dropout's mask; it keeps the masks."""

    def __init__(self):
        super().__init__()
        self.drop, self.act, self.masks = nn.Dropout(0.5), nn.ReLU(), []
        self.c = nn.Conv2d(1, 1, 1)
        nn.init.constant_(self.c.weight, 0.5)

    def forward(self, x):
        mask = self.drop(torch.ones_like(x))
        self.masks.append(mask)
        return (self.c(self.act(x)) * mask).flatten(1).sum(1)


def with_masks(make, samples=200, seed=0):
    torch.manual_seed(0)
    model, x = Dropping(), torch.ones(2, 1, 4, 4)
    method = SmoothGrad(make(model), samples=samples, spread=0.0, seed=seed)
    return model, method, x


@pytest.mark.parametrize("make", [GuidedBackprop, Saliency])
def test_each_sample_draws_a_dropout_of_its_own(make):
    model, method, x = with_masks(make)
    before = torch.get_rng_state()
    found = method.attribute(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(found, torch.stack(model.masks).mean(0) / 2)
    # Each element passes in half of the samples, by six deviations of the binomial.
    share = (torch.stack(model.masks) > 0).double().mean(0)
    assert ((share - 0.5).abs() < 6 * 0.5 / 200**0.5).all()
    assert len({tuple(mask.flatten().tolist()) for mask in model.masks}) == 200


def test_draws_of_a_smoothed_model_follow_from_the_seed():
    _, method, x = with_masks(Saliency, samples=5)
    found = method.attribute(x)
    torch.rand(7)
    assert torch.equal(method.attribute(x), found)
    _, other, _ = with_masks(Saliency, samples=5, seed=1)
    assert not torch.equal(other.attribute(x), found)


def test_both_passes_of_guided_grad_cam_meet_one_dropout():
    model, method, x = with_masks(lambda m: GuidedGradCam(m, "c"), samples=5)
    method.attribute(x)
    masks = [mask.flatten().tolist() for mask in model.masks]
    assert masks[::2] == masks[1::2] and masks[0] != masks[2]


def test_an_attribution_within_a_smoothed_model_keeps_its_draws():
    class Explaining(nn.Module):
        def __init__(self):
            super().__init__()
            self.drawn, self.linear = [], nn.Linear(3, 1)

        def forward(self, x):
            self.drawn.append(torch.rand(4))
            Saliency(self.linear).attribute(x)
            self.drawn.append(torch.rand(4))
            return self.linear(x)

    model = Explaining()
    SmoothGrad(Saliency(model), samples=2, spread=0.0).attribute(torch.ones(1, 3))
    assert len({tuple(drawn.tolist()) for drawn in model.drawn}) == 4


def test_a_model_in_the_place_of_a_method_is_refused():
    with pytest.raises(TypeError, match=r"such as GuidedBackprop\(model\), not Linear"):
        SmoothGrad(nn.Linear(2, 2))
