"""A folded reversal inside a head of one's own: nothing that learns may come before it."""

import pytest
import torch
import torch._dynamo.testing
from compiling import fresh_compiler  # noqa: F401
from torch import nn

from pyrevgrad import check_reversal
from pyrevgrad.adversarial import CDAN, DANN, fit, networks
from pyrevgrad.nn import ReversedLinear

X, Y, T = torch.randn(6, 3), torch.arange(6) % 2, torch.randn(8, 3)


class Head(nn.Module):
    """A reversed layer that some other layer comes before."""

    def __init__(self, before, inputs=4):
        super().__init__()
        self.last, self.reversed = nn.Linear(4, 1), ReversedLinear(inputs, 4)
        self.before = before

    def forward(self, x):
        return self.last(self.reversed(self.before(x)).relu())


def network(before, wrapped=lambda head: head, kind=DANN):
    torch.manual_seed(0)
    inputs = 4 if kind is DANN else 8
    features = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    return kind(features, nn.Linear(4, 2), wrapped(Head(before, inputs)), scale=0.5)


LEARNING = {"linear": lambda n: nn.Linear(n, n), "normalisation": nn.LayerNorm}
STILL = {
    "none": nn.Identity,
    "flattening": nn.Flatten,
    "activation": nn.Tanh,
    "working in place": lambda: nn.Sequential(nn.Hardtanh(), nn.ReLU(inplace=True)),
    "normalisation": lambda: nn.LayerNorm(4, elementwise_affine=False),
    "frozen": lambda: nn.Linear(4, 4).requires_grad_(False),
}


@pytest.mark.parametrize("kind", [DANN, CDAN])
@pytest.mark.parametrize("name", LEARNING)
def test_a_layer_that_would_learn_by_the_reversed_gradient_is_refused(name, kind):
    model = network(LEARNING[name](4 if kind is DANN else 8), kind=kind)
    before = [p.detach().clone() for p in model.parameters()]
    said = r"domain_head\.before\.(weight|bias) comes before the reversal .*: put the Reversed"
    for _ in range(2):
        with pytest.raises(ValueError, match=said):
            model(X, Y, T)
    with pytest.raises(ValueError, match=said):
        fit(model, (X, Y), T, epochs=1, progress=False)
    assert all(map(torch.equal, model.parameters(), before))
    assert not model.reversal._forward_pre_hooks


def test_a_head_is_refused_where_the_features_are_frozen():
    model = network(nn.Linear(4, 4))
    model.features.requires_grad_(False)
    with pytest.raises(ValueError, match=r"domain_head\.before\.\w+ comes before the reversal"):
        model(X, Y, T)


@pytest.mark.parametrize("name", STILL)
def test_what_does_not_learn_may_come_first(name):
    model = network(STILL[name]())
    model(X, Y, T).loss.backward()
    assert not model.reversal._forward_pre_hooks
    # A layer between that learns nothing has no gradient of its own to be reversed.
    factors = check_reversal(model, (X, Y, T), strict=False).factors
    assert factors["features.0"] == pytest.approx(-0.5, rel=0.02)
    assert factors["domain_head.last"] == pytest.approx(1, rel=0.02)


def test_one_look_is_taken_and_only_where_there_is_a_gradient(monkeypatch):
    looks = []

    def counted(layer):
        looks.append(layer)
        return given_to(layer)

    given_to = networks.given_to
    monkeypatch.setattr(networks, "given_to", counted)
    model = network(nn.Tanh())
    with torch.no_grad():
        model(X, Y, T)
    assert not looks
    for _ in range(3):
        model(X, Y, T)
    assert looks == [model.reversal]
    head = nn.Sequential(ReversedLinear(4, 4), nn.Linear(4, 1))
    DANN(nn.Linear(3, 4), nn.Linear(4, 2), head)(X, Y, T)
    assert len(looks) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("whole", [False, True])
def test_nothing_is_compiled_twice_for_the_look(whole):
    counted = torch._dynamo.testing.CompileCounter()

    def compiled(module):
        return torch.compile(module, backend=counted, fullgraph=True, dynamic=False)

    model = compiled(network(nn.Tanh())) if whole else network(nn.Tanh(), compiled)
    plain = network(nn.Tanh())
    for _ in range(3):
        torch.testing.assert_close(model(X, Y, T).loss, plain(X, Y, T).loss)
    assert counted.frame_count == 1
