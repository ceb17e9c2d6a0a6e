"""check_reversal: a right reversal passes, and each way to fail has a verdict and a sentence."""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import nn

import pyrevgrad
from pyrevgrad import check_reversal, reverse, reverse_gradient
from pyrevgrad.adversarial import DANN
from pyrevgrad.compat import GradientReverseLayer, RevGrad, WarmStartGradientReverseLayer
from pyrevgrad.diagnosis import ReversalError
from pyrevgrad.nn import Activation, GradientReversal
from pyrevgrad.schedules import GaninSchedule

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


class Function(torch.autograd.Function):
    """A reversal of one's own: what `factor` is, the backward multiplies by."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return ctx.factor * g, None


class Own(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return Function.apply(x, self.factor)


class Network(nn.Module):
    """Features and two heads; `before` stands before the domain head."""

    def __init__(self, before, inside=None, behind=None, first=None, shared=None):
        super().__init__()
        keep = nn.Identity()
        self.features = nn.Sequential(
            first or keep, nn.Linear(5, 7), inside or keep, nn.Tanh(), nn.Linear(7, 4), nn.ReLU()
        )
        self.shared = shared or keep
        self.label_head = nn.Linear(4, 3)
        self.domain_head = nn.Sequential(
            before or keep, nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1), behind or keep
        )

    def forward(self, x):
        found = self.shared(self.features(x))
        return self.label_head(found), self.domain_head(found)


def checked(model, inputs=X, **options):
    return check_reversal(model, inputs, **{"output": 1, "strict": False, **options})


# What is right.

RIGHT = {
    "GradientReversal": (GradientReversal(1.0), {}),
    "a scale of 0": (GradientReversal(0.0), {}),
    "a schedule": (GradientReversal(GaninSchedule(10)), {}),
    "a given scale": (GradientReversal(0.3), {"scale": 0.3}),
    "RevGrad": (RevGrad(2.0), {}),
    "warm start": (WarmStartGradientReverseLayer(auto_step=True), {}),
    "GradientReverseLayer": (GradientReverseLayer(), {}),
    "a Function of one's own": (Own(-0.7), {"scale": 0.7}),
    "a fused activation": (Activation("tanh", reverse(torch.tensor(3.0))), {}),
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_reversal_passes(name, mode):
    layer, options = RIGHT[name]
    model = Network(copy.deepcopy(layer)).train(mode == "train")
    report = checked(model, **options)
    assert report.ok and report.verdict == "reversed", str(report)
    assert "times the plain gradient" in report.sentence
    for module, factor in report.factors.items():
        plain = module.startswith("domain_head")
        assert factor == pytest.approx(1.0 if plain else -report.scale, rel=1e-3)


def test_a_function_call_inside_forward_is_measured_too():
    class Calls(Network):
        def forward(self, x):
            found = self.features(x)
            return self.label_head(found), self.domain_head(reverse_gradient(found, 0.3))

    assert checked(Calls(None), scale=0.3).ok
    other = checked(Calls(None), scale=0.6)
    assert other.verdict == "not proportional"
    assert "All get -0.3 times it: give scale=0.3 if that is λ" in other.sentence


@pytest.mark.parametrize(
    "layer", [GradientReversal(0.0), RevGrad(), GradientReverseLayer(), Own(-1.0)]
)
def test_a_layer_alone_is_checked_by_its_input(layer):
    report = check_reversal(layer, X)
    assert report.ok and list(report.factors) == ["input"]


def test_dropout_normalisation_and_an_in_place_input_do_not_disturb():
    model = nn.Sequential(
        nn.ReLU(inplace=True), nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5),
        GradientReversal(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2),
    )  # fmt: skip
    assert check_reversal(model, X).ok


def test_float32_is_enough_to_tell():
    assert checked(Network(GradientReversal()), dtype=torch.float32).ok
    assert checked(Network(None), dtype=torch.float32).verdict == "no effect"


def test_keyword_arguments_and_named_outputs():
    class Named(Network):
        def forward(self, *, pixels, flag):
            label, domain = super().forward(pixels)
            return {"label": label, "domain": domain, "flag": flag}

    report = checked(Named(GradientReversal()), {"pixels": X, "flag": 3}, output="domain")
    assert report.ok
    report = checked(Named(None, shared=GradientReversal()), {"pixels": X, "flag": 3},
                     output="domain", label="label")  # fmt: skip
    assert report.verdict == "wrong place"


def test_an_output_is_chosen_by_a_function():
    assert checked(Network(GradientReversal()), output=lambda both: both[1].mean()).ok


# What is wrong.

WRONG = {
    "wrong sign": (lambda: Network(GradientReversal(-0.3)), {"scale": 0.3}, "its sign is lost"),
    "wrong sign of a Function": (lambda: Network(Own(0.5)), {"scale": 0.5}, "its sign is lost"),
    "doubled sign": (
        lambda: Network(nn.Sequential(GradientReversal(), GradientReversal())),
        {}, "two reversals",
    ),
    "doubled sign of layers apart": (
        lambda: Network(GradientReversal(), shared=GradientReversal()), {}, "two reversals",
    ),
    "no effect": (lambda: Network(None), {}, "nothing on the way to them reverses it"),
    "no effect of a Function": (lambda: Network(Own(1.0)), {"scale": 0.5}, "nothing on the way"),
    "scale lost": (lambda: Network(Own(-1.0)), {"scale": 0.5}, "never arrives"),
    "no gradient": (lambda: Network(GradientReversal(), shared=Own(0.0)), {}, r"a detach\(\)"),
    "wrong place behind the head": (
        lambda: Network(None, behind=GradientReversal()), {}, "domain_head.1, domain_head.3",
    ),
    "wrong place before the features": (
        lambda: Network(None, first=GradientReversal()), {}, "before the features",
    ),
    "wrong place in the features": (
        lambda: Network(None, inside=GradientReversal()), {},
        r"features\.1 gets .* features\.4 the plain",
    ),
    "wrong place before both heads": (
        lambda: Network(None, shared=GradientReversal()), {}, "before the domain head alone",
    ),
    "not proportional": (lambda: Network(Own(-0.2)), {"scale": 0.5}, "sum with the label loss"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_each_way_to_fail_has_its_sentence(case):
    make, options, sentence = WRONG[case]
    model = make()
    with pytest.raises(ReversalError, match=sentence) as raised:
        checked(model, **options, strict=True)
    report = raised.value.report
    assert case.startswith(report.verdict) and not report.ok
    assert report.verdict in str(raised.value) and "gradient divided by the plain one" in str(
        report
    )


def test_a_detached_feature_is_named():
    class Detached(Network):
        def forward(self, x):
            found = self.features(x)
            return self.label_head(found), self.domain_head(found.detach())

    report = checked(Detached(GradientReversal()))
    assert report.verdict == "no gradient" and "detach()" in report.sentence


def test_a_head_on_other_inputs_is_named():
    class Elsewhere(Network):
        def forward(self, x):
            return self.label_head(self.features(x)), self.domain_head(x[:, :4])

    report = checked(Elsewhere(GradientReversal()))
    assert report.verdict == "no gradient" and "does not depend on the features" in report.sentence


def test_a_sum_of_both_losses_is_not_taken_for_a_reversal():
    model = Network(GradientReversal())
    report = checked(model, output=lambda both: both[0].square().mean() + both[1].mean())
    assert report.verdict == "not proportional"


def test_a_reversal_of_one_path_alone_is_not_proportional():
    class Leaking(Network):
        def forward(self, x):
            found = self.features(x)
            return self.label_head(found), self.domain_head(found) + found.sum(1, keepdim=True)

    assert checked(Leaking(GradientReversal())).verdict == "not proportional"


def test_with_a_scale_of_one_the_doubt_is_said():
    report = checked(Network(Own(1.0)))
    assert report.verdict == "no effect" and "give another scale to tell" in report.sentence


def test_unnamed_features_are_found():
    layers = [nn.Linear(5, 4), nn.Tanh(), GradientReversal(), nn.Linear(4, 2)]
    assert check_reversal(nn.Sequential(*layers), X).ok
    behind = nn.Sequential(layers[0], layers[1], layers[3], GradientReversal())
    report = check_reversal(behind, X, strict=False)
    assert report.verdict == "wrong place" and "name them by features=" in report.sentence
    assert check_reversal(behind, X, features=behind).ok
    assert check_reversal(behind, X, features="0", strict=False).verdict == "wrong place"


def dann(head=None):
    torch.manual_seed(0)
    return DANN(nn.Linear(5, 4), nn.Linear(4, 3), head or nn.Linear(4, 1), scale=0.3)


BATCH = X, torch.arange(len(X)) % 3, X + 1


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network_is_measured_by_the_names_of_its_own():
    report = check_reversal(torch.compile(dann(), backend="eager"), BATCH)
    assert set(report.factors) == {"input", "features", "domain_head"}
    part = dann()
    part.features = torch.compile(part.features, backend="eager")
    assert check_reversal(part, BATCH).factors.keys() == report.factors.keys()
    assert check_reversal(part, BATCH, features="features").ok


def test_a_head_that_starts_at_zero_is_measured():
    head = nn.Linear(4, 1)
    nn.init.zeros_(head.weight)
    assert check_reversal(dann(head), BATCH).ok
    assert not head.weight.any()


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.Sigmoid()])
def test_features_without_effect_are_named_and_no_head_is_taken_for_them(layer):
    dead = nn.Linear(5, 4)
    nn.init.constant_(dead.bias, -1e4)
    report = check_reversal(
        nn.Sequential(dead, layer, GradientReversal(0.3), nn.Linear(4, 1)), X, strict=False
    )
    assert report.verdict == "no gradient"
    assert "does not depend on 0, from which a way leads to it" in report.sentence
    nn.init.zeros_(dead.bias)
    assert check_reversal(nn.Sequential(dead, GradientReversal(0.3), nn.Linear(4, 1)), X).ok


def test_inputs_may_be_nested():
    domains = DANN(nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 3))
    x, y, t = BATCH
    report = check_reversal(domains, ([x, 2 * x], (y, y), [t]))
    assert report.factors["input"] == pytest.approx(-0.5, rel=1e-3)

    class Pair(NamedTuple):
        left: torch.Tensor
        right: torch.Tensor

    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.head = nn.Linear(5, 4), nn.Linear(4, 1)
            self.reversal = GradientReversal()

        def forward(self, given):
            return self.head(self.reversal(self.features(given["pair"].left + given["more"][0])))

    assert check_reversal(Nested(), [{"pair": Pair(x, y), "more": [x]}]).ok


# What it leaves alone, and what it refuses.


def test_the_model_its_gradients_and_the_random_state_stay_as_they_were():
    model = Network(WarmStartGradientReverseLayer(auto_step=True), shared=nn.BatchNorm1d(4))
    model(X)[0].sum().backward()
    x = X.clone().requires_grad_()
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad.clone() for p in model.features.parameters()]
    random = torch.get_rng_state()
    checked(model, x)
    assert torch.equal(torch.get_rng_state(), random) and x.grad is None
    for name, value in model.state_dict().items():
        assert value == before[name] if name.endswith("extra_state") else True
        assert not isinstance(value, torch.Tensor) or torch.equal(value, before[name])
    for parameter, gradient in zip(model.features.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: check_reversal(torch.relu, X), TypeError, "takes a torch.nn.Module, not"),
        (lambda: check_reversal(GradientReversal(), X, scale=0), ValueError, "scale is 0"),
        (lambda: check_reversal(GradientReversal(), X, dtype=torch.half), ValueError, "float64 or"),
        (lambda: check_reversal(Network(None), X), ValueError, "returns a tuple: say by output="),
        (lambda: checked(Network(None), output=2), ValueError, "the chosen output is not there"),
        (lambda: checked(Network(None), features="body"), ValueError, "no submodule 'body'"),
        (lambda: checked(Network(None), X.long()), RuntimeError, "pass dtype=torch.float32"),
        (lambda: check_reversal(nn.Identity(), X.long()), ValueError, "no floating-point tensor"),
    ],
)
def test_what_cannot_be_checked_is_said(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_it_is_reachable_from_the_package():
    assert pyrevgrad.check_reversal is check_reversal
    assert issubclass(pyrevgrad.ReversalError, RuntimeError)


@pytest.mark.parametrize("scale", [0.0, GaninSchedule(10)], ids=["a number", "a schedule"])
def test_a_scale_that_is_zero_now_is_said(scale):
    model = nn.Sequential(nn.Linear(5, 4), GradientReversal(scale), nn.Linear(4, 1))
    report = check_reversal(model, X)
    assert report.ok and report.scale == 0.5
    assert report.sentence == (
        "the features get -0.5 times the plain gradient (checked at λ = 0.5, as λ of 1 is 0 now)"
    )
    model[1].scale = 0.3
    assert "now" not in check_reversal(model, X).sentence


class Summed(nn.ModuleList):
    def forward(self, x):
        return sum(module(x) for module in self)


def test_of_many_names_four_are_listed():
    for count, names in ((4, "1.0, 1.1, 1.2, 1.3"), (5, "1.0, 1.1, 1.2, 1.3 and 1 more")):
        reversals = Summed(GradientReversal(0.0) for _ in range(count))
        model = nn.Sequential(nn.Linear(5, 4), reversals, nn.Linear(4, 1))
        assert check_reversal(model, X).sentence.endswith(f"as λ of {names} is 0 now)")


def test_a_factor_that_the_model_does_not_have_now_is_said_to_be_of_another_scale():
    model = nn.Sequential(nn.Linear(5, 4), GradientReversal(0.1), nn.Linear(4, 1))
    factor = "the features get -0.5 times the plain gradient"
    assert check_reversal(model, X).sentence == f"{factor} (checked at λ = 0.5)"
    model[1].scale = 0.5
    assert check_reversal(model, X).sentence == factor
    model[1].scale = 0.1
    assert check_reversal(model, X, scale=0.1).sentence == factor.replace("0.5", "0.1")


def test_a_scale_below_zero_is_a_wrong_sign():
    layers = [nn.Linear(2, 8), nn.Tanh(), GradientReversal(-1.0), nn.Linear(8, 1)]
    with pytest.raises(ReversalError, match=r"wrong sign: .* λ of 2 is -1: below 0 it undoes"):
        check_reversal(nn.Sequential(*layers), torch.randn(8, 2))


class Block(nn.Module):
    """A residual block whose last layer is initialised to zero: its relu meets 0 + 0."""

    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x):
        return (x + self.last(self.first(x).relu())).relu()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("before", "verdict"),
    [(GradientReversal(0.3), "reversed"), (nn.Identity(), "no effect"), (Own(0.5), "wrong sign")],
    ids=repr,
)
def test_blocks_that_are_initialised_to_zero_are_measured_beside_their_kinks(
    before, verdict, dtype
):
    torch.manual_seed(0)
    features = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), Block(8), Block(8))
    model = nn.Sequential(features, before, nn.Linear(8, 1))
    state = copy.deepcopy(model.state_dict())
    scale = 0.5 if isinstance(before, Own) else None
    report = check_reversal(model, X, scale=scale, strict=False, dtype=dtype)
    assert report.verdict == verdict
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
