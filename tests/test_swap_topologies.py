"""The swap against one Function per call site in float64: topologies, spellings, architectures."""

from __future__ import annotations

import os.path

import expected
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import nn

import pyrevgrad
from pyrevgrad import EXACT, GUIDED, swap
from pyrevgrad.rules import RULES


class Method(nn.Module):
    def forward(self, x):
        return x.relu()


SPELLINGS = {
    "nn.ReLU": nn.ReLU,
    "F.relu": lambda: F.relu,
    "torch.relu": lambda: torch.relu,
    "a method": lambda: lambda x: x.relu(),
    "a method of a layer": Method,
    "clamp": lambda: lambda x: x.clamp(min=0),
    "in place": lambda: lambda x: (x * 1).relu_(),
    "an in-place layer": lambda: nn.Sequential(nn.Identity(), _Copy(), nn.ReLU(inplace=True)),
    "threshold": lambda: nn.Threshold(0.0, 0.0),
    "aten": lambda: torch.ops.aten.relu.default,
}


class _Copy(nn.Module):
    def forward(self, x):
        return x * 1


def compare(plain, oracle, rule, x):
    """Values bit for bit, the gradient of `plain` swapped as that of `oracle`, then as before."""
    y, before = zoo.gradient(plain, x)
    with swap(plain, RULES[rule]) as swapped:
        y_swapped, found = zoo.gradient(plain, x)
    _, wanted = zoo.gradient(oracle, x)
    assert torch.equal(y_swapped, y)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert torch.equal(zoo.gradient(plain, x)[1], before)
    return swapped, found, before


@pytest.mark.parametrize("rule", ["GUIDED", "DECONVNET", "reverse", "rectgrad"])
@pytest.mark.parametrize("wiring", zoo.WIRINGS)
def test_every_call_has_a_backward_of_its_own(wiring, rule):
    x = zoo.images(5, 6)
    plain = zoo.Topology(zoo.WIRINGS[wiring], F.relu)
    oracle = zoo.Topology(zoo.WIRINGS[wiring], zoo.site_of("relu", rule))
    _, found, before = compare(plain, oracle, rule, x)
    assert not torch.equal(found, before)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(
    "wiring", ["a chain", "crelu", "reused layers", "one tensor into two activations"]
)
def test_every_spelling_is_reached(spelling, wiring):
    x = zoo.images(5, 6)
    plain = zoo.Topology(zoo.WIRINGS[wiring], SPELLINGS[spelling]())
    oracle = zoo.Topology(zoo.WIRINGS[wiring], zoo.site_of("relu", "GUIDED"))
    swapped, _, _ = compare(plain, oracle, "GUIDED", x)
    assert sum(site.forward for site in swapped.report.replaced) >= 2
    assert not swapped.report.left


@pytest.mark.parametrize("rule", ["GUIDED", "guided_slope", "guided_product", "DECONVNET"])
@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_small_architectures(name, rule):
    plain, oracle = zoo.architecture(name, None), zoo.architecture(name, rule)
    oracle.load_state_dict(plain.state_dict(), strict=False)
    swapped, found, before = compare(plain, oracle, rule, zoo.images())
    assert sum(site.forward for site in swapped.report.replaced) == zoo.CALLS[name]
    assert all(site.backward == site.forward for site in swapped.report.replaced)
    assert not torch.equal(found, before)


KINDS = ["leaky_relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
         "softplus"]  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_rectifier_under_every_rule(kind, rule):
    function = getattr(F, kind)
    x = zoo.images(7, 6) * 3
    wiring = zoo.WIRINGS["a chain"]
    plain, oracle = zoo.Topology(wiring, function), zoo.Topology(wiring, zoo.site_of(kind, rule))
    compare(plain, oracle, rule, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, "relu"])
def test_values_stay_pytorchs_bit_for_bit(kind, dtype):
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 6.0, 3.0, -3.0, 1e-8, 20.5]
    x = torch.cat([torch.tensor(special), torch.randn(991) * 4]).to(dtype).requires_grad_()
    layer = zoo.Layer(getattr(F, kind))
    plain = layer(x)
    with swap(layer, pyrevgrad.GUIDED):
        y = layer(x)
    assert y.requires_grad and y.dtype == dtype
    bits = {torch.float32: torch.int32}.get(dtype, torch.int16)
    numbers = ~plain.isnan()
    assert torch.equal(y.isnan(), plain.isnan())
    assert torch.equal(y[numbers].detach().view(bits), plain[numbers].detach().view(bits))


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_the_exact_rule_gives_the_plain_gradient(name):
    model, x = zoo.architecture(name, None), zoo.images()
    _, plain = zoo.gradient(model, x)
    with swap(model, EXACT):
        _, found = zoo.gradient(model, x)
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-13)


def test_a_clamp_keeps_its_slope_of_one_at_its_bound():
    x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    layer = zoo.Layer(lambda x: x.clamp(min=0))
    plain = torch.autograd.grad(layer(x).sum(), x)[0]
    with swap(layer, pyrevgrad.reverse(1.0)):
        reversed_ = torch.autograd.grad(layer(x).sum(), x)[0]
    assert plain.tolist() == [0.0, 1.0, 1.0]
    assert torch.equal(reversed_, -plain)
    assert expected.value("relu", x.detach()).tolist() == [0.0, 0.0, 2.0]


@pytest.mark.parametrize("rule", ["GUIDED", "reverse", "rectgrad"])
@pytest.mark.parametrize("kind", ["relu", "silu", "elu"])
def test_in_place_on_a_slice(kind, rule):
    def wiring(a, b, act, x):
        h = a(x)
        part = h[:, 1:4]
        assert act(part) is part
        return b(h) * h

    def out_of_place(a, b, act, x):
        h = a(x)
        h = torch.cat([h[:, :1], act(h[:, 1:4]), h[:, 4:]], 1)
        return b(h) * h

    plain = zoo.Topology(wiring, lambda x: getattr(F, kind)(x, inplace=True))
    oracle = zoo.Topology(out_of_place, zoo.site_of(kind, rule))
    x = zoo.images(5, 6)
    swapped, _, _ = compare(plain, oracle, rule, x)
    assert [site.backward for site in swapped.report.replaced] == [1]
    assert pyrevgrad.assert_overridden(plain, RULES[rule], x).must_differ > 0


def test_backward_hooks_of_the_user_are_no_activations(recwarn):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].register_full_backward_hook(lambda *_: None)
    model[2].register_full_backward_pre_hook(lambda *_: None)
    with swap(model, GUIDED, strict="all") as swapped:
        model(torch.randn(3, 4, requires_grad=True)).sum().backward()
    assert len(swapped.report.replaced) == 1 and not swapped.report.left
    assert not recwarn.list


@pytest.mark.parametrize("package", [torch, pyrevgrad], ids=lambda package: package.__name__)
@pytest.mark.parametrize("ending", ["vision/models.py", "_x/torch/nn/functional.py"])
def test_calls_in_a_package_whose_name_begins_as_torchs_or_ours_are_told_apart(package, ending):
    file = os.path.dirname(package.__file__) + ending
    source = "def forward(F, x):\n    x = F.relu(x)\n    return F.relu(x + 1)\n"
    made = {}
    exec(compile(source, file, "exec"), made)
    layer = zoo.Layer(lambda x: made["forward"](F, x))
    with swap(layer, GUIDED) as swapped:
        layer(torch.randn(3, requires_grad=True)).sum().backward()
    name = os.path.basename(file)
    assert [site.source for site in swapped.report.replaced] == [f"{name}:2", f"{name}:3"]
