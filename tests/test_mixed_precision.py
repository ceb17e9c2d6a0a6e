"""fit under autocast: what the plain loop gives whose forward alone is under it, bit for bit."""

import pytest
import torch
from adversaries import data, network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyrevgrad.adversarial import CDAN, DANN, evaluate, fit
from pyrevgrad.nn import Activation, ReversedLinear

(X, Y), T = data(16, 16)


class InFloat32(nn.Module):
    """A layer that leaves autocast, as for a loss that needs its range."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.layer(x.float())


def folded():
    torch.manual_seed(0)
    head = nn.Sequential(ReversedLinear(8, 8, activation="relu"), nn.Linear(8, 1))
    return DANN(nn.Sequential(nn.Linear(4, 8), Activation("relu")), nn.Linear(8, 2), head)


def conditional():
    torch.manual_seed(0)
    return CDAN(nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 2), nn.Linear(16, 1))


def in_two_precisions():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    return DANN(features, InFloat32(nn.Linear(8, 2)), InFloat32(nn.Linear(8, 1)))


@pytest.mark.parametrize("make", [network, folded, conditional, in_two_precisions])
@pytest.mark.parametrize("scored", [False, True])
def test_training_under_autocast_is_that_of_the_loop(make, scored):
    model, by_hand = make(), make()
    source, target = DataLoader(TensorDataset(X, Y), 16), DataLoader(T, 16)
    options = {"validation": (X, Y)} if scored else {}
    with torch.autocast("cpu", torch.bfloat16):
        found = fit(
            model, source, target, epochs=6, progress=False,
            optimizer=torch.optim.SGD(model.parameters(), 0.1), **options,
        )  # fmt: skip
    optimizer = torch.optim.SGD(by_hand.parameters(), 0.1)
    for _ in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = by_hand(X, Y, T).loss
        loss.backward()
        optimizer.step()
    assert all(map(torch.equal, model.parameters(), by_hand.parameters()))
    if scored:
        with torch.autocast("cpu", torch.bfloat16):
            wanted = evaluate(by_hand, (X, Y))
        assert found.epochs[-1]["validation_loss"] == wanted.loss


@pytest.mark.parametrize("options", [{}, {"device": "cpu"}])
def test_float16_is_refused_before_the_first_step_for_no_loss_is_scaled(options):
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    said = r'torch.float16 is in force on cpu, .* use torch.autocast\("cpu", torch.bfloat16\)'
    with torch.autocast("cpu", torch.float16), pytest.raises(ValueError, match=said):
        fit(model, (X, Y), T, epochs=1, progress=False, **options)
    assert all(map(torch.equal, model.parameters(), before))
    with torch.autocast("cpu", torch.float16, enabled=False):
        fit(model, (X, Y), T, epochs=1, progress=False)


def test_an_autocast_of_another_device_changes_nothing():
    with torch.autocast("xpu", torch.float16):
        assert torch.is_autocast_enabled("xpu")
        fit(network(), (X, Y), T, epochs=1, progress=False)
