"""grad-cam's guided model as the registry has it: the same map where it is right, and where not."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from pyrevgrad.attribution import GuidedBackprop

pytest.importorskip("bench", reason="the benchmark suite is in the repository only")
if importlib.util.find_spec("pytorch_grad_cam") is None:
    pytest.skip("grad-cam is not installed", allow_module_level=True)

from bench import guided_peers, peers


def network(inplace=False):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 4, 3), nn.ReLU(inplace), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip


def test_maps_of_layers_are_ours():
    model, x = network(), torch.randn(3, 2, 8, 8)
    found = guided_peers.grad_cam(model)(x)
    torch.testing.assert_close(found, GuidedBackprop(model).attribute(x, 0))


def test_what_it_gets_wrong_is_recorded_and_ours_does_not():
    model, x = network(inplace=True), torch.randn(1, 2, 8, 8)
    theirs = peers.grad_cams_module().GuidedBackpropReLUModel(model)
    first = torch.from_numpy(theirs(x, 0)).clone()
    again = torch.from_numpy(theirs(x, 0))
    torch.testing.assert_close(again, 2 * first)  # the input's .grad goes on growing
    assert model[0].weight.grad is not None  # and the weights have one
    assert model[1] is model[3] and not model[1].inplace  # one new layer, everywhere
    model, x = network(inplace=True), x.detach()
    layers = list(model)
    ours = GuidedBackprop(model)
    torch.testing.assert_close(ours.attribute(x, 0), ours.attribute(x, 0), rtol=0, atol=0)
    assert list(model) == layers and model[1].inplace and model[0].weight.grad is None
