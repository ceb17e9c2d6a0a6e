"""`pyrevgrad.custom`: an activation of the user's own, on the reference.

The Triton part runs in interpreted.py. It may import the package.
"""

import copy
import inspect
import math
import pickle
import subprocess
import sys

import pytest
import torch
from expected import example, ruled

import pyrevgrad
from pyrevgrad import EXACT, GUIDED, TracingError, customizing, reverse, rules
from pyrevgrad.activations import ACTIVATIONS


def value(x):
    return x * torch.sin(x)


def slope(x):
    return torch.sin(x) + x * torch.cos(x)


def swish(x, beta):
    return x * torch.sigmoid(beta * x)


def swish_slope(x, beta):
    s = torch.sigmoid(beta * x)
    return s + x * (beta * (s * (1 - s)))


WAVE = pyrevgrad.custom("wave", value, slope, text=("x·sin(x)", "sin(x) + x·cos(x)"))
SWISH = pyrevgrad.custom("swish_of", swish, swish_slope, parameters={"beta": 1.0})
XS = (-2.0, -0.5, 0.3, 1.7)
GS = (-1.5, 0.0, 0.7)


def test_example_prints_three_rules_and_a_layer(capsys):
    example("custom_activation").main()
    printed = capsys.readouterr().out
    assert "gx = -0.5·((1 + x / √(x² + b)) / 2)·g" in printed
    assert "[0.0, 0.0, 1.0]" in printed
    assert "Activation('squareplus', rule=GUIDED, b=1.0)" in printed


@pytest.mark.parametrize("rule_name", rules.RULES)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
def test_any_rule_goes_with_a_custom_activation(rule_name, dtype):
    x = torch.tensor(XS, dtype=dtype).repeat_interleave(len(GS)).requires_grad_()
    g = torch.tensor(GS, dtype=dtype).repeat(len(XS))
    y = WAVE(x, rules.RULES[rule_name])
    (gx,) = torch.autograd.grad(y, x, g)
    at = x.detach().double()
    torch.testing.assert_close(y.detach(), (at * at.sin()).to(dtype))
    wanted = ruled(rule_name, at, g.double(), y.double(), at.sin() + at * at.cos())
    torch.testing.assert_close(gx, wanted.to(dtype))


def test_parameters_have_defaults_and_are_passed_by_name():
    x = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    for given, beta in (({}, 1.0), ({"beta": 2.5}, 2.5)):
        y = SWISH(x, **given)
        sigma = 1 / (1 + math.exp(-beta * 0.7))
        assert y.item() == pytest.approx(0.7 * sigma)
        (gx,) = torch.autograd.grad(y, x)
        assert gx.item() == pytest.approx(sigma + 0.7 * beta * sigma * (1 - sigma))
    with pytest.raises(TypeError, match="swish_of has no parameter 'bet': did you mean 'beta'"):
        SWISH(x, bet=2.0)


def test_its_name_serves_wherever_a_name_does():
    x = torch.tensor([0.5, -0.5])
    assert torch.equal(pyrevgrad.activation(x, "wave"), WAVE(x))
    layer = pyrevgrad.nn.Activation("swish_of", rule=reverse(torch.tensor(0.5)), beta=2.0)
    assert torch.equal(layer(x), SWISH(x, beta=2.0))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    assert pyrevgrad.plan("wave").keeps == "input"
    assert GUIDED.formula("wave") == "gx = (x <= 0 or g <= 0) ? +0 : g"
    assert EXACT.formula("wave") == "gx = (sin(x) + x·cos(x))·g"
    assert "wave" not in ACTIVATIONS
    with pytest.raises(ValueError, match="unknown activation 'wav': did you mean 'wave'"):
        pyrevgrad.activation(x, "wav")


def test_a_pickle_that_comes_before_its_activation_gets_a_sentence(monkeypatch):
    pickled = pickle.dumps(pyrevgrad.nn.Activation("wave"))
    monkeypatch.delitem(customizing.CUSTOM, "wave")
    with pytest.raises(ValueError, match=r"'wave' was made by pyrevgrad\.custom: make it before"):
        pickle.loads(pickled)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_function_is_pickled_by_its_name(protocol):
    pickled = pickle.dumps((WAVE, SWISH), protocol)
    assert pickle.loads(pickled) == (WAVE, SWISH)
    assert copy.deepcopy(WAVE) is WAVE


