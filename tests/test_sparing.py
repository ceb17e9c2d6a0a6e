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
    with method._swapped(True, 2):
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


def test_a_network_keeps_its_masks_and_the_places_of_its_maxima(monkeypatch):
    # Of the C++ nodes no attribute shows what they keep.
    monkeypatch.setattr(pyrevgrad.autograd, "NODES", None)
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
@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.BatchNorm1d(4).eval()])
def test_a_weight_that_is_changed_in_place_before_the_backward_is_an_error(layer, trained):
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.act = layer, nn.ReLU()

        def forward(self, x):
            y = self.act(self.layer(x))
            with torch.no_grad():
                self.layer.weight.mul_(2.0)
            return y

    model = Changing().requires_grad_(trained).eval()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        GuidedBackprop(model).attribute(torch.randn(2, 4), 0)


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv1d(4, 3, 1)])
def test_a_bias_that_is_changed_in_place_is_none_of_the_gradient(layer):
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            y = self.layer(x).relu()
            with torch.no_grad():
                self.layer.bias.add_(0.5)
            return y

    x = torch.randn(2, 4) if isinstance(layer, nn.Linear) else torch.randn(2, 4, 1)
    pre = layer(x).detach().reshape(2, 3)
    wanted = (pre[:, :1] > 0) * layer.weight.detach().reshape(3, 4)[0]
    target = 0 if isinstance(layer, nn.Linear) else (0, 0)
    found = GuidedBackprop(Changing()).attribute(x, target)
    torch.testing.assert_close(found.reshape(2, 4), wanted)


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


def pooled(x, *window, **named):
    """PyTorch's own pool, then ours, each with the gradient of a fixed weighting."""
    found = []
    for function in (F.max_pool2d, lambda *a, **k: sparing.call(F.max_pool2d, a, k)):
        at = x.clone().requires_grad_()
        y = function(at * 1, *window, **named)
        g = torch.cos(torch.arange(y.numel())).view(y.shape).to(x)
        found.append((y, *torch.autograd.grad(y, at, g)))
    assert "_MaxPool" in found[1][0].grad_fn.name()
    return found


WINDOWS = [
    (2,), (2, 2), (3, 2, 1), ((3, 2), (2, 3), (1, 0)), (3, 1, 1, 2), (3, 2, 1, 1, True), (2, [])
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_pools_have_the_values_and_places_of_pytorch_at_ties_zeros_and_infinities(window, dtype):
    own = torch.Generator().manual_seed(0)
    x = torch.randint(-2, 3, (4, 8, 9, 11), generator=own).to(dtype)
    drawn = torch.rand(x.shape, generator=own)
    odd = {0.05: -0.0, 0.1: torch.inf, 0.15: torch.nan, 0.4: -torch.inf}
    for bound, value in odd.items():
        x[(drawn < bound) & (drawn > bound - 0.05)] = value
    x[0, :3] = -torch.inf
    (y, gx), (ours, our_gx) = pooled(x, *window)
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    assert torch.equal(ours.view(bits), y.view(bits)) and ours.stride() == y.stride()
    assert torch.equal(our_gx, gx)


def test_pools_are_cut_into_pieces(monkeypatch):
    monkeypatch.setattr(sparing, "PIECE_BYTES", 1 << 13)
    torch.manual_seed(0)
    for (y, gx), (ours, our_gx) in (
        pooled(torch.randn(3, 16, 8, 10), 3, 2, padding=1),
        pooled(torch.randn(6, 32, 40, 40), 2, ceil_mode=True, return_indices=False),
    ):
        assert torch.equal(ours, y) and torch.equal(our_gx, gx)


def test_a_pool_keeps_four_bytes_for_each_output():
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    y = sparing.call(F.max_pool2d, (x * 1, 2), {})
    (places,) = y.grad_fn.saved_tensors
    assert places.shape == y.shape and places.dtype == torch.int32


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (1, 16, 0, 4)])
def test_an_empty_pool_is_that_of_pytorch(shape):
    x = torch.randn(shape, requires_grad=True)
    assert sparing._window(x, [2], {}) is None


def test_a_pool_that_does_not_fit_is_refused_in_the_words_of_pytorch():
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    for call in (F.max_pool2d, lambda *args: sparing.call(F.max_pool2d, args, {})):
        with pytest.raises(RuntimeError, match=r"input size: \(8x4x4\).*too small"):
            call(x * 1, 9)


def test_pools_that_ours_does_not_serve_stay_those_of_pytorch():
    given = {
        "five channels": torch.randn(1, 5, 4, 4),
        "one image": torch.randn(16, 4, 4),
        "channels last": torch.randn(1, 16, 4, 4).to(memory_format=torch.channels_last),
        "half": torch.randn(1, 16, 4, 4).half(),
    }
    for name, x in given.items():
        y = sparing.call(F.max_pool2d, (x.requires_grad_() * 1, 2), {})
        assert "MaxPool2DWithIndices" in y.grad_fn.name(), name
    x = torch.randn(1, 16, 4, 4, requires_grad=True) * 1
    assert len(sparing.call(F.max_pool2d_with_indices, (x, 2), {})) == 2


def test_the_gradient_of_a_pool_can_be_differentiated_again():
    x = torch.randn(1, 16, 4, 4, dtype=torch.float64, requires_grad=True)
    g = torch.randn(1, 16, 2, 2, dtype=torch.float64, requires_grad=True)
    twice = []
    for pool in (F.max_pool2d, lambda *args: sparing.call(F.max_pool2d, args, {})):
        (gx,) = torch.autograd.grad(pool(x * 1, 2), x, g, create_graph=True)
        twice.append(torch.autograd.grad(gx.pow(3).sum(), g)[0])
    assert torch.equal(*twice)
