"""What check_reversal measures on: a copy that forgets what its forwards write."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

from pyrevgrad import ReversalError, check_reversal
from pyrevgrad.adversarial import DANN
from pyrevgrad.nn import Activation, GradientReversal, ReversedLinear
from pyrevgrad.rules import STRAIGHT_THROUGH

X, Y = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2


def head(normed):
    return nn.Sequential(normed(nn.Linear(16, 16)), nn.LeakyReLU(0.2), normed(nn.Linear(16, 1)))


class Drifting(nn.Module):
    """Divides by a number that each forward replaces, and counts in shared memory."""

    def __init__(self):
        super().__init__()
        self.register_buffer("size", torch.ones(()))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("same", self.count)
        self.register_buffer("nothing", None)

    def forward(self, x):
        assert self.same is self.count
        self.count += 1
        self.size = self.size * 1.5 + self.count
        return x / self.size


class Checkpointed(nn.Sequential):
    reentrant = False

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


NORMS = {
    "spectral norm": lambda: head(spectral_norm),
    "spectral norm by hooks": lambda: head(nn.utils.spectral_norm),
    "a size that drifts": lambda: nn.Sequential(nn.Linear(16, 4), Drifting(), nn.Linear(4, 1)),
    "computed again": lambda: Checkpointed(*head(spectral_norm)),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_buffers_that_a_forward_writes_do_not_disturb(norm):
    for seed in range(3):
        torch.manual_seed(seed)
        features = nn.Sequential(nn.Linear(2, 16), nn.Tanh())
        model = nn.Sequential(features, GradientReversal(0.3), NORMS[norm]())
        before = [buffer.clone() for buffer in model.buffers()]
        report = check_reversal(model, X, strict=False)
        assert report.ok, report
        assert all(map(torch.equal, model.buffers(), before))


def test_a_dann_with_a_spectral_norm_in_its_head_is_measured():
    for seed in range(3):
        torch.manual_seed(seed)
        domain = nn.Sequential(ReversedLinear(8, 16, activation="tanh"), head(spectral_norm))
        model = DANN(nn.Sequential(nn.Linear(2, 8), nn.Tanh()), nn.Linear(8, 2), domain)
        report = check_reversal(model, (X, Y, X + 1), strict=False)
        assert report.ok, report


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_reentrant_checkpointing_is_measured():
    torch.manual_seed(0)
    block = Checkpointed(*head(spectral_norm))
    block.reentrant = True
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), GradientReversal(0.3), block)
    model(X).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    assert check_reversal(model, X).factors["0"] == pytest.approx(-0.5, rel=1e-3)
    assert all(map(torch.equal, (parameter.grad for parameter in model.parameters()), before))


class Shared(nn.Sequential):
    """Changes its gradient by that of other processes, as DistributedDataParallel does."""

    shares = True

    @contextmanager
    def no_sync(self):
        self.shares = False
        yield
        self.shares = True

    def forward(self, x):
        y = super().forward(x)
        if self.shares and y.requires_grad:
            y.register_hook(lambda g: g * 0.7)
        return y


def test_the_gradient_of_one_process_is_measured():
    model = Shared(nn.Linear(2, 16), nn.Tanh(), GradientReversal(0.3), nn.Linear(16, 1))
    assert check_reversal(model, X).factors["3"] == pytest.approx(1.0, rel=1e-3)


def test_inference_mode_changes_no_verdict():
    def made():
        torch.manual_seed(0)
        body, label = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8)), nn.Linear(8, 2)
        return DANN(body, label, nn.Linear(8, 1), scale=0.3), (X + 0, Y + 0, X + 1)

    model, inputs = made()
    wanted = check_reversal(model, inputs).factors
    with torch.inference_mode():
        assert check_reversal(model, inputs).factors == wanted
        model, inputs = made()
        assert check_reversal(model, inputs).factors == wanted
        assert torch.is_inference_mode_enabled()
    assert check_reversal(model, inputs).factors == wanted


# Straight-through steps, before which the forward is flat.


def behind_a_step(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), Activation("sign", STRAIGHT_THROUGH), *layers)


FLAT = "the forward is flat in input, 0, though autograd sends a gradient there"


def test_what_lies_before_a_straight_through_step_is_named_and_the_rest_is_judged():
    rest = nn.Linear(8, 8), nn.Tanh(), GradientReversal(0.3), nn.Linear(8, 1)
    report = check_reversal(behind_a_step(*rest), X)
    assert report.ok and FLAT in report.sentence
    finite = {name: factor for name, factor in report.factors.items() if abs(factor) < 100}
    assert finite == pytest.approx({"2": -0.5, "5": 1.0}, rel=1e-3)
    twice = behind_a_step(nn.Linear(8, 8), GradientReversal(), GradientReversal(), nn.Linear(8, 1))
    report = check_reversal(twice, X, strict=False)
    assert report.verdict == "doubled sign" and FLAT in report.sentence


def test_features_that_all_lie_before_a_straight_through_step_are_not_measured():
    for rest in ((GradientReversal(0.3),), ()):
        with pytest.raises(ReversalError, match=f"not measured: {FLAT}.*check without that step"):
            check_reversal(behind_a_step(*rest, nn.Linear(8, 1)), X)
    model = nn.Sequential(behind_a_step(nn.Linear(8, 8)), nn.Linear(8, 1))
    report = check_reversal(model, X, features="0", strict=False)
    assert report.verdict == "no effect" and "0.0" in report.sentence
    alone = check_reversal(Activation("sign", STRAIGHT_THROUGH), X, strict=False)
    assert alone.verdict == "not measured"


def test_a_step_in_the_label_head_is_no_wrong_place():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Linear(2, 8), nn.Tanh())
    label = nn.Sequential(nn.Linear(8, 8), Activation("sign", STRAIGHT_THROUGH), nn.Linear(8, 2))
    assert check_reversal(DANN(features, label, nn.Linear(8, 1)), (X, Y, X + 1)).ok
