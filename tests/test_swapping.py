"""The swap's promises: what it selects, what it reports, and when it raises."""

from __future__ import annotations

import json
import math
import re
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
import zoo
from swapped_models import Net, Wrapped, run
from torch import nn

import pyrevgrad
from pyrevgrad import DECONVNET, EXACT, GUIDED, SwapError, SwapWarning, reverse, swap
from pyrevgrad.reference_backend import Reference

# The report.


def test_the_report_names_path_kind_line_and_runs():
    model = Net()
    with swap(model, GUIDED) as swapped:
        run(model)
        run(model)
    sites = {(site.path, site.kind): site for site in swapped.report.replaced}
    assert set(sites) == {("act", "relu"), ("unused", "elu"), ("", "gelu"), ("", "relu")}
    assert sites["act", "relu"].aliases == ("act", "alias")
    assert sites["act", "relu"].source.startswith("swapped_models.py:")
    assert (sites["", "gelu"].forward, sites["", "gelu"].backward) == (2, 2)
    assert (sites["unused", "elu"].forward, sites["unused", "elu"].source) == (0, "")
    (gate,) = swapped.report.left
    assert (gate.path, gate.reason, gate.forward) == ("gate", "not a rectifier", 2)
    text = str(swapped.report)
    assert "GUIDED on Net: 4 activations replaced (3 ran), 1 left" in text
    assert "Tensor.relu_" in text and "nn.Sigmoid" in text
    lines = [set(re.split("  +", line)) for line in text.splitlines()]
    for site in swapped.report.sites:
        cells = {site.path or "(model)", site.kind, site.source or "–", str(site.forward)}
        assert any(cells <= line for line in lines)


def test_a_name_that_reads_as_a_pattern_is_a_name_first():
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"a[0]": nn.ReLU(), "a0": nn.ReLU()}))
    with swap(model, GUIDED, where="1.a[0]") as swapped:
        model[1]["a0"](model[1]["a[0]"](model[0](torch.randn(2, 4)))).sum().backward()
    assert [site.path for site in swapped.report.replaced] == ["1.a[0]"]


@pytest.mark.parametrize("layer", [nn.ReLU6(), nn.ReLU6(inplace=True), nn.Hardtanh(0, 6)])
def test_a_relu6_is_one_site_though_pytorch_calls_hardtanh(layer):
    model = nn.Sequential(nn.Linear(4, 4), layer).double()
    with swap(model, GUIDED) as swapped:
        run(model)
    (site,) = swapped.report.sites
    assert (site.path, site.kind, site.forward, site.backward) == ("1", "relu6", 1, 1)


def test_two_calls_on_one_line_are_two_sites():
    model = zoo.Layer(lambda x: F.relu(x) + F.relu(x * 2))
    with swap(model, GUIDED) as swapped:
        run(model)
    assert [site.forward for site in swapped.report.replaced] == [1, 1]


def test_the_report_is_saved_as_json_with_versions(tmp_path):
    model = Net()
    with swap(model, reverse(0.3), where="act") as swapped:
        run(model)
    swapped.report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert saved["torch"] == torch.__version__ and saved["pyrevgrad"] == pyrevgrad.__version__
    assert saved["replaced"][0]["rule"] == "reverse(0.3)"
    assert {left["reason"] for left in saved["left"]} == {"not selected by where"}


def test_print_shows_the_swap_while_it_holds():
    model = Net()
    before = repr(model)
    with swap(model, GUIDED):
        run(model)
        shown = repr(model)
        assert "swap(GUIDED)" in shown and "ReLU(inplace=True, swapped=GUIDED)" in shown
        assert "Sigmoid(swapped=left)" in shown
    assert repr(model) == before


# where.


