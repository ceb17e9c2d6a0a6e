"""A head that makes probabilities where logits are taken is refused at the first step."""

import pytest
import torch
from compiling import fresh_compiler  # noqa: F401
from torch import nn

import pyrevgrad
from pyrevgrad.adversarial import CDAN, DANN
from pyrevgrad.nn import Activation, ReversedLinear


class Head(nn.Module):
    """A linear layer and a function."""

    def __init__(self, function, outputs=1):
        super().__init__()
        self.linear, self.function = nn.Linear(4, outputs), function

    def forward(self, f):
        return self.function(self.linear(f))


def step(head, network=DANN, outputs=1):
    torch.manual_seed(0)
    model = network(nn.Linear(3, 4), nn.Linear(4, 2), head)
    losses = model(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), torch.randn(5, 3))
    losses.loss.backward()
    return losses


class Rescaled(nn.Sequential):
    def forward(self, f):
        return 4 * super().forward(f) - 2


class Skipping(nn.Sequential):
    """Its sigmoid is for predictions alone."""

    def forward(self, f):
        return self[0](f)


def hooked():
    head = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
    head[-1].register_forward_hook(lambda module, args, made: torch.logit(made))
    return head


PROBABILITIES = {
    "nn.Sigmoid": nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()),
    "nested": nn.Sequential(nn.Sequential(nn.Linear(4, 1), nn.Sequential(nn.Sigmoid()))),
    "torch.sigmoid": Head(torch.sigmoid),
    "a method, squeezed": Head(lambda y: y.sigmoid().squeeze(1)),
    "a view of it": Head(lambda y: y.sigmoid().reshape(-1, 1).double().float()),
    "nn.Softmax": nn.Sequential(nn.Linear(4, 2), nn.Softmax(1)),
    "torch.softmax": Head(lambda y: torch.softmax(y, 1), 2),
    "hardsigmoid": Head(nn.functional.hardsigmoid),
    "ours": nn.Sequential(nn.Linear(4, 1), Activation("sigmoid")),
    "folded": ReversedLinear(4, 1, activation="sigmoid"),
}
LOGITS = {
    "linear": nn.Linear(4, 1),
    "no logit above 1": Head(torch.tanh),
    "a sigmoid inside": nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 1)),
    "a gate": Head(lambda y: y * y.sigmoid()),
    "back to logits": Head(lambda y: torch.logit(y.sigmoid())),
    "log_softmax": Head(lambda y: y.log_softmax(1), 2),
    "scaled after": Head(lambda y: 4 * y.sigmoid() - 2),
    "ours, not a sigmoid": nn.Sequential(nn.Linear(4, 1), Activation("tanh")),
    "a Sequential that goes on": Rescaled(nn.Linear(4, 1), nn.Sigmoid()),
    "a Sequential that leaves it out": Skipping(nn.Linear(4, 1), nn.Sigmoid()),
    "a hook that goes on": hooked(),
    "ours, and a Sequential that goes on": Rescaled(nn.Linear(4, 1), Activation("sigmoid")),
    "logits in (0, 1)": Head(lambda y: 0.5 + 0.1 * torch.tanh(y)),
}


@pytest.mark.parametrize("head", PROBABILITIES.values(), ids=PROBABILITIES)
def test_a_head_of_probabilities_is_refused(head):
    with pytest.raises(ValueError, match=r"domain_head ends in a (hard)?s\w+, .* takes logits"):
        step(head)


@pytest.mark.parametrize("head", LOGITS.values(), ids=LOGITS)
def test_a_head_of_logits_is_not(head):
    assert step(head).loss.isfinite()


def test_cdan_refuses_it_too():
    with pytest.raises(ValueError, match="ends in a sigmoid"):
        step(nn.Sequential(nn.Linear(8, 1), nn.Sigmoid()), CDAN)


def labelled(head, loss, network=DANN):
    torch.manual_seed(0)
    domain = nn.Linear(4 if network is DANN else 8, 1)
    model = network(nn.Linear(3, 4), head, domain, loss)
    return model(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), torch.randn(5, 3)).loss


def of_probabilities(p, y):
    return nn.functional.nll_loss(p.log(), y)


