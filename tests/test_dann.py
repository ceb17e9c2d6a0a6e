"""DANN: its losses, its gradients part by part, any shapes and domains, and what it refuses."""

import copy
import functools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pyrevgrad
from pyrevgrad import check_reversal
from pyrevgrad.adversarial import DANN, GaninSchedule, evaluate
from pyrevgrad.compat import RevGrad
from pyrevgrad.nn import GradientReversal, ReversedLinear
from pyrevgrad.reference.circuits import adversarial_gradients, adversarial_parameters


def network(scale=0.5, outputs=1, **options):
    torch.manual_seed(0)
    return DANN(
        nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh()),
        nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)),
        nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, outputs)),
        scale=scale,
        **options,
    ).double()


def batch(n=4, m=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    target = torch.randn(m, 5, generator=generator, dtype=torch.float64) + 1
    return source, torch.arange(n) % 3, target


def domain_loss_by_hand(model, source, target, average):
    """−log of the probability that the domain head gives the right domain, without the reversal."""
    on_source = torch.sigmoid(model.domain_head(model.features(source)))
    on_target = torch.sigmoid(model.domain_head(model.features(target)))
    parts = [-torch.log(1 - on_source), -torch.log(on_target)]
    if average == "samples":
        return torch.cat(parts).mean()
    return (parts[0].mean() + parts[1].mean()) / 2


def label_loss_by_hand(model, source, labels):
    probabilities = torch.softmax(model.label_head(model.features(source)), 1)
    return -torch.log(probabilities[range(len(labels)), labels]).mean()


# Losses and gradients.


@pytest.mark.parametrize("average", ["domains", "samples"])
@pytest.mark.parametrize(("scale", "weight"), [(0.5, 1.0), (1.0, 0.3), (0.0, 2.0), (3.0, 0.0)])
def test_each_part_gets_the_gradient_that_the_docstring_says(scale, weight, average):
    model = network(scale, domain_weight=weight, domain_average=average)
    source, labels, target = batch()
    losses = model(source, labels, target)
    losses.loss.backward()
    plain_domain = domain_loss_by_hand(model, source, target, average)
    plain_label = label_loss_by_hand(model, source, labels)
    torch.testing.assert_close(losses.domain_loss, plain_domain)
    torch.testing.assert_close(losses.label_loss, plain_label)
    torch.testing.assert_close(losses.loss, plain_label + weight * plain_domain)
    factors = {"features": -scale * weight, "label_head": 0.0, "domain_head": weight}
    for part, factor in factors.items():
        for parameter in getattr(model, part).parameters():
            (of_label,) = torch.autograd.grad(
                plain_label, parameter, retain_graph=True, allow_unused=True
            )
            (of_domain,) = torch.autograd.grad(
                plain_domain, parameter, retain_graph=True, allow_unused=True
            )
            wanted = torch.zeros_like(parameter)
            wanted += 0 if of_label is None else of_label
            wanted += 0 if of_domain is None else factor * of_domain
            torch.testing.assert_close(parameter.grad, wanted)


def test_its_gradients_are_those_of_the_numpy_oracle():
    sizes = {"inputs": 5, "features": (6, 4), "label_head": (3,), "domain_head": (1,)}
    parameters = adversarial_parameters(**sizes)
    parts = {
        "features": nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh()),
        "label_head": nn.Sequential(nn.Linear(4, 3)),
        "domain_head": nn.Sequential(nn.Linear(4, 1)),
    }
    for part, layers in parameters.items():
        linear = [layer for layer in parts[part].double() if isinstance(layer, nn.Linear)]
        for layer, (W, b) in zip(linear, layers, strict=True):
            layer.weight.data.copy_(torch.from_numpy(W).T)
            layer.bias.data.copy_(torch.from_numpy(b))
    model = DANN(**parts, scale=0.7, domain_average="samples")
    source, labels, target = batch(9, 10)
    losses = model(source, labels, target)
    losses.loss.backward()
    wanted, gradients = adversarial_gradients(
        parameters, source.numpy(), labels.numpy(), target.numpy(), scale=0.7
    )
    assert losses.loss.item() == pytest.approx(wanted, rel=1e-12)
    for part, layers in gradients.items():
        linear = [layer for layer in parts[part] if isinstance(layer, nn.Linear)]
        for layer, (gW, gb) in zip(linear, layers, strict=True):
            np.testing.assert_allclose(layer.weight.grad.T, gW, rtol=1e-11, atol=1e-14)
            np.testing.assert_allclose(layer.bias.grad, gb, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("outputs", [1, 2])
def test_check_reversal_finds_it_right_and_finds_what_is_broken(outputs):
    model = network(GaninSchedule(10), outputs)
    assert check_reversal(model, batch()).ok
    model.reversal = nn.Identity()
    assert check_reversal(model, batch(), strict=False).verdict == "no effect"


def test_one_logit_and_two_are_the_same_loss():
    one, two = network(), network(outputs=2)
    two.features, two.label_head = one.features, one.label_head
    two.domain_head[0] = one.domain_head[0]
    last = two.domain_head[2]
    last.weight.data[:] = torch.cat([torch.zeros(1, 4), one.domain_head[2].weight.data])
    last.bias.data[:] = torch.cat([torch.zeros(1), one.domain_head[2].bias.data])
    for ours, theirs in zip(one(*batch()), two(*batch()), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 9), (9, 2)])
