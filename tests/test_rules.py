"""Rules as values, their text, their errors, and plan() against the design's own words.

It may import the package and the oracle's reading of the design in oracle.py.
"""

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from grids import (
    DTYPES,
)
from oracle import (
    COMPOSED,
    FORMULAS,
    SPECS,
    expected_keeps,
    rule_and_spec,
)

import pyrevgrad
from pyrevgrad import (
    DECONVNET,
    EXACT,
    GUIDED,
    STRAIGHT_THROUGH,
    Plan,
    Rule,
    clipped_straight_through,
    guided,
    plan,
    rectgrad,
    reverse,
    rules,
)

INF = math.inf
RULE_NAMES = (*SPECS, *COMPOSED)


def test_scaled_multiplies_the_scale():
    assert EXACT.scaled(-2.0) == reverse(2.0)
    assert GUIDED.scaled(-0.5).scale == -0.5
    assert GUIDED.scaled(-0.5).scaled(4).scale == -2.0
    assert reverse(0.5).scaled(-2.0) == EXACT
    assert reverse() == reverse(1) == EXACT.scaled(-1)


def test_the_smaller_clip_holds():
    assert DECONVNET.clipped(1.0).clip == 1.0
    assert DECONVNET.clipped(1.0).clipped(3.0) == DECONVNET.clipped(1.0)
    assert DECONVNET.clipped(3.0).clipped(1) == DECONVNET.clipped(1.0)
    assert DECONVNET.clipped(INF) == DECONVNET


def test_scaling_and_clipping_leave_the_rest_alone():
    rule = rectgrad(0.25).scaled(-0.5).clipped(2.0)
    assert rule == Rule(gradient_gate="output", threshold=0.25, scale=-0.5, clip=2.0)
    assert rectgrad(0.25) == Rule(gradient_gate="output", threshold=0.25)


def test_presets_are_what_the_table_of_rules_says():
    assert Rule("exact", None, None) == EXACT
    assert GUIDED == guided() == guided("input") == Rule("identity", "positive", "gradient")
    assert guided("slope") == Rule("exact", None, "gradient")
    assert guided("product") == Rule("exact", None, "product")
    assert Rule("identity", None, "gradient") == DECONVNET
    assert Rule("identity", None, None) == STRAIGHT_THROUGH
    assert clipped_straight_through() == Rule("identity", (-1.0, 1.0), None)
    assert rectgrad() == Rule("exact", None, "output", 0.0)


def test_rules_compare_and_hash_by_value():
    assert reverse(0.25) == reverse(0.25) != reverse(0.5)
    assert hash(reverse(0.25)) == hash(reverse(0.25))
    assert clipped_straight_through(-1, 1) == clipped_straight_through(-1.0, 1.0)
    assert len({GUIDED, guided("input"), DECONVNET, EXACT.scaled(1.0), EXACT}) == 3
    assert EXACT != "EXACT"


def test_every_listed_rule_is_another():
    assert len(set(rules.RULES.values())) == len(rules.RULES)


def test_tensor_scales_compare_by_identity():
    one, other = torch.tensor(0.5), torch.tensor(0.5)
    assert reverse(one) == reverse(one)
    assert hash(reverse(one)) == hash(reverse(one))
    assert reverse(one) != reverse(other)
    assert reverse(one) != reverse(0.5)


def test_rule_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GUIDED.scale = 2.0
    assert GUIDED.scale == 1.0


@pytest.mark.parametrize("name", RULE_NAMES)
def test_rule_survives_copy_and_pickle(name):
    rule, _ = rule_and_spec(name)
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert copy.deepcopy(rule) == rule


AS_WRITTEN = (
    "EXACT",
    "GUIDED",
    "DECONVNET",
    "STRAIGHT_THROUGH",
    "guided('slope')",
    "guided('product')",
    "reverse(0.3)",
    "GUIDED.scaled(-0.5)",
    "DECONVNET.clipped(1.0)",
    "rectgrad(0.1)",
    "clipped_straight_through(-1.0, 1.0)",
    "guided('slope').scaled(-2.0).clipped(0.5)",
    "EXACT.clipped(0.25)",
)


@pytest.mark.parametrize("text", AS_WRITTEN)
def test_repr_is_what_a_user_would_write(text):
    assert repr(eval(text)) == text