def replaced(model, where, rule=GUIDED, strict=False):
    with swap(model, rule, where, strict) as swapped:
        run(model)
    return {(site.path, site.kind): site.rule for site in swapped.report.replaced if site.forward}


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        (None, {("act", "relu"), ("", "gelu"), ("", "relu")}),
        ("all", {("act", "relu"), ("", "gelu"), ("", "relu"), ("gate", "sigmoid")}),
        ("alias", {("act", "relu")}),
        ("a*", {("act", "relu")}),
        ("gate", {("gate", "sigmoid")}),
        ("*ate", set()),
        (nn.Sigmoid, {("gate", "sigmoid")}),
        (nn.Module, {("act", "relu"), ("gate", "sigmoid"), ("", "gelu"), ("", "relu")}),
        (Net, {("act", "relu"), ("", "gelu"), ("", "relu")}),
        ((nn.ReLU, "gate"), {("act", "relu"), ("gate", "sigmoid")}),
        (lambda site: site.kind == "gelu", {("", "gelu")}),
        (lambda site: site.spelling == "Tensor.relu_", {("", "relu")}),
        ({"act": None}, {("", "gelu"), ("", "relu")}),
        ({"act": DECONVNET, "*": None}, {("act", "relu")}),
    ],
)
def test_where_selects(where, wanted):
    assert set(replaced(Net(), where)) == wanted


def test_where_maps_rules_to_places():
    found = replaced(Net(), {"act": DECONVNET, nn.Sigmoid: reverse(2.0)})
    assert found["act", "relu"] == DECONVNET
    assert found["gate", "sigmoid"] == reverse(2.0)
    assert found["", "gelu"] == GUIDED


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("actt", ValueError, "no module named 'actt': did you mean 'act'"),
        ({"nope.*": None}, ValueError, "no module named"),
        (3, TypeError, "where must be None, 'all', a module's dotted name"),
        (int, TypeError, "int is not a type of torch.nn.Module"),
        (F.relu, TypeError, r"F\.relu is an activation .*lambda site: site\.kind == 'relu'"),
        ((nn.GELU, torch.sigmoid), TypeError, r"where: torch\.sigmoid is an activation"),
        ({"act": "guided"}, TypeError, "rule must be a pyrevgrad.Rule"),
    ],
)
def test_a_wrong_where_is_refused_before_anything_is_changed(where, error, message):
    model = Net()
    with pytest.raises(error, match=message):
        swap(model, GUIDED, where)
    assert type(model) is Net


def test_a_wrong_rule_or_strict_is_refused():
    with pytest.raises(TypeError, match=r"rule must be a pyrevgrad\.Rule"):
        swap(Net(), "guided")
    with pytest.raises(ValueError, match="strict must be True, False or 'all'"):
        swap(Net(), GUIDED, strict="some")


# strict.


def test_no_forward_raises_after_restoring():
    model = Net()
    with (
        pytest.raises(SwapError, match="no forward of it ran while the swap held"),
        swap(model, GUIDED),
    ):
        pass
    assert type(model) is Net and type(model.act) is nn.ReLU
    with pytest.raises(SwapError, match="no forward"):
        swap(model, GUIDED).revert()


def test_a_model_of_saturating_activations_raises_after_its_forward():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()
    swapped = swap(model, GUIDED)
    with pytest.raises(SwapError, match=r"replaced no activation.*\n.*nn\.Tanh.*not a rectifier"):
        run(model)
    assert type(model) is nn.Sequential
    assert swapped.revert() is model
    with swap(model, GUIDED, strict=False) as swapped:
        run(model)
    assert not swapped.report.replaced


def test_a_model_without_activations_raises():
    with (
        pytest.raises(SwapError, match=r"has a name for; if .* by pyrevgrad\.declare\(Layer, "),
        swap(model := nn.Linear(4, 4).double(), GUIDED),
    ):
        run(model)


def test_strict_does_not_hide_another_exception():
    with pytest.raises(ZeroDivisionError), swap(Net(), GUIDED):
        raise ZeroDivisionError


class Squash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        return g


def scripted(x):
    return torch.jit.script(shifted_relu)(x)