def test_domains_count_the_same_whatever_their_batch_size(sizes):
    model = network()
    source, labels, target = batch(*sizes)
    once = model(source, labels, target)
    again = model(source, labels, torch.cat([target] * 5))
    torch.testing.assert_close(once.domain_loss, again.domain_loss)
    torch.testing.assert_close(once.domain_accuracy, again.domain_accuracy)


def test_accuracies_count_what_is_right():
    model = DANN(nn.Identity(), nn.Identity(), nn.Linear(3, 1))
    with torch.no_grad():
        model.domain_head.weight.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
        model.domain_head.bias.zero_()
    source = torch.tensor([[-1.0, 2, 0], [-1, 0, 1], [5, 0, 1], [-2, 0, 1]])
    target = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    losses = model(source, torch.tensor([1, 2, 2, -100]), target)
    assert losses.label_accuracy.item() == pytest.approx(2 / 3)
    assert losses.domain_accuracy.item() == (3 / 4 + 1 / 2) / 2


def test_several_domains_are_told_apart_by_as_many_outputs():
    model = network(outputs=4)
    source, labels, target = batch()
    sources, targets = [source, source[:2] + 2], [target, target[:3] - 2]
    losses = model(sources, [labels, labels[:2]], targets)
    wanted = []
    for domain, x in enumerate([*sources, *targets]):
        probabilities = torch.softmax(model.domain_head(model.features(x)), 1)
        wanted.append(-torch.log(probabilities[:, domain]).mean())
    torch.testing.assert_close(losses.domain_loss, torch.stack(wanted).mean())
    joined = torch.cat(sources), torch.cat([labels, labels[:2]])
    torch.testing.assert_close(losses.label_loss, label_loss_by_hand(model, *joined))


# Any modules.


class Pixels(nn.Module):
    """A head for every pixel."""

    def __init__(self, outputs):
        super().__init__()
        self.convolution = nn.Conv2d(4, outputs, 1)

    def forward(self, x):
        return self.convolution(x)


def test_labels_and_domains_of_every_pixel_with_ignored_ones_and_class_weights():
    weight = torch.tensor([1.0, 2.0, 0.5])
    loss = functools.partial(F.cross_entropy, ignore_index=255, weight=weight)
    model = DANN(nn.Conv2d(2, 4, 3, padding=1), Pixels(3), Pixels(1), loss)
    source, target = torch.randn(2, 2, 8, 8), torch.randn(3, 2, 8, 8)
    labels = torch.randint(0, 3, (2, 8, 8))
    labels[:, :3] = 255
    losses = model(source, labels, target)
    logits = model.label_head(model.features(source))
    torch.testing.assert_close(losses.label_loss, loss(logits, labels))
    counted = labels != 255
    right = (logits.argmax(1) == labels)[counted].double().mean()
    assert losses.label_accuracy.item() == pytest.approx(right.item())
    per_pixel = [
        F.softplus(sign * model.domain_head(model.features(x))).mean()
        for x, sign in ((source, 1), (target, -1))
    ]
    torch.testing.assert_close(losses.domain_loss, sum(per_pixel) / 2)
    losses.loss.backward()


def test_regression_has_no_label_accuracy():
    model = DANN(nn.Linear(5, 4), nn.Linear(4, 2), nn.Linear(4, 1), F.mse_loss)
    source, target = torch.randn(3, 5), torch.randn(3, 5)
    wanted = torch.randn(3, 2)
    losses = model(source, wanted, target)
    assert losses.label_accuracy.isnan() and losses.label_loss.isfinite()
    score = evaluate(model, (source, wanted))
    assert math.isnan(score.accuracy) and math.isfinite(score.loss)


def test_sizes_of_their_own_go_through_one_by_one():
    features = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    source, target = torch.randn(3, 1, 16), torch.randn(2, 1, 9)
    model = DANN(features, nn.Linear(4, 3), nn.Linear(4, 1), together=False)
    assert model(source, torch.arange(3), target).loss.isfinite()
    model.together = True
    with pytest.raises(ValueError, match=r"different shapes: .*; pass together=False"):
        model(source, torch.arange(3), target)


