"""CDAN: features judged together with predictions, its gradients by an independent formula."""

import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyrevgrad import check_reversal
from pyrevgrad.adversarial import CDAN, OuterProduct, RandomizedProduct, fit


def network(conditioning=None, inputs=18, **options):
    torch.manual_seed(0)
    return CDAN(
        nn.Sequential(nn.Linear(5, 6), nn.Tanh()), nn.Linear(6, 3), nn.Linear(inputs, 1),
        conditioning=conditioning, **options,
    ).double()  # fmt: skip


def batch():
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(n, 5, generator=generator).double() for n in (4, 7))
    return source, torch.arange(4) % 3, target


def test_the_outer_product_is_einsum():
    f, g = torch.randn(4, 6), torch.randn(4, 3)
    wanted = torch.einsum("na,nb->nab", f, g).reshape(4, 18)
    assert torch.equal(OuterProduct()(f, g), wanted)


def test_the_randomized_product_has_the_inner_products_of_the_outer_one_in_expectation():
    f, g = torch.randn(3, 4).double(), torch.rand(3, 2).double()
    outer, total = OuterProduct()(f, g), 0
    for seed in range(50):
        drawn = RandomizedProduct(4, 2, 2000, seed=seed).double()(f, g)
        total = total + drawn @ drawn.T
    torch.testing.assert_close(total / 50, outer @ outer.T, rtol=0.05, atol=0.05)


def test_its_matrices_are_saved_and_the_seed_decides():
    one, other = RandomizedProduct(4, 2, 8), RandomizedProduct(4, 2, 8, seed=1)
    assert not torch.equal(one.feature_matrix, other.feature_matrix)
    assert torch.equal(one.feature_matrix, RandomizedProduct(4, 2, 8).feature_matrix)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(one.class_matrix, other.class_matrix)
    assert not list(one.parameters()) and "outputs=8" in repr(one)


CONDITIONS = {"outer": (lambda: None, 18), "random": (lambda: RandomizedProduct(6, 3, 9), 9)}


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("name", CONDITIONS)
def test_gradients_are_those_of_the_formula_with_g_held_fixed(name, entropy):
    make, inputs = CONDITIONS[name]
    model = network(make(), inputs, scale=0.7, domain_weight=0.5, entropy=entropy)
    source, labels, target = batch()
    losses = model(source, labels, target)
    losses.loss.backward()

    f = model.features(torch.cat([source, target]))
    g = torch.softmax(model.label_head(f), 1).detach()
    if name == "outer":
        joint = torch.einsum("na,nb->nab", f, g).reshape(11, 18)
    else:
        by = model.conditioning
        joint = (f @ by.feature_matrix) * (g @ by.class_matrix) / 3
    logits = model.domain_head(joint)[:, 0]
    truth = (torch.arange(11) >= 4).double()
    weight = torch.ones(11).double()
    if entropy:
        weight = 1 + torch.exp((g * g.log()).sum(1))
        weight = torch.cat([part / part.mean() for part in weight.split([4, 7])])
    each = F.binary_cross_entropy_with_logits(logits, truth, weight=weight, reduction="none")
    domain = (each[:4].mean() + each[4:].mean()) / 2
    label = F.cross_entropy(model.label_head(f[:4]), labels)
    torch.testing.assert_close(losses.domain_loss, domain)
    torch.testing.assert_close(losses.label_loss, label)
    for part, factor in (("features", -0.35), ("label_head", 0.0), ("domain_head", 0.5)):
        for p in getattr(model, part).parameters():
            wanted = torch.zeros_like(p)
            for loss, share in ((label, 1.0), (domain, factor)):
                (found,) = torch.autograd.grad(loss, p, retain_graph=True, allow_unused=True)
                wanted += 0 if found is None else share * found
            torch.testing.assert_close(p.grad, wanted)


@pytest.mark.parametrize("entropy", [False, True])
def test_one_label_logit_is_two_logits_of_which_the_first_is_0(entropy):
    def made(classes, loss=None):
        torch.manual_seed(0)
        return CDAN(
            nn.Linear(5, 6), nn.Linear(6, classes), nn.Linear(12, 1), loss, entropy=entropy
        ).double()  # fmt: skip

    def binary(z, y):
        return F.binary_cross_entropy_with_logits(z[:, 0], y.to(z.dtype))

    one, two = made(1, binary), made(2)
    two.features, two.domain_head = one.features, one.domain_head
    with torch.no_grad():
        for name, value in one.label_head.named_parameters():
            into = two.label_head.get_parameter(name)
            into.copy_(torch.cat([torch.zeros_like(value), value]))
    x, _, target = batch()
    found = []
    for model in (one, two):
        losses = model(x, torch.tensor([0, 1, 1, 0]), target)
        found.append([losses.label_loss, losses.domain_loss])
        found[-1] += torch.autograd.grad(losses.loss, one.features.parameters())
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_its_reversal_is_checked_by_itself():
    assert check_reversal(network().reversal, torch.randn(4, 6)).ok


def test_features_that_are_no_vectors_are_refused():
    model = CDAN(nn.Identity(), nn.Conv2d(3, 2, 1), nn.Identity())
    x = torch.randn(2, 3, 4, 4)
    sentence = r"CDAN takes features \(n, F\) and label logits \(n, C\)"
    with pytest.raises(ValueError, match=sentence):
        model(x, torch.zeros(2, 4, 4, dtype=torch.long), x)
    pooled = CDAN(nn.Identity(), nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), nn.Identity())
    with pytest.raises(ValueError, match=sentence):
        pooled(x, torch.zeros(2, dtype=torch.long), x)


@pytest.mark.parametrize("size", [0, 1.5, True])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match="outputs must be an int >= 1"):
        RandomizedProduct(4, 2, size)


def test_fit_trains_it():
    source, labels, target = batch()
    history = fit(
        network(), (source, labels), target, epochs=40, batch_size=4, progress=False
    )  # fmt: skip
    assert history.epochs[-1]["label_loss"] < history.epochs[0]["label_loss"]