@pytest.mark.parametrize(
    "rule",
    (
        *(rule_and_spec(name)[0] for name in RULE_NAMES),
        reverse(1 / 3),
        reverse(-0.123456789),
        EXACT.scaled(1e-7),
        reverse(0.0),
        EXACT.scaled(0.0),
        rectgrad(0.1 + 0.2).scaled(1 / 7).clipped(2 / 3),
        clipped_straight_through(-0.1234567, 12345678.9),
        Rule("exact", "positive", "product", scale=-3.0),
        Rule("identity", (-1.0, 0.5), "output", 0.3, clip=2.0),
    ),
    ids=repr,
)
def test_repr_makes_the_rule_again(rule):
    assert eval(repr(rule)) == rule


def test_a_threshold_of_minus_zero_is_zero():
    for rule, zero in ((Rule(threshold=-0.0), EXACT), (rectgrad(-0.0), rectgrad(0.0))):
        assert rule == zero and hash(rule) == hash(zero) and repr(rule) == repr(zero)
        assert rule.is_exact == zero.is_exact and rule.text == zero.text


def test_repr_of_a_tensor_scale_says_so():
    assert repr(reverse(torch.tensor(0.5))).startswith("reverse(<tensor")
    assert "<tensor" in repr(GUIDED.scaled(-2.0).scaled(torch.tensor(0.5)))


@pytest.mark.parametrize("rule_name", RULE_NAMES)
@pytest.mark.parametrize("name", (None, *FORMULAS))
def test_formula_is_one_readable_line(name, rule_name):
    rule, spec = rule_and_spec(rule_name)
    text = rule.formula(name)
    assert text.startswith("gx = ")
    assert "\n" not in text and "nan" not in text and "None" not in text
    assert text.count("(") == text.count(")")
    if text != "gx = +0":
        product = text.split(", where ")[0]
        assert product.endswith(("g", "g′"))
        assert ("+0 :" in text) or (spec.gate is None and spec.gradient is None)
        assert ("clamp(g, " in text) == (spec.clip < INF)
        assert ("y·g" in text) == (spec.gradient == "y")
    if spec.gradient == "y" and text != "gx = +0":
        assert f"<= {spec.threshold!r}" in text or f"<= {spec.threshold:g}" in text


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    (
        (GUIDED, "relu", "gx = (x <= 0 or g <= 0) ? +0 : g"),
        (GUIDED, "gelu", "gx = (x <= 0 or g <= 0) ? +0 : g"),
        (EXACT, "identity", "gx = g"),
        (EXACT, "sign", "gx = +0"),
        (EXACT, "tanh", "gx = (1 − y²)·g"),
        (STRAIGHT_THROUGH, "sign", "gx = g"),
        (DECONVNET, None, "gx = (g <= 0) ? +0 : g"),
        (guided("product"), None, "gx = (f′(x)·g <= 0) ? +0 : f′(x)·g"),
        (reverse(0.25), "sigmoid", "gx = -0.25·y·(1 − y)·g"),
        (reverse(torch.tensor(1.0)), "tanh", "gx = -λ·(1 − y²)·g"),
        (
            DECONVNET.clipped(0.5), "relu",
            "gx = (g′ <= 0) ? +0 : g′, where g′ = clamp(g, -0.5, 0.5)",
        ),
    ),
)  # fmt: skip
def test_formula_of_a_few_pairs(rule, name, text):
    assert rule.formula(name) == text


@pytest.mark.parametrize("rule_name", RULE_NAMES)
@pytest.mark.parametrize("name", FORMULAS)
def test_plan_is_what_the_design_says(name, rule_name):
    rule, spec = rule_and_spec(rule_name)
    for dtype in DTYPES:
        keeps = expected_keeps(name, spec, dtype)
        size = {"nothing": 0.0, "mask": 0.125}.get(keeps, float(dtype.itemsize))
        assert plan(name, rule, dtype) == Plan(keeps, size)
        assert plan(name, rule.scaled(-3.0), dtype) == Plan(keeps, size)
        assert plan(name, rule.scaled(torch.tensor(2.0)), dtype) == Plan(keeps, size)


@pytest.mark.parametrize(
    ("name", "params", "rule", "keeps"),
    (
        ("elu", {"alpha": -1.0}, EXACT, "input"),
        ("elu", {"alpha": 0.0}, EXACT, "output"),
        ("elu", {"alpha": 0.5}, EXACT, "output"),
        ("leaky_relu", {"negative_slope": -0.5}, EXACT, "mask"),
        ("leaky_relu", {"negative_slope": -0.5}, rectgrad(0.1), "input"),
        ("leaky_relu", {"negative_slope": 0.5}, rectgrad(0.1), "output"),
        ("celu", {"alpha": 0.3}, reverse(0.5), "output"),
    ),
)
def test_plan_depends_on_the_parameters(name, params, rule, keeps):
    assert plan(name, rule, **params).keeps == keeps


