"""DANN's options set later, one label logit, others' reversals, losses and parts of one's own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyrevgrad.adversarial import CDAN, DANN, GaninSchedule, evaluate
from pyrevgrad.nn import ReversedLinear


def network(**options):
    torch.manual_seed(0)
    return DANN(nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 1), **options).double()


def batch():
    draw = torch.Generator().manual_seed(0)
    source, target = (torch.randn(n, 5, generator=draw).double() for n in (4, 7))
    return source, torch.arange(4) % 3, target


def folded(**options):
    head = nn.Sequential(ReversedLinear(6, 4), nn.Linear(4, 1))
    return DANN(nn.Linear(5, 6), nn.Linear(6, 3), head, **options).double()


@pytest.mark.parametrize("make", [network, folded])
def test_the_scale_is_read_and_set_on_the_network_as_on_its_reversal(make):
    model, inputs = make(scale=1.0), batch()
    assert model.scale is model.reversal.scale
    found = []
    for scale in (1.0, torch.tensor(0.1)):
        model.scale = scale
        model.zero_grad()
        model(*inputs).domain_loss.backward()
        found.append(next(model.features.parameters()).grad.clone())
    assert model.reversal.scale.item() == pytest.approx(0.1)
    torch.testing.assert_close(found[0], 10 * found[1], rtol=1e-6, atol=1e-12)
    model.scale = schedule = GaninSchedule(5)
    schedule.step()
    assert model.schedule is schedule and model.scale.item() == schedule.value > 0
    assert "scale" not in model.state_dict()
    for wrong in ("1", nn.Parameter(torch.ones(()))):
        with pytest.raises((TypeError, ValueError), match=r"scale must|must not require grad"):
            model.scale = wrong


def test_options_are_checked_when_they_are_set_later_too():
    model = network()
    with pytest.raises(ValueError, match="domain_weight must be >= 0, got -1"):
        model.domain_weight = -1
    with pytest.raises(ValueError, match="domain_average must be 'domains' or 'samples'"):
        model.domain_average = "mean"
    model.domain_weight = np.float32(0.5)
    assert (model.domain_weight, model.domain_average) == (0.5, "domains")


def binary(z, y):
    return F.binary_cross_entropy_with_logits(z[:, 0], y.to(z.dtype))


def one_logit(**options):
    torch.manual_seed(0)
    return DANN(nn.Linear(5, 6), nn.Linear(6, 1), nn.Linear(6, 1), **options).double()


def test_one_label_logit_tells_labels_0_and_1_apart():
    x, _, target = batch()
    model, y = one_logit(label_loss=binary), torch.tensor([0, 1, 1, 0])
    losses = model(x, y, target)
    p = torch.sigmoid(model.predict(x))[:, 0]
    wanted = -torch.where(y == 1, p.log(), (1 - p).log()).mean()
    torch.testing.assert_close(losses.label_loss, wanted)
    hits = ((p > 0.5).long() == y).double().mean().item()
    assert losses.label_accuracy.item() == hits == evaluate(model, (x, y)).accuracy
    with pytest.raises(ValueError, match=r"label 2 is out of range: .* 2 classes, 0 to 1"):
        model(x, y + 1, target)
    with pytest.raises(ValueError, match="one logit, of which cross-entropy is always 0"):
        one_logit()(x, y, target)


def test_a_loss_that_ignores_no_label_is_taken():
    class Loss(nn.CrossEntropyLoss):
        ignore_index = None

        def forward(self, logits, labels):
            return F.cross_entropy(logits, labels)

    loss = Loss()
    loss.ignore_index = None
    model = network(label_loss=loss)
    assert model.ignore_index == -100 and model(*batch()).loss.isfinite()


class _Theirs(nn.Module):
    """A reversal of another library, as far as its name goes."""

    def forward(self, x, *arguments):
        return x


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("pytorch_revgrad.module", "RevGrad"),
        ("tllib.modules.grl", "GradientReverseLayer"),
        ("tllib.modules.grl", "WarmStartGradientReverseLayer"),
        ("dalib.modules.grl", "WarmStartGradientReverseLayer"),
    ],
)
@pytest.mark.parametrize("derived", [False, True])
@pytest.mark.parametrize("make", [DANN, CDAN])
def test_the_reversal_of_another_library_is_refused_as_a_second(package, name, derived, make):
    layer = type(name, (_Theirs,), {"__module__": package})
    layer = type("Own", (layer,), {}) if derived else layer
    for head in (nn.Linear(6, 1), ReversedLinear(6, 1)):
        with pytest.raises(ValueError, match=r"domain_head\.0 is a reversal, .* undo each other"):
            make(nn.Linear(5, 6), nn.Linear(6, 3), nn.Sequential(layer(), head))


def test_the_layer_that_pytorch_revgrad_has_now_is_refused():
    theirs = pytest.importorskip("pytorch_revgrad", reason="pytorch-revgrad is not installed")
    with pytest.raises(ValueError, match=r"domain_head\.0 is a reversal"):
        DANN(nn.Linear(5, 6), nn.Linear(6, 3), nn.Sequential(theirs.RevGrad(), nn.Linear(6, 1)))


@pytest.mark.parametrize(("package", "name"), [("mine", "RevGrad"), ("tllib.modules", "Block")])
def test_a_layer_that_only_shares_a_name_or_a_package_is_taken(package, name):
    layer = type(name, (_Theirs,), {"__module__": package})()
    DANN(nn.Linear(5, 6), nn.Linear(6, 3), nn.Sequential(layer, nn.Linear(6, 1)))


class Two(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", ["features", "label_head", "domain_head"])
def test_a_part_that_returns_a_tuple_is_named(name, together):
    parts = {"features": nn.Linear(5, 6), "label_head": nn.Linear(6, 3)}
    parts["domain_head"] = nn.Linear(6, 1)
    parts[name] = Two(parts[name].in_features, parts[name].out_features)
    with pytest.raises(TypeError, match=f"{name} must return one tensor, not a tuple"):
        DANN(**parts, together=together).double()(*batch())


@pytest.mark.parametrize("size", [0, -1, 8.0, None])
def test_a_batch_size_that_is_none_is_refused_by_evaluate(size):
    model = DANN(nn.Identity(), nn.Identity(), nn.Linear(2, 1))
    with pytest.raises(ValueError, match=f"batch_size must be an int >= 1, got {size}"):
        evaluate(model, (torch.eye(2), torch.tensor([0, 0])), batch_size=size)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, "ce"])
def test_a_label_loss_that_is_no_function_is_refused_when_the_network_is_made(loss):
    with pytest.raises(TypeError, match=r"function of logits and labels, as nn\.CrossEntropyLoss"):
        DANN(nn.Identity(), nn.Identity(), nn.Linear(2, 1), label_loss=loss)
