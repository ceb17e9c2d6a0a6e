"""`replace=True` of `pyrevgrad.custom` and `custom_rule`: the new one serves, and nothing stale.

Triton's part runs in interpreted.py.
"""

import copy
import inspect
import pickle

import pytest
import torch

import pyrevgrad
from pyrevgrad import EXACT, GUIDED, activation, nn, reverse

X = torch.tensor([-1.0, 2.0])


def multiplied(name, factor, **options):
    """x ↦ factor · x under a name."""
    return pyrevgrad.custom(
        name, lambda x: factor * x, lambda x: 0 * x + factor, replace=True, **options
    )


def sent(name, factor):
    """A rule that sends factor · g under a name."""
    return pyrevgrad.custom_rule(name, lambda g: factor * g, replace=True)


def both(function, x=X):
    """What a function gives and what a gradient of ones comes back as."""
    at = x.clone().requires_grad_()
    y = function(at)
    (gx,) = torch.autograd.grad(y, at, torch.ones_like(y))
    return [*y.tolist(), *gx.tolist()]


def test_calls_by_name_and_functions_compute_the_new_one():
    old = multiplied("now", 2.0)
    calls = {
        "function": old,
        "name": lambda x: activation(x, "now"),
        "rule": lambda x: activation(x, "now", reverse(-1.0)),
        "new layer": lambda x: nn.Activation("now")(x),
        "pickle": pickle.loads(pickle.dumps(old)),
    }
    for call in calls.values():
        assert both(call) == [-2.0, 4.0, 2.0, 2.0]
    assert multiplied("now", 3.0) is old
    for name, call in calls.items():
        assert both(call) == [-3.0, 6.0, 3.0, 3.0], name
    assert torch.equal(torch.func.vmap(torch.func.grad(old))(X), torch.full((2,), 3.0))


def test_layers_and_graphs_that_were_made_before_keep_what_they_computed():
    multiplied("kept", 2.0)
    layer, x = nn.Activation("kept"), X.clone().requires_grad_()
    y, double = activation(x, "kept"), activation(x, "kept", GUIDED)
    multiplied("kept", 3.0)
    for same in (layer, copy.deepcopy(layer), torch.nn.Sequential(layer).double().float()):
        assert both(same) == [-2.0, 4.0, 2.0, 2.0]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [2.0, 2.0]
    assert torch.autograd.grad(double.sum(), x)[0].tolist() == [0.0, 1.0]
    assert torch.func.grad(lambda t: layer(t).sum())(X).tolist() == [2.0, 2.0]
    layer.rule = EXACT
    assert both(layer) == [-3.0, 6.0, 3.0, 3.0]
    assert pickle.loads(pickle.dumps(layer))(X).tolist() == [-3.0, 6.0]


@pytest.mark.parametrize("make", [multiplied, sent], ids=["custom", "custom_rule"])
def test_compiled_code_is_forgotten_where_something_is_replaced_alone(make, monkeypatch):
    import torch._dynamo

    forgotten, name = [], f"forgotten_{make.__name__}"
    monkeypatch.setattr(torch._dynamo, "reset", lambda: forgotten.append(name))
    make(name, 2.0)
    assert forgotten == []
    make(name, 3.0)
    assert forgotten == [name]


# PyTorch's compiler instantiates a Function, which PyTorch deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_code_is_compiled_anew():
    function = multiplied("compiled_now", 2.0)
    layer = nn.Activation("compiled_now")
    compiled = [
        torch.compile(call, backend="aot_eager", fullgraph=True)
        for call in (function, lambda x: activation(x, "compiled_now"), layer)
    ]
    assert [both(call)[1] for call in compiled] == [4.0, 4.0, 4.0]
    multiplied("compiled_now", 3.0)
    assert [both(call) for call in compiled] == [
        [-3.0, 6.0, 3.0, 3.0],
        [-3.0, 6.0, 3.0, 3.0],
        [-2.0, 4.0, 2.0, 2.0],
    ]


def test_again_and_back_the_last_one_serves():
    function, layers = multiplied("often", 1.0), []
    for factor in (2.0, 3.0, 2.0):
        multiplied("often", factor)
        layers.append(nn.Activation("often"))
        assert both(function) == [-factor, 2 * factor, factor, factor]
    assert [layer(X)[1].item() for layer in layers] == [4.0, 6.0, 4.0]


def test_the_new_one_may_take_other_parameters_and_says_so():
    function = multiplied("other", 2.0)
    pyrevgrad.custom(
        "other",
        lambda x, k: k * x,
        lambda x, k: 0 * x + k,
        parameters={"k": 5.0},
        text=("k·x", "k"),
        replace=True,
    )
    assert both(function) == [-5.0, 10.0, 5.0, 5.0]
    assert both(lambda x: function(x, k=7.0)) == [-7.0, 14.0, 7.0, 7.0]
    assert inspect.signature(function).parameters["k"].default == 5.0
    assert "k·x" in function.__doc__ and EXACT.formula("other") == "gx = k·g"


def test_what_fails_leaves_the_old_one():
    function = multiplied("left", 2.0)
    with pytest.raises(TypeError, match="value of left returned float"):
        pyrevgrad.custom("left", lambda x: 1.0, lambda x: x, replace=True)
    assert both(function) == [-2.0, 4.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="or pass replace=True"):
        pyrevgrad.custom("left", lambda x: 4 * x, lambda x: 0 * x + 4)
    with pytest.raises(ValueError, match="table has 'relu' already"):
        multiplied("relu", 2.0)


def sending(name, factor, **options):
    """g ↦ factor · g under a name."""
    return pyrevgrad.custom_rule(name, lambda g: factor * g, replace=True, **options)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_rule_stands_for_its_name_and_sends_what_the_new_one_says():
    rule = sending("sent_now", 2.0, text="2·g")
    layer = nn.Activation("tanh", rule)
    scaled = rule.scaled(-1.0)
    x = X.clone().requires_grad_()
    before = activation(x, "relu", rule)
    compiled = torch.compile(
        lambda x: activation(x, "gelu", rule), backend="aot_eager", fullgraph=True
    )
    for factor in (2.0, 3.0):
        assert sending("sent_now", factor, text=f"{factor:g}·g") == rule
        assert both(lambda x: activation(x, "relu", rule))[2:] == [factor, factor]
        assert both(lambda x: activation(x, "relu", scaled))[2:] == [-factor, -factor]
        assert both(layer)[2:] == both(compiled)[2:] == [factor, factor]
        assert rule.formula("relu") == f"gx = {factor:g}·g"
    assert torch.autograd.grad(before.sum(), x)[0].tolist() == [3.0, 3.0]


def test_a_rule_that_takes_other_arguments_is_refused():
    def at_least(g, slope, least):
        return g * slope.clamp(min=least)

    rule = pyrevgrad.custom_rule("sent_args", at_least, parameters={"least": 0.1})
    for sent, parameters in ((lambda g: g, {}), (lambda g, slope, most: g, {"most": 1.0})):
        with pytest.raises(ValueError, match="takes g, slope, least, and what replaces it must"):
            pyrevgrad.custom_rule("sent_args", sent, parameters=parameters, replace=True)
    assert both(lambda x: activation(x, "relu", rule))[2:] == pytest.approx([0.1, 1.0])
    with pytest.raises(ValueError, match="or pass replace=True"):
        pyrevgrad.custom_rule("sent_args", at_least, parameters={"least": 0.2})
    pyrevgrad.custom_rule("sent_args", at_least, parameters={"least": 0.2}, replace=True)
    assert rule.custom == ("sent_args", 0.1), "a rule's parameters are its own"
