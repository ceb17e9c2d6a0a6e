"""The one reversal of a network: nothing of the head learns before it, and it stays where it is."""

import copy
import pickle

import pytest
import torch
import torch._dynamo.testing
from compiling import fresh_compiler  # noqa: F401
from torch import nn

from pyrevgrad import check_reversal
from pyrevgrad.adversarial import CDAN, DANN, fit, networks
from pyrevgrad.compat import GradientReverseLayer
from pyrevgrad.nn import GradientReversal, ReversedLinear

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


# What is replaced after the network was made.


def plain_head(inputs):
    return nn.Sequential(nn.Linear(inputs, 4), nn.Linear(4, 1))


def folded_head(inputs):
    return nn.Sequential(ReversedLinear(inputs, 4), nn.Linear(4, 1))


def made_with(head, kind=DANN):
    return kind(nn.Linear(3, 4), nn.Linear(4, 2), head(4 if kind is DANN else 8), scale=0.5)


def with_another_head(model, head):
    model.domain_head = head


def with_another_element(model, head):
    model.domain_head[0] = head[0]


CHANGES = {
    "lost": (folded_head, plain_head),
    "another": (folded_head, folded_head),
    "folded": (plain_head, folded_head),
    "doubled": (plain_head, lambda n: nn.Sequential(GradientReversal(), nn.Linear(n, 1))),
    "without state": (plain_head, lambda n: nn.Sequential(GradientReverseLayer(), nn.Linear(n, 1))),
}
REPLACED = "a reversal was put into domain_head, or taken from it, after the network was made"


@pytest.mark.parametrize("kind", [DANN, CDAN])
@pytest.mark.parametrize("replace", [with_another_head, with_another_element])
@pytest.mark.parametrize("change", CHANGES)
def test_a_reversal_that_is_replaced_later_is_refused_before_a_weight_changes(
    change, replace, kind
):
    before, after = CHANGES[change]
    model = made_with(before, kind)
    model(X, Y, T)
    replace(model, after(4 if kind is DANN else 8))
    weights = copy.deepcopy(model.state_dict())
    for call in (
        lambda: model(X, Y, T),
        lambda: fit(model, (X, Y), T, epochs=1, progress=False),
        lambda: copy.deepcopy(model)(X, Y, T),
        lambda: pickle.loads(pickle.dumps(model))(X, Y, T),
    ):
        with pytest.raises(ValueError, match=REPLACED):
            call()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("replace", [with_another_head, with_another_element])
@pytest.mark.parametrize("change", ["lost", "another", "folded"])
def test_a_compiled_network_sees_a_replaced_reversal(change, replace):
    before, after = CHANGES[change]
    model = made_with(before)
    compiled = torch.compile(model, backend="eager")
    compiled(X, Y, T)
    replace(model, after(4))
    with pytest.raises(ValueError, match=REPLACED):
        compiled(X, Y, T)


@pytest.mark.filterwarnings("ignore")
def test_what_keeps_the_reversal_may_replace_the_head():
    model = made_with(plain_head)
    model.domain_head = nn.Linear(4, 1)
    assert check_reversal(model, (X, Y, T)).ok
    model = made_with(folded_head)
    model.domain_head[1] = nn.Sequential(nn.Tanh(), nn.Linear(4, 1))
    model = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    model.domain_head = torch.compile(model.domain_head, backend="eager")
    assert check_reversal(model, (X, Y, T)).ok


def test_a_replica_of_data_parallel_goes_on():
    model = made_with(folded_head)
    first = model.domain_head[0]
    replica, layer = (it._replicate_for_data_parallel() for it in (model, first))
    # As torch.nn.parallel.replicate fills them in, with tensors of another device.
    layer.weight, layer.bias, layer.scale = (
        it.detach().clone() for it in (first.weight, first.bias, first.scale)
    )
    replica.domain_head = nn.Sequential(layer, model.domain_head[1])
    assert torch.equal(replica(X, Y, T).loss, model(X, Y, T).loss)