def test_plan_takes_float32_and_the_exact_rule_where_none_are_given():
    assert plan("relu") == plan("relu", EXACT, torch.float32) == Plan("mask", 0.125)
    assert plan("gelu") == Plan("input", 4.0)
    assert plan("gelu", dtype=torch.bfloat16) == Plan("input", 2.0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    (
        (lambda: guided("inputs"), ValueError, "unknown form 'inputs' of guided: did you mean"),
        (lambda: Rule(slope="half"), ValueError, "unknown slope 'half': choose from exact"),
        (
            lambda: Rule(gradient_gate="gradients"), ValueError,
            "unknown gradient gate 'gradients': did you mean 'gradient'",
        ),
        (lambda: Rule(input_gate="negative"), ValueError, "unknown input gate 'negative'"),
        (lambda: Rule(input_gate=5), TypeError, "input gate"),
        (lambda: Rule(input_gate=[-1.0, 1.0]), TypeError, "input gate"),
        (lambda: Rule(input_gate=(1, 2, 3)), ValueError, "input gate"),
        (lambda: Rule(tensor=0.5), TypeError, "tensor"),
        (
            lambda: clipped_straight_through(1.0, -1.0), ValueError,
            "low must not be above high, got 1.0 and -1.0",
        ),
        (lambda: clipped_straight_through("a", 1), TypeError, "bound must be a number, not str"),
        (lambda: rectgrad(math.nan), ValueError, "threshold must not be NaN"),
        (lambda: rectgrad(None), TypeError, "threshold must be a number, not NoneType"),
        (lambda: EXACT.clipped(0.0), ValueError, "clip must be > 0, got 0.0"),
        (lambda: EXACT.clipped(-1), ValueError, "clip must be > 0, got -1.0"),
        (lambda: EXACT.clipped("1"), TypeError, "clip must be a number, not str"),
        (lambda: reverse("0.3"), TypeError, "scale must be a number or a 0-dim tensor, not str"),
        (lambda: reverse(True), TypeError, "scale must be a number or a 0-dim tensor, not bool"),
        (lambda: reverse(math.nan), ValueError, "scale must not be NaN"),
        (
            lambda: reverse(torch.ones(1)), ValueError,
            "scale must be a 0-dim tensor, got shape (1,)",
        ),
        (
            lambda: reverse(torch.tensor(1)), TypeError,
            "of float32, float64, bfloat16 or float16, got torch.int64",
        ),
        (
            lambda: reverse(torch.tensor(1.0, requires_grad=True)), ValueError,
            "no gradient flows to scale, so a tensor scale must not require grad; pass .detach()",
        ),
        (
            lambda: reverse(torch.tensor(1.0)).scaled(torch.tensor(2.0)), ValueError,
            "the rule has a tensor scale already; multiply the tensors yourself",
        ),
        (lambda: reverse(10**400), ValueError, "scale"),
    ),
)  # fmt: skip
def test_wrong_rule_is_refused_with_a_sentence(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    (
        (lambda: plan("rellu"), ValueError, "unknown activation 'rellu': did you mean 'relu'"),
        (lambda: plan(1), TypeError, "an activation is named by a string, not int"),
        (lambda: plan("relu", "GUIDED"), TypeError, "rule must be a pyrevgrad.Rule such as GUIDED"),
        (lambda: plan("relu", "guided"), TypeError, "not str; 'guided' is pyrevgrad.GUIDED"),
        (lambda: plan("relu", guided), TypeError, "not function; call guided(...) to make one"),
        (lambda: plan("relu", GUIDED, torch.int32), TypeError, "dtype must be one of torch.float"),
        (lambda: plan("elu", alfa=1.0), TypeError, "elu has no parameter 'alfa': did you mean"),
        (lambda: plan("celu", alpha=0), ValueError, "celu: alpha must be finite and > 0, got 0.0"),
    ),
)
def test_wrong_plan_is_refused_with_a_sentence(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


def test_numpy_numbers_are_numbers():
    assert reverse(np.float64(0.5)) == reverse(np.float32(0.5)) == reverse(0.5)


def test_rules_and_plan_are_public():
    for name in ("Rule", "Plan", "plan", "EXACT", "GUIDED", "DECONVNET", "STRAIGHT_THROUGH"):
        assert getattr(pyrevgrad, name) is getattr(rules, name)