def test_batch_normalisation_sees_the_domains_as_asked():
    features = nn.BatchNorm1d(5, affine=False)
    found = []
    features.register_forward_hook(lambda _, x, y: found.append(len(x[0])))
    model = DANN(features, nn.Linear(5, 3), nn.Linear(5, 1)).double()
    model(*batch(4, 7))
    model.together = False
    model(*batch(4, 7))
    assert found == [11, 4, 7]


def test_frozen_normalisation_does_not_change_the_reversal():
    model = network()
    gradients = []
    for mode in (model.train(), model.eval()):
        mode.zero_grad()
        mode(*batch()).loss.backward()
        gradients.append([p.grad.clone() for p in mode.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("where", ["label_head", "domain_head"])
def test_a_head_that_overwrites_the_shared_features_is_refused(where):
    parts = {"features": nn.Linear(5, 6), "label_head": nn.Linear(6, 3)}
    parts["domain_head"] = nn.Linear(6, 1)
    parts[where] = nn.Sequential(nn.ReLU(inplace=True), parts[where])
    with pytest.raises(ValueError, match=f"{where} overwrites its input, which both heads share"):
        DANN(**parts).double()(*batch())
    parts[where] = nn.Sequential(nn.ReLU(), nn.Linear(6, 6), nn.ReLU(inplace=True), parts[where][1])
    DANN(**parts).double()(*batch()).loss.backward()


def test_the_scale_follows_a_schedule_and_is_saved():
    schedule = GaninSchedule(10)
    model = network(schedule)
    schedule.step()
    fresh = network()
    fresh.load_state_dict(model.state_dict())
    assert fresh.reversal.scale.item() == schedule.value
    assert model.half().reversal.scale.dtype == torch.float64
    assert copy.deepcopy(model).reversal.schedule.steps == 1


def test_the_scale_has_no_effect_at_test_time():
    x = batch()[0]
    one = network(1.0)
    other = copy.deepcopy(one)
    other.reversal.scale = 100.0
    assert torch.equal(one.predict(x), other.predict(x))
    assert one.predict(x).shape == (4, 3)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network_is_the_eager_one_and_compiles_once_over_a_schedule():
    torch._dynamo.reset()
    schedule = GaninSchedule(10)
    model = network(schedule)
    counts = []

    def backend(graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        counts.append(1)
        return aot_eager(graph, inputs)

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    seen = []
    for _ in range(3):
        gradients = []
        for form in (model, compiled):
            model.zero_grad()
            form(*batch()).loss.backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
        torch.testing.assert_close(*gradients)
        seen.append(len(counts))
        schedule.step()
    assert len(set(seen)) == 1


def test_the_norm_of_the_reversed_gradient_can_be_read():
    unasked = network(0.5)
    unasked(*batch()).loss.backward()
    assert set(unasked.reversal.readings()) == {"scale"}
    model = network(0.5, record_norm=True)
    found = []
    model.features.register_forward_hook(lambda _, x, y: found.append(y))
    model(*batch()).loss.backward()
    features = found[0].detach().requires_grad_()
    logits = model.domain_head(features)
    truth = torch.cat([torch.zeros(4, 1), torch.ones(7, 1)]).double()
    weights = torch.cat([torch.full((4, 1), 1 / 8), torch.full((7, 1), 1 / 14)]).double()
    loss = F.binary_cross_entropy_with_logits(logits, truth, weights, reduction="sum")
    (g,) = torch.autograd.grad(loss, features)
    assert model.reversal.gradient_norm.item() == pytest.approx(0.5 * g.norm().item())


# A folded reversal.


@pytest.mark.parametrize("nested", [False, True])
def test_a_head_that_begins_with_a_reversed_linear_layer_gives_the_same_gradients(nested):
    plain = network(0.7)
    folded_head = nn.Sequential(
        ReversedLinear(6, 4, activation="tanh"), nn.Linear(4, 1)
    ).double()  # fmt: skip
    folded_head[0].load_state_dict(
        {**plain.domain_head[0].state_dict(), "scale": torch.tensor(0.0)}, strict=True
    )
    folded_head[1] = plain.domain_head[2]
    head = nn.Sequential(folded_head) if nested else folded_head
    folded = DANN(plain.features, plain.label_head, head, scale=GaninSchedule(3, low=0.7))
    found = []
    for model in (plain, folded):
        model.zero_grad()
        losses = model(*batch())
        losses.loss.backward()
        found.append([p.grad.clone() for p in plain.features.parameters()])
        found[-1] += [model.domain_head.get_parameter(name).grad for name in (
            (("0.0.weight", "0.1.bias") if nested else ("0.weight", "1.bias"))
            if model is folded else ("0.weight", "2.bias")
        )]  # fmt: skip
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert folded.reversal is folded_head[0] and folded.schedule.steps == 0
    assert not [name for name in folded.state_dict() if name.startswith("reversal")]
    assert check_reversal(folded, batch()).ok
    made = copy.deepcopy(folded)
    assert made.reversal is not folded.reversal
    assert made.reversal is (made.domain_head[0][0] if nested else made.domain_head[0])


def test_a_folded_reversal_keeps_its_own_scale_if_none_is_given():
    layer = ReversedLinear(6, 1, scale=0.3)
    assert DANN(nn.Linear(5, 6), nn.Linear(6, 3), layer).reversal.scale.item() == 0.3
    assert DANN(nn.Linear(5, 6), nn.Linear(6, 3), layer, scale=2.0).reversal.scale.item() == 2.0
    assert DANN(nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 1)).reversal.scale.item() == 1.0


@pytest.mark.parametrize("where", ["features", "label_head", "domain_head"])
@pytest.mark.parametrize("layer", [GradientReversal(), RevGrad(), ReversedLinear(6, 6)])
def test_a_second_reversal_is_refused(where, layer):
    parts = {"features": nn.Linear(5, 6), "label_head": nn.Linear(6, 3)}
    parts["domain_head"] = nn.Linear(6, 1)
    parts[where] = nn.Sequential(parts[where], layer)
    with pytest.raises(ValueError, match=rf"{where}\.1 is a reversal, .* undo each other"):
        DANN(**parts)


# What is refused.

X, Y, T = batch()
BAD = [
    (lambda: network()(X, Y + 1, T), ValueError, r"label 3 is out of range: .* 3 classes, 0 to 2"),
    (lambda: network()(X, Y - 1, T), ValueError, "label -1 is out of range"),
    (lambda: network()(X, Y, T[:0]), ValueError, r"target batch of shape \(0, 5\) has no sample"),
    (lambda: network()(X[:0], Y[:0], T), ValueError, "source batch .* has no sample"),
    (lambda: network()(X, Y, T[0, 0]), ValueError, r"target batch of shape \(\) has no sample"),
    (lambda: network()(X, Y, []), ValueError, "target has no domain"),
    (lambda: network()(X, Y, None), TypeError, "target must be a tensor or a sequence"),
    (lambda: network()(X, Y[:2], T), ValueError, r"4 source samples come with labels of shape"),
    (lambda: network()([X, X], Y, T), ValueError, "2 source domains come with 1 of labels"),
    (lambda: network()([X, X], [Y, Y], T), ValueError, "1 outputs for 3 domains; it must give 3"),
    (lambda: network(outputs=3)(X, Y, T), ValueError, "3 outputs for 2 domains; it must give 1 or"),
    (lambda: network()(X, Y, T[:, :4]), ValueError, "different shapes"),
    (lambda: network()(X, Y[:, None], T), ValueError, r"labels of shape \(4, 1\) do not fit"),
    (lambda: network()(X, Y.double(), T), ValueError, r"labels of shape \(4,\) do not fit"),
    (lambda: network(domain_weight=-1), ValueError, "scale does the reversing"),
    (lambda: network(domain_weight=math.nan), ValueError, "domain_weight must not be NaN"),
    (lambda: network(domain_average="mean"), ValueError, "must be 'domains' or 'samples'"),
    (lambda: network(scale="1"), TypeError, "scale must be a number"),
    (lambda: DANN(torch.relu, nn.Identity(), nn.Identity()), TypeError, "features must be a torch"),
    (
        lambda: network(label_loss=functools.partial(F.cross_entropy, reduction="none"))(X, Y, T),
        ValueError, "label_loss must return a 0-dim tensor",
    ),
    (
        lambda: DANN(nn.Flatten(0), nn.Identity(), nn.Identity())(X, Y, T),
        ValueError, "features made 55 samples of 11",
    ),
    (
        lambda: DANN(nn.Identity(), nn.Identity(), nn.Flatten(0))(X, Y, T),
        ValueError, "domain_head made 55 rows of 11",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), BAD)
def test_bad_input_gets_a_sentence(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_importing_the_package_brings_it_and_nothing_heavy():
    code = (
        "import sys, numpy, torch; before = set(sys.modules); import pyrevgrad; "
        "print(pyrevgrad.adversarial.DANN.__name__, [name for name in "
        "('tqdm', 'sklearn', 'matplotlib', 'rich') if name in set(sys.modules) - before])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "DANN []", done.stderr


def test_it_is_reachable_from_the_package():
    assert pyrevgrad.adversarial.DANN is DANN
