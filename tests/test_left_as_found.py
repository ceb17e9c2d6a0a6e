"""What an attribution and a swap leave behind: versions, odd buffers, classes, source lines."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyrevgrad import GUIDED, SwapError, swap
from pyrevgrad.attribution import (
    GuidedBackprop,
    GuidedGradCam,
    Saliency,
    SmoothGrad,
    jacobian,
)


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    )


@pytest.mark.parametrize("training", [False, True])
def test_a_graph_that_the_user_holds_can_still_go_back(training):
    model, x = convolutions().train(training), torch.randn(2, 1, 6, 6)
    wanted = torch.autograd.grad(model(x).sum(), model[0].weight)[0]
    loss = model(x).sum()
    before = [buffer._version for buffer in model.buffers()]
    GuidedBackprop(model).attribute(x, 0)
    assert [buffer._version for buffer in model.buffers()] == before
    torch.testing.assert_close(torch.autograd.grad(loss, model[0].weight)[0], wanted)


def in_inference_mode():
    with torch.inference_mode():
        return torch.ones(3)


BUFFERS = {
    "expanded": lambda: torch.ones(1).expand(4),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "made in inference mode": in_inference_mode,
    "without elements": lambda: torch.zeros(0),
    "a negative view": lambda: torch.ones(2, dtype=torch.complex64).conj().imag,
    "of booleans": lambda: torch.tensor([True, False]),
}


class WithBuffer(nn.Module):
    """A buffer of any kind; a forward changes it in place where PyTorch lets it."""

    def __init__(self, buffer):
        super().__init__()
        fixed = buffer.layout is not torch.strided or buffer.is_inference()
        self.changes = not (fixed or 0 in buffer.stride())
        self.linear = nn.Linear(4, 3)
        self.register_buffer("kept", buffer)

    def forward(self, x):
        if self.changes:
            self.kept.fill_(0)
        return torch.relu(self.linear(x))


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_of_any_kind_keep_their_numbers(name):
    model = WithBuffer(BUFFERS[name]())
    kept, before = model.kept, model.kept.to_dense().clone()
    for _ in range(2):
        GuidedBackprop(model).attribute(torch.randn(2, 4), 0)
        jacobian(model, torch.randn(2, 4), 1) if name == "expanded" else None
    assert model.kept is kept and torch.equal(kept.to_dense(), before)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.act = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x):
        return self.act(self.linear(x))


def test_a_class_that_was_changed_between_two_swaps_runs_its_new_methods(monkeypatch):
    model, x = Block(), torch.randn(2, 4, requires_grad=True)
    derived = []
    for _ in range(2):
        with swap(model, GUIDED):
            model(x)
            derived.append(type(model))
    assert derived[0] is derived[1]
    monkeypatch.setattr(Block, "forward", lambda self, x: F.relu6(self.act(self.linear(x))))
    with swap(model, GUIDED) as swapped:
        model(x)
    assert [site.kind for site in swapped.report.replaced] == ["relu", "relu6"]
    assert type(model) is Block


def test_the_source_of_a_layer_is_the_line_of_the_model_that_calls_it():
    model = nn.Sequential(Block(), nn.ReLU(), nn.TransformerEncoderLayer(4, 1, 8)).train()
    with swap(model, GUIDED) as swapped:
        model(torch.randn(2, 4, requires_grad=True))
    sources = {site.path: site.source for site in swapped.report.replaced}
    line = Block.forward.__code__.co_firstlineno + 1
    assert sources["0.act"] == f"test_left_as_found.py:{line}"
    assert sources["1"] == "nn.Sequential"
    assert sources["2"].startswith("transformer.py:")


def test_the_source_of_a_layer_that_is_the_model_is_itself():
    with swap(nn.ReLU(), GUIDED) as swapped:
        swapped.model(torch.randn(3, requires_grad=True))
    assert swapped.report.replaced[0].source == "nn.ReLU"


METHODS = [
    GuidedBackprop,
    Saliency,
    lambda model: GuidedGradCam(model, "0"),
    lambda model: SmoothGrad(GuidedBackprop(model), samples=2),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_maps_are_the_same_inside_blocks_that_record_nothing(method, block):
    model, x = convolutions().eval(), torch.randn(2, 1, 6, 6)
    wanted = method(model).attribute(x, target=1)
    with block():
        found, made_inside = method(model).attribute(x, target=1), x * 1
    assert torch.equal(found, wanted) and wanted.abs().max() > 0
    assert torch.equal(method(model).attribute(made_inside, target=1), wanted)


def test_jacobians_are_the_same_in_inference_mode():
    model, x = Block(), torch.randn(2, 4)
    wanted = jacobian(model, x, rule=GUIDED)
    with torch.inference_mode():
        assert torch.equal(jacobian(model, x, rule=GUIDED), wanted)


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        found = self.layer(x)
        return found[0][:, -1] if isinstance(found, tuple) else found


UNSERVED = {
    "fused into one operation": lambda: Recurrent(nn.RNN(4, 3, nonlinearity="relu")),
    "its slope is learned": lambda: Recurrent(nn.PReLU()),
    r"drawn at random in training.*under model\.eval\(\) it is leaky_relu": lambda: Recurrent(
        nn.RReLU()
    ),
    "no row of the activation table is a threshold": lambda: Recurrent(nn.Threshold(0.1, 20)),
}


@pytest.mark.parametrize("reason", UNSERVED)
def test_an_activation_that_no_rule_serves_is_refused_with_its_reason(reason):
    model, x = UNSERVED[reason](), torch.randn(2, 5, 4)
    with pytest.raises(SwapError, match=reason), swap(model, GUIDED):
        model(x.requires_grad_())
    with pytest.raises(SwapError, match=reason):
        GuidedBackprop(model, where=None).attribute(x.detach(), (0, 0))


def test_a_relu_fused_into_a_layer_is_no_other_rectifier():
    model = Recurrent(nn.RNN(4, 3, nonlinearity="relu"))
    with pytest.raises(SwapError, match="fused into one operation"):
        GuidedBackprop(model).attribute(torch.randn(2, 5, 4), 0)


def test_rectifiers_that_nothing_serves_can_be_left_in_the_words_of_the_error():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.PReLU()), torch.randn(2, 4)
    with pytest.raises(SwapError, match=r"where=lambda site: site\.kind == 'relu' to"):
        GuidedBackprop(model).attribute(x, 0)
    found = GuidedBackprop(model, where=lambda site: site.kind == "relu").attribute(x, 0)
    assert found.shape == x.shape


@pytest.mark.parametrize("layer", [nn.ReLU6, lambda: nn.Hardtanh(0, 6)])
def test_relu6_is_one_site_whatever_pytorch_calls_for_it(layer):
    model = nn.Sequential(nn.Linear(4, 4), layer())
    with swap(model, GUIDED) as swapped:
        model(torch.randn(2, 4, requires_grad=True)).sum().backward()
    (site,) = swapped.report.sites
    assert (site.kind, site.path, site.forward, site.backward) == ("relu6", "1", 1, 1)
