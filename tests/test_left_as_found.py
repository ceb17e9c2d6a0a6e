"""What an attribution and a swap leave behind: versions, odd buffers, classes, source lines."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyrevgrad import GUIDED, swap
from pyrevgrad.attribution import GuidedBackprop, jacobian


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