def shifted_relu(x):
    return torch.relu(x - 0.1)


def in_a_thread(x):
    found = []
    thread = threading.Thread(target=lambda: found.append(F.relu(x - 0.1)))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (nn.PReLU(), "nn.PReLU in function .*its slope is learned"),
        (nn.RReLU(), "nn.RReLU in function .*drawn at random"),
        (nn.Threshold(0.1, 20.0), "nn.Threshold in function .*other than"),
        (lambda x: nn.RNN(4, 4, nonlinearity="relu")(x)[0], "rnn_relu.*fused into one operation"),
        (scripted, "ReluBackward is in the graph, made by a call that the swap cannot see"),
        (in_a_thread, "in a scripted function, a thread of its own"),
    ],
    ids=["prelu", "rrelu", "threshold", "fused", "scripted", "thread"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_rectifier_that_was_not_reached_raises_by_name(function, message):
    model = Wrapped(function)
    with pytest.raises(SwapError, match=message), swap(model, GUIDED):
        run(model, dtype=torch.float32)
    with swap(model, GUIDED, strict=False) as swapped:
        run(model, dtype=torch.float32)
    assert len(swapped.report.left) == 1 and len(swapped.report.replaced) == 1


def test_a_layer_that_never_runs_does_not_raise():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).double()
    model[1].spare = nn.PReLU()
    with swap(model, GUIDED) as swapped:
        run(model)
    assert [(site.path, site.forward) for site in swapped.report.left] == [("1.spare", 0)]


BY_HAND = {
    "swish": lambda x: x * torch.sigmoid(x),
    "swish with a slope": lambda x: x * torch.sigmoid(1.7 * x),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(0.79788 * (x + 0.044715 * torch.pow(x, 3)))),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "relu by a mask": lambda x: x * (x > 0),
    "leaky by where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "relu by maximum": lambda x: torch.maximum(x, torch.zeros((), dtype=x.dtype)),
    "a custom Function": Squash.apply,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_an_activation_written_by_hand_warns_and_raises_under_strict_all(name):
    model = Wrapped(BY_HAND[name]).double()
    with pytest.warns(SwapWarning, match="swap left"), swap(model, GUIDED) as swapped:
        run(model)
    assert any(not site.certain for site in swapped.report.left)
    with (
        pytest.warns(SwapWarning),
        pytest.raises(SwapError, match="did not reach"),
        swap(model, GUIDED, strict="all"),
    ):
        run(model)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.sigmoid(x.mean(-1, keepdim=True)),
        lambda x: torch.sigmoid(x[..., :2]) * torch.tanh(x[..., 2:]),
        lambda x: x.clamp(min=1e-6),
        lambda x: x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12),
        lambda x: torch.where(torch.isnan(x), torch.zeros_like(x), x),
        lambda x: x.softmax(-1) * x,
    ],
)
def test_what_is_no_activation_gives_no_warning(function):
    model = Wrapped(function).double()
    with warnings.catch_warnings(), swap(model, GUIDED) as swapped:
        warnings.simplefilter("error")
        run(model)
    assert len(swapped.report.replaced) == 1


def test_an_inner_swap_counts_for_the_outer_one():
    model = Net()
    with swap(model, DECONVNET), swap(model, GUIDED):
        run(model)


# verify and assert_overridden.


@pytest.mark.parametrize("rule", [GUIDED, DECONVNET, reverse(0.3), EXACT], ids=repr)
def test_verify_proves_the_rule_by_numbers(rule):
    model, x = Net(), torch.randn(5, 4).double()
    proof = pyrevgrad.assert_overridden(model, rule, x)
    assert proof.differing == proof.must_differ
    assert (proof.must_differ == 0) == (rule is EXACT)
    assert max(numbers.largest_error for numbers in proof.sites) < 1e-12
    assert "input gradient: at most" in str(proof)


