"""What an attribution keeps: no layer's input for the gradients of weights, and the same map."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pyrevgrad
from pyrevgrad import GUIDED
from pyrevgrad.attribution import GuidedBackprop
from pyrevgrad.swapping import sparing


@pytest.fixture(autouse=True)
def small_tensors_too(monkeypatch):
    monkeypatch.setattr(sparing, "LEAST_BYTES", 1)


def by_the_swap_alone(model, x, target=0):
    """The oracle: the same rule, every tensor kept."""
    at = x.clone().requires_grad_()
    with pyrevgrad.swap(model, GUIDED, strict=False):
        return torch.autograd.grad(model(at * 1)[:, target].sum(), at)[0]


def kept_bytes(model, x):
    """The storages that hang on the graph, by a walk over the nodes that show theirs."""
    storages = {}
    method = GuidedBackprop(model)
    with method._swapped(True):
        waiting = [model(x.clone().requires_grad_() * 1).grad_fn]
        seen = set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            for name in dir(node):
                if name.startswith("_raw_saved"):
                    raw = getattr(node, name)
                    for one in raw if isinstance(raw, tuple) else (raw,):
                        tensor = getattr(one, "data", None)
                        if isinstance(tensor, torch.Tensor):
                            storages[tensor.untyped_storage().data_ptr()] = tensor.nbytes
            waiting += [parent for parent, _ in node.next_functions]
    return storages


def layers(n):
    conv, turned = getattr(nn, f"Conv{n}d"), getattr(nn, f"ConvTranspose{n}d")
    norm = getattr(nn, f"BatchNorm{n}d")(6)
    for buffer in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        buffer.uniform_(0.5, 2)
    pools = [
        *(getattr(nn, f"{kind}Pool{n}d")(2) for kind in ("Max", "Avg")),
        *(getattr(nn, f"Adaptive{kind}Pool{n}d")(3) for kind in ("Max", "Avg")),
    ]
    return [
        conv(2, 6, 3, padding=1), norm, nn.ReLU(), conv(6, 6, 3, padding="same", groups=2),
        nn.ReLU(inplace=True), turned(6, 6, 2, stride=2), *pools, nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 3**n, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_maps_are_those_with_everything_kept(n, dtype):
    torch.manual_seed(n)
    model = nn.Sequential(*layers(n)).to(dtype).eval()
    x = torch.randn(2, 2, *[8] * n, dtype=dtype)
    wanted = by_the_swap_alone(model, x)
    torch.testing.assert_close(GuidedBackprop(model).attribute(x, 0), wanted)
    assert wanted.abs().max() > 0


def test_channels_last_and_repeated_calls_give_the_same_map():
    torch.manual_seed(0)
    model = nn.Sequential(*layers(2)).double().eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 2, 8, 8).double().to(memory_format=torch.channels_last)
    wanted, method = by_the_swap_alone(model, x), GuidedBackprop(model)
    for _ in range(2):
        torch.testing.assert_close(method.attribute(x, 0), wanted)


def test_training_statistics_depend_on_the_input_and_are_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).double()
    x = torch.randn(3, 2, 6, 6).double()
    wanted = by_the_swap_alone(model, x)
    torch.testing.assert_close(GuidedBackprop(model).attribute(x, 0), wanted)


class Dynamic(nn.Module):
    """Weights that are computed from the input, and weights that are computed from parameters."""

    def __init__(self, from_input):
        super().__init__()
        self.made, self.own = nn.Linear(6, 12), nn.Parameter(torch.randn(2, 6))
        self.act, self.from_input = nn.ReLU(), from_input

    def forward(self, x):
        weight = self.made(x).mean(0).view(2, 6) if self.from_input else self.own * 2
        return F.linear(self.act(x) + x, weight)


@pytest.mark.parametrize("from_input", [True, False])
def test_weights_that_are_computed_keep_what_their_gradient_needs(from_input):
    torch.manual_seed(0)
    model, x = Dynamic(from_input).double(), torch.randn(3, 6).double()
    wanted = by_the_swap_alone(model, x)
    torch.testing.assert_close(GuidedBackprop(model).attribute(x, 0), wanted)


class Inner(nn.Module):
    """Asks for a gradient in its forward: of its own weights, or of its input."""

    def __init__(self, of):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)
        self.of = of

    def forward(self, x):
        y = self.last(self.act(self.first(x)))
        about = {"weights": self.last.weight, "input": x}[self.of]
        (slope,) = torch.autograd.grad(y.square().sum(), about, create_graph=True)
        return y + slope.square().sum()


@pytest.mark.parametrize("of", ["weights", "input"])
def test_models_that_differentiate_inside_are_explained_right(of):
    torch.manual_seed(0)
    model, x = Inner(of).double(), torch.randn(4, 5).double()
    wanted = by_the_swap_alone(model, x)
    torch.testing.assert_close(GuidedBackprop(model).attribute(x, 0), wanted)


def test_the_gradient_of_a_parameter_is_an_error_and_never_a_wrong_number():
    weight = nn.Parameter(torch.randn(4, 3))
    x = torch.randn(2, 3, requires_grad=True)
    y = sparing.call(F.linear, (x * 1, weight), {}).sum()
    torch.testing.assert_close(torch.autograd.grad(y, x, retain_graph=True)[0][0], weight.sum(0))
    with pytest.raises(RuntimeError, match="what it needs was not kept"):
        y.backward()
    norm = nn.BatchNorm1d(3).eval()
    args = (x * 1, norm.running_mean, norm.running_var)
    named = {"weight": norm.weight, "bias": norm.bias, "training": False}
    y = sparing.call(F.batch_norm, args, {**named, "momentum": 0.1, "eps": 1e-5}).sum()
    with pytest.raises(RuntimeError, match="what it needs was not kept"):
        torch.autograd.grad(y, norm.bias)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_are_explained_right(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.last = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), nn.Linear(48, 2)

        def forward(self, x):
            return self.last(checkpoint(self.body, x, use_reentrant=reentrant).flatten(1))

    torch.manual_seed(0)
    model, x = Checkpointed().double(), torch.randn(2, 2, 6, 6).double()
    if reentrant:
        with pytest.raises(RuntimeError, match=r"incompatible with .*grad"):
            GuidedBackprop(model).attribute(x, 0)
        return
    wanted = by_the_swap_alone(model, x)
    torch.testing.assert_close(GuidedBackprop(model).attribute(x, 0), wanted)


def test_a_differentiable_map_keeps_everything():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).double()
    x = torch.randn(2, 2, 6, 6).double()
    found = GuidedBackprop(model).attribute(x, 0, create_graph=True)
    found.square().sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_autocast_gives_the_map_that_it_gives_with_everything_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    x = torch.randn(2, 2, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = by_the_swap_alone(model, x)
        torch.testing.assert_close(GuidedBackprop(model).attribute(x, 0), wanted)


def test_a_network_keeps_its_masks_and_the_places_of_its_maxima():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(144, 2),
    ).eval()  # fmt: skip
    x = torch.randn(2, 2, 16, 16)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = kept_bytes(model, x)
    # two masks of 2·4·16·16 bits, 8-byte indices of the 2·4·8·8 maxima
    held = sum(size for place, size in kept.items() if place not in own)
    if pyrevgrad.backends._native is not None:
        # and not one of the six inputs, of 576 bytes at least
        assert 0 <= held - (2 * 2048 // 8 + 8 * 512) < 64


class Beside(nn.Module):
    """A linear map of x by what shares its memory."""

    def forward(self, x):
        q, k = x.chunk(2, -1)
        return F.relu(F.linear(q, k.detach()) + F.linear(q, q.detach()))


def test_a_weight_in_the_memory_of_the_input_is_kept():
    x = torch.randn(8, 16, dtype=torch.float64)
    found = GuidedBackprop(Beside()).attribute(x, 0)
    assert torch.equal(found, by_the_swap_alone(Beside(), x))


@pytest.mark.parametrize("trained", [True, False])
def test_a_weight_that_is_changed_in_place_before_the_backward_is_an_error(trained):
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.act = nn.Linear(4, 3), nn.ReLU()

        def forward(self, x):
            y = self.act(self.layer(x))
            with torch.no_grad():
                self.layer.weight.mul_(2.0)
            return y

    model = Changing().requires_grad_(trained)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        GuidedBackprop(model).attribute(torch.randn(2, 4), 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_normalisation_of_half_types_is_pytorchs(dtype):
    norm = nn.BatchNorm2d(3, eps=1e-8)
    norm.running_var.copy_(torch.tensor([1.0, 1e-9, 0.3]))
    model = nn.Sequential(norm, nn.ReLU(), nn.Flatten()).eval().to(dtype)
    x = torch.rand(2, 3, 8, 8).to(dtype) * 0.01
    found = GuidedBackprop(model).attribute(x, 70)
    assert torch.equal(found, by_the_swap_alone(model, x, 70)) and found.isfinite().all()


def test_hooks_that_are_switched_off_are_not_asked_for():
    class Without(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.act = nn.Linear(4, 3), nn.ReLU()

        def forward(self, x):
            with torch.autograd.graph.disable_saved_tensors_hooks("no hooks here"):
                return self.act(self.layer(x))

    model, x = Without(), torch.randn(2, 4)
    assert torch.equal(GuidedBackprop(model).attribute(x, 0), by_the_swap_alone(model, x))