def test_a_function_that_is_loaded_before_it_is_made_gets_a_sentence():
    made = pyrevgrad.custom("made_late", lambda x: 2 * x, lambda x: 0 * x + 2)
    load = f"import pickle, pyrevgrad; pickle.loads({pickle.dumps(made)!r})"
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True)
    assert "ValueError: 'made_late' was made by pyrevgrad.custom: make it before" in done.stderr


#: Functions whose results are x itself, a view of it, or laid out otherwise than x.
UNLIKE_X = {
    "ident": lambda x: x,
    "viewed": lambda x: x.view_as(x),
    "detached": lambda x: x.detach(),
    "packed": lambda x: x.contiguous() * 2,
    "constant": lambda x: torch.ones((), dtype=x.dtype).expand_as(x),
    "turned": lambda x: (x.mT.contiguous() * 2).mT,
}
INPUTS = {
    "contiguous": lambda: torch.randn(4, 3),
    "transposed": lambda: torch.randn(3, 4).t(),
    "expanded": lambda: torch.randn(3).expand(4, 3),
    "sliced": lambda: torch.randn(4, 6)[:, ::2],
    "half": lambda: torch.randn(4, 3, dtype=torch.bfloat16).t(),
}


@pytest.mark.parametrize("of", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("name", UNLIKE_X)
def test_the_result_is_fresh_and_laid_out_as_x(name, of):
    made = pyrevgrad.custom(name, UNLIKE_X[name], torch.ones_like)
    x = of()
    wanted = UNLIKE_X[name](x).clone()
    for given in (x, x.clone().requires_grad_()):
        for rule in (EXACT, GUIDED):
            y = made(given, rule)
            assert torch.equal(y, wanted)
            assert y.stride() == torch.empty_like(given).stride()
            before = given.detach().clone()
            y.add_(1)
            assert torch.equal(given, before)


# PyTorch's compiler instantiates a Function, which PyTorch deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", UNLIKE_X)
def test_a_result_that_is_not_fresh_is_compiled_transformed_and_differentiated(name):
    made = pyrevgrad.custom(f"{name}_cubed", UNLIKE_X[name], lambda x: 3 * x * x)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(made(x).sum(), x)
    torch.testing.assert_close(wanted, 3 * x.detach() ** 2)
    y = torch.compile(made, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, UNLIKE_X[name](x))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], wanted)
    torch._dynamo.reset()
    at = x.detach()
    assert torch.equal(torch.func.vmap(torch.func.grad(lambda t: made(t).sum()))(at), wanted)
    twice = torch.func.grad(lambda t: torch.func.grad(lambda s: made(s).sum())(t).sum())(at)
    torch.testing.assert_close(twice, 6 * at)
    (gx,) = torch.autograd.grad(made(x).sum(), x, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(gx.sum(), x)[0], 6 * at)


def test_second_derivatives_in_place_and_transforms_work():
    x = torch.tensor(XS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(WAVE, x)
    assert torch.autograd.gradgradcheck(WAVE, x)
    y = x.detach().clone()
    assert WAVE(y, inplace=True) is y
    torch.testing.assert_close(y, value(x.detach()))
    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(WAVE))(x.detach()), slope(x.detach())
    )


# PyTorch's compiler instantiates a Function, which PyTorch deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_code_keeps_the_rule():
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    y = torch.compile(WAVE, backend="aot_eager", fullgraph=True)(x, GUIDED)
    assert torch.autograd.grad(y, x, torch.tensor([1.0, 3.0]))[0].tolist() == [0.0, 3.0]


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_a_slope_that_is_no_derivative_is_used_and_never_dropped():
    surrogate = pyrevgrad.custom(
        "step_of", lambda x: (x > 0).to(x.dtype), lambda x: 1 / (1 + x * x)
    )
    x = torch.tensor([2.0], requires_grad=True)
    assert torch.autograd.grad(surrogate(x), x)[0].item() == pytest.approx(0.2)
    with pytest.raises(TracingError, match="would replace the backward"):
        torch.jit.trace(surrogate, x)


def test_the_same_functions_are_made_once():
    assert pyrevgrad.custom("wave", value, slope, text=("x·sin(x)", "sin(x) + x·cos(x)")) is WAVE
    made = [pyrevgrad.custom("twice", lambda x: 2 * x, lambda x: 0 * x + 2) for _ in range(3)]
    assert made[0] is made[1] is made[2]