def test_verify_leaves_buffers_grads_and_random_state():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5))
    x = torch.randn(8, 4)
    mean, state = model[1].running_mean.clone(), torch.get_rng_state()
    pyrevgrad.assert_overridden(model, GUIDED, x)
    assert torch.equal(model[1].running_mean, mean)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not x.requires_grad and model.training


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (math.nan, r"nn.ReLU in 1 .*sent back nan where GUIDED gives 0: "),
        (math.inf, r"nn.ReLU in 1 .*sent back inf where GUIDED gives 0: "),
        (0.01, r"nn.ReLU in 1 .*sent back a gradient that is .* from GUIDED: "),
    ],
)
def test_verify_refuses_a_gradient_that_is_not_the_rules_in_a_sentence(monkeypatch, sent, message):
    right = Reference.backward

    def wrong(g, kept, pair, scale, strides=None):
        gx = right(g, kept, pair, scale, strides)
        return torch.where(gx == 0, sent, gx)

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pyrevgrad.backend("reference"):
        pyrevgrad.assert_overridden(model, GUIDED, torch.randn(6, 4))
        monkeypatch.setattr(Reference, "backward", staticmethod(wrong))
        with pytest.raises(SwapError, match=message):
            pyrevgrad.assert_overridden(model, GUIDED, torch.randn(6, 4))


def test_verify_takes_nan_and_infinite_gradients_that_are_the_rules():
    x = torch.tensor([[math.nan, math.inf, -1.0, 1.0]])

    class Steep(nn.Module):
        def forward(self, x):
            return F.relu(x), F.relu(x) * math.inf

    for dtype in (torch.float16, torch.float32):
        assert pyrevgrad.assert_overridden(Steep(), GUIDED, x.to(dtype)).must_differ
    # Infinite in float16 alone.
    model = nn.Sequential(nn.ReLU())
    assert pyrevgrad.assert_overridden(model, reverse(1e5), torch.ones(3).half()).must_differ == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.5])
def test_verify_refuses_a_swap_that_changes_a_value(value):
    class Seeing(nn.Module):
        def forward(self, x):
            y = F.relu(x)
            return y if type(self) is Seeing else torch.where(y == 0, value, y)

    with pytest.raises(SwapError, match=r"changed a value .*compares type\(module\) with a class"):
        pyrevgrad.assert_overridden(Seeing(), GUIDED, torch.randn(6, 4))


def test_verify_refuses_a_model_that_finds_its_layers_by_type_and_leaves_it_swapped():
    class Collecting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x) * (2 if type(layer) is nn.ReLU else 1)
            return x

    model, x = Collecting(), torch.randn(6, 4)
    with swap(model, GUIDED) as outer, swap(model, DECONVNET) as inner:
        held = [type(module) for module in model.modules()]
        for swapped in (outer, inner):
            with pytest.raises(SwapError, match="ask isinstance"):
                swapped.verify(x)
        assert [type(module) for module in model.modules()] == held
        before = [site.forward for site in inner.report.replaced]
        model(x.clone().requires_grad_())
        assert [site.forward for site in inner.report.replaced] == [n + 1 for n in before]


@pytest.mark.parametrize("first_only", [True, False])
def test_verify_does_not_blame_the_swap_for_a_model_that_does_not_repeat_itself(first_only):
    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return F.relu(x) + (self.calls == 1 if first_only else self.calls)

    with pytest.raises(SwapError, match="the model does not repeat itself"):
        pyrevgrad.assert_overridden(Counting(), GUIDED, torch.randn(6, 4))


def test_verify_says_when_nothing_was_proved():
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(SwapError, match="the plain one everywhere, so nothing was proved"):
        pyrevgrad.assert_overridden(model, GUIDED, torch.ones(1))
    with pytest.raises(SwapError, match="reverted already"):
        swap(model, GUIDED, strict=False).__exit__(None, None, None) or swap(
            model, GUIDED, strict=False
        ).revert()
        reverted = swap(model, GUIDED, strict=False)
        reverted.revert()
        reverted.verify(torch.ones(1))