LABEL_HEADS = {
    "nn.Softmax": lambda: nn.Sequential(nn.Linear(4, 2), nn.Softmax(1)),
    "torch.softmax": lambda: Head(lambda y: y.softmax(1), 2),
    "nn.Sigmoid": lambda: nn.Sequential(nn.Linear(4, 2), nn.Sigmoid()),
}


@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss(torch.ones(2))], ids=["ours", "torch"])
@pytest.mark.parametrize("head", LABEL_HEADS.values(), ids=LABEL_HEADS)
def test_a_label_head_of_probabilities_is_refused_under_cross_entropy(head, loss):
    with pytest.raises(
        ValueError, match=r"label_head ends in a s\w+, .* cross-entropy takes logits"
    ):
        labelled(head(), loss)


@pytest.mark.parametrize("head", LABEL_HEADS.values(), ids=LABEL_HEADS)
def test_a_loss_of_ones_own_may_take_probabilities_but_cdan_takes_logits(head):
    assert labelled(head(), of_probabilities).isfinite()
    with pytest.raises(ValueError, match=r"label_head ends in a s\w+, .* and CDAN takes logits"):
        labelled(head(), of_probabilities, CDAN)


@pytest.mark.parametrize("network", [DANN, CDAN])
def test_a_log_softmax_changes_nothing_under_cross_entropy(network):
    head = Head(lambda y: y, 2)
    same = Head(lambda y: y.log_softmax(1), 2)
    same.load_state_dict(head.state_dict())
    torch.testing.assert_close(labelled(same, None, network), labelled(head, None, network))


def test_it_is_refused_under_checkpointing_and_with_nothing_to_train():
    class Checkpointed(nn.Sequential):
        def forward(self, f):
            return torch.utils.checkpoint.checkpoint(super().forward, f, use_reentrant=True)

    with pytest.raises(ValueError, match="ends in a sigmoid"):
        step(Checkpointed(nn.Linear(4, 1), nn.Sigmoid()))
    with torch.no_grad(), pytest.raises(ValueError, match="ends in a sigmoid"):
        model = DANN(nn.Linear(3, 4), nn.Linear(4, 2), PROBABILITIES["nn.Sigmoid"])
        model(torch.randn(2, 3), torch.tensor([0, 1]), torch.randn(2, 3))


def test_the_error_comes_before_a_weight_changes():
    torch.manual_seed(0)
    x, y = torch.randn(8, 3), torch.arange(8) % 2
    model = DANN(nn.Linear(3, 4), nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match="takes logits"):
        pyrevgrad.adversarial.fit(model, (x, y), x, epochs=1, progress=False)
    assert all(map(torch.equal, before, model.parameters()))


# Under a compiler, which shows no graph: of a head that is layers in a row, the last tells.

IN_A_ROW = ("nested", "nn.Softmax", "ours", "folded")
GOING_ON = [name for name in LOGITS if "Sequential" in name or "hook" in name]


def compiled_step(head, whole, network=DANN):
    def compiled(module):
        return torch.compile(module, backend="aot_eager")

    model = network(nn.Linear(3, 4), nn.Linear(4, 2), head if whole else compiled(head))
    model = compiled(model) if whole else model
    return model(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), torch.randn(5, 3))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("whole", [True, False], ids=["the network", "the head"])
@pytest.mark.parametrize("name", IN_A_ROW)
def test_a_compiled_head_of_probabilities_is_refused(name, whole):
    with pytest.raises(ValueError, match=r"domain_head ends in a s\w+, .* takes logits"):
        compiled_step(PROBABILITIES[name], whole)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("whole", [True, False], ids=["the network", "the head"])
@pytest.mark.parametrize("name", GOING_ON)
def test_a_compiled_head_of_logits_is_not(name, whole):
    assert compiled_step(LOGITS[name], whole).loss.isfinite()


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_last_layer_is_seen():
    last = torch.compile(nn.Sigmoid(), backend="aot_eager")
    with pytest.raises(ValueError, match="domain_head ends in a sigmoid"):
        step(nn.Sequential(nn.Linear(4, 1), last))