def test_a_name_that_is_taken_by_other_functions_is_refused():
    with pytest.raises(ValueError, match="'wave' was made before of something else"):
        pyrevgrad.custom("wave", slope, value)
    assert pyrevgrad.activation(torch.ones(1), "wave").item() == pytest.approx(math.sin(1))


def test_no_parameter_has_a_name_that_a_call_takes_itself():
    calls = (pyrevgrad.activation, pyrevgrad.nn.Activation.__init__, pyrevgrad.plan)
    taken = {name for call in calls for name in inspect.signature(call).parameters} - {"params"}
    assert {"self", "x", "rule", "inplace", "name", "dtype"} <= taken
    for name in taken:
        with pytest.raises(ValueError, match=f"bad cannot have a parameter called '{name}'"):
            pyrevgrad.custom("bad", swish, swish_slope, parameters={name: 1.0})


#: (parameters, value, slope): one takes more than x and them, or less.
UNNAMED = (
    ({}, lambda x, a: x * a, lambda x: x, r"value .* \(none\); it takes x, a: name them in param"),
    ({}, lambda x: x, lambda x, *, a: x, r"slope .* \(none\); it takes x, a: name"),
    ({"b": 1.0}, lambda x: x, lambda x, b: x, r"value .* \(b\); it takes x: name"),
)


@pytest.mark.parametrize(("parameters", "f", "df", "message"), UNNAMED)
def test_arguments_that_parameters_do_not_name_get_a_sentence(parameters, f, df, message):
    with pytest.raises(TypeError, match=f"^custom: {message}"):
        pyrevgrad.custom("bad", f, df, parameters=parameters)
    assert "bad" not in customizing.CUSTOM


@pytest.mark.parametrize("mode", (torch.no_grad, torch.inference_mode))
def test_what_is_wrong_is_seen_without_gradients_too(mode):
    with mode():
        with pytest.raises(ValueError, match="changes its arguments in place"):
            pyrevgrad.custom("bad", lambda x: x.relu_(), slope)
        with pytest.raises(ValueError, match="detach it"):
            pyrevgrad.custom("bad", lambda x: LEARNT * x, slope)


#: What reads the other elements, or chance.
NOT_ELEMENTWISE = {
    "softmax": lambda x: x.softmax(-1),
    "softmax of the first": lambda x: x.softmax(0),
    "centred": lambda x: x - x.mean(),
    "normalised": lambda x: x / x.norm(),
    "summed": lambda x: x.cumsum(1),
    "turned": lambda x: x.flip(1),
    "counted": lambda x: x / x.numel(),
    "dropped": lambda x: torch.dropout(x, 0.5, True),
    "noisy": lambda x: x + torch.rand_like(x),
}


@pytest.mark.parametrize("what", ("value", "slope"))
@pytest.mark.parametrize("named", NOT_ELEMENTWISE)
def test_what_is_not_elementwise_or_random_is_refused(named, what):
    functions = {"value": value, "slope": slope, what: NOT_ELEMENTWISE[named]}
    with pytest.raises(ValueError, match=f"{what} of bad must be elementwise and the same each"):
        pyrevgrad.custom("bad", **functions)
    assert "bad" not in customizing.CUSTOM


def numerical(x):
    return (torch.tanh(x + 1e-6) - torch.tanh(x - 1e-6)) / 2e-6


#: Elementwise functions that a strict comparison of bits or of finite numbers would refuse.
ELEMENTWISE = {
    "kink": lambda x: torch.where(x > 0.4, 2 * x, -x),
    "step": lambda x: torch.round(torch.tanh(x) * 127) / 127,
    "nan": lambda x: torch.log(x),
    "inf": lambda x: torch.where(x > 1, x / 0, x),
    "rounding": lambda x: torch.expm1(x.float()).to(x.dtype),
    "difference": numerical,
    "bessel": lambda x: torch.special.i0e(x) * torch.erf(x),
    "strided": lambda x: (x.mT.contiguous() * 2).mT,
}


@pytest.mark.parametrize("named", ELEMENTWISE)
def test_elementwise_functions_of_any_kind_are_taken(named):
    function = ELEMENTWISE[named]
    made = pyrevgrad.custom(f"taken_{named}", function, function)
    x = torch.tensor([[-1.5, 0.7]], requires_grad=True)
    y = made(x)
    assert torch.equal(y, function(x.detach())) or named == "nan"
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], y.detach(), equal_nan=True)


def test_parameters_may_have_names_of_their_own_in_each_function():
    made = pyrevgrad.custom(
        "line_of",
        lambda x, a, b: a * x + b,
        lambda x, k, *_: 0 * x + k,
        parameters={"slope": 3.0, "offset": 1.0},
    )
    x = torch.tensor([2.0], requires_grad=True)
    y = made(x)
    assert y.item() == 7.0 and torch.autograd.grad(y, x)[0].item() == 3.0


def of_factor(factor):
    return pyrevgrad.custom("scaled_by", lambda x: factor * x, lambda x: 0 * x + factor)


def test_closures_are_told_apart_by_what_they_hold():
    assert of_factor(2.0) is of_factor(2.0)
    with pytest.raises(ValueError, match="made before"):
        of_factor(3.0)


LEARNT = torch.nn.Parameter(torch.tensor(2.0))
#: What is given instead of, or beside, ("bad", value, slope), and what is said of it.
BAD = (
    (ValueError, "table has 'relu' already", {"name": "relu"}),
    (ValueError, "'my act' is no Python name", {"name": "my act"}),
    (ValueError, "'class' is no Python name", {"name": "class"}),
    (TypeError, "name must be a string, not int", {"name": 3}),
    (TypeError, "slope of bad must be a function", {"slope": 1.0}),
    (TypeError, "value of bad returned float", {"value": lambda x: 1.0}),
    (TypeError, r"must keep shape and dtype, and made torch.float32 \(\)", {"value": torch.sum}),
    (TypeError, "slope of bad must keep shape and dtype", {"slope": lambda x: x > 0}),
    (TypeError, r"made torch.float32 \(1, 3, 2\) of", {"value": lambda x: x.mean(0, keepdim=True)}),
    (TypeError, "slope of bad must keep shape", {"slope": lambda x: x.mean(1, keepdim=True)}),
    (TypeError, "value of bad must keep", {"value": lambda x: x if x.dim() == 2 else x.sum()}),
    (ValueError, "at most two parameters", {"parameters": {"a": 1, "b": 2, "c": 3}}),
    (ValueError, "'lambda' is no Python name", {"parameters": {"lambda": 1.0}}),
    (TypeError, "a parameter of bad must be a string, not int", {"parameters": {1: 1.0}}),
    (ValueError, "value of bad changes its arguments in place", {"value": lambda x: x.relu_()}),
    (ValueError, "slope of bad changes its arguments in place", {"slope": lambda x: x.fill_(1)}),
    (ValueError, "value of bad reads a tensor that requires grad", {"value": lambda x: LEARNT * x}),
    (ValueError, "slope of bad reads a tensor that requires grad", {"slope": lambda x: LEARNT + x}),
    (TypeError, "a must be a number, not str", {"parameters": {"a": "1"}}),
    (TypeError, "text of bad must be two strings", {"text": "x"}),
    (
        TypeError,
        "parameters of bad go by position: value has them as a, b, and slope as b, a",
        {"value": lambda x, a, b: a * x + b, "slope": lambda x, b, a: 0 * x + a}
        | {"parameters": {"low": 1.0, "high": 2.0}},
    ),
    (
        TypeError,
        "parameters has them as b, a, and value as a, b",
        {"value": lambda x, a, b: a * x + b, "slope": lambda x, a, b: 0 * x + a}
        | {"parameters": {"b": 1.0, "a": 2.0}},
    ),
    (TypeError, "triton of bad must be the pair", {"triton": value}),
    (TypeError, "must be a @triton.jit function", {"triton": (value, slope)}),
)


@pytest.mark.parametrize(("kind", "message", "given"), BAD, ids=lambda it: str(it)[:20])
def test_wrong_arguments_get_a_sentence_and_leave_nothing(kind, message, given):
    with pytest.raises(kind, match=message):
        pyrevgrad.custom(**{"name": "bad", "value": value, "slope": slope, **given})
    assert "bad" not in customizing.CUSTOM
    with pytest.raises(ValueError, match="unknown activation 'bad'"):
        pyrevgrad.activation(torch.ones(1), "bad")
