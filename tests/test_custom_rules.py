"""`pyrevgrad.custom_rule`: a rule of the user's own, on the reference.

The Triton part runs in interpreted.py. It may import the package.
"""

import copy
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import expected
import pytest
import torch

import pyrevgrad
from pyrevgrad import BackendError, Rule, TracingError, custom_rules, rules, ruling


def at_least(g, slope, least):
    return torch.where(slope < least, least, slope) * g


def cubed(g):
    return g * g * g


def toward(g, x, center, width):
    return g * torch.exp(-((x - center) * (x - center)) / width)


def outputs(g, y):
    return g * y


def everything(g, slope, x, y):
    return g * slope + torch.sin(x) * y * g


AT_LEAST = pyrevgrad.custom_rule(
    "at_least_of", at_least, parameters={"least": 0.25}, text="max(slope, least)·g"
)
CUBED = pyrevgrad.custom_rule("cubed", cubed, text="g³")
TOWARD = pyrevgrad.custom_rule("toward", toward, parameters={"center": 0.5, "width": 2.0})
OUTPUTS = pyrevgrad.custom_rule("outputs", outputs)
EVERYTHING = pyrevgrad.custom_rule("everything", everything)
#: Each rule with its formula in g, f'(x), x and y, written apart from the functions above.
WANTED = (
    (AT_LEAST, lambda g, s, x, y: g * s.clamp(min=0.25)),
    (AT_LEAST.given(least=0.5).scaled(-2.0), lambda g, s, x, y: -2 * g * s.clamp(min=0.5)),
    (CUBED, lambda g, s, x, y: g**3),
    (CUBED.clipped(0.5), lambda g, s, x, y: g.clamp(-0.5, 0.5) ** 3),
    (TOWARD, lambda g, s, x, y: g * (-((x - 0.5) ** 2) / 2).exp()),
    (OUTPUTS, lambda g, s, x, y: g * y),
    (EVERYTHING, lambda g, s, x, y: g * (s + x.sin() * y)),
    (replace(CUBED, input_gate="positive"), lambda g, s, x, y: g**3 * (x > 0)),
    (replace(OUTPUTS, gradient_gate="gradient"), lambda g, s, x, y: g * y * (g > 0)),
    (
        replace(AT_LEAST, input_gate=(-1.0, 1.0)),
        lambda g, s, x, y: g * s.clamp(0.25) * (x.abs() <= 1),
    ),
)
NAMES = ("relu", "leaky_relu", "identity", "sign", "tanh", "elu", "gelu", "hardswish", "softshrink")
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
#: The same in every process that runs the tests.
IDS = [f"{number} {rule}" for number, (rule, _) in enumerate(WANTED)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("rule", "wanted"), WANTED, ids=IDS)
def test_any_activation_goes_with_a_custom_rule(rule, wanted, name, dtype):
    x, g = (part.to(dtype) for part in expected.points(name, "EXACT"))
    leaf = x.clone().requires_grad_()
    y = pyrevgrad.activation(leaf, name, rule)
    (gx,) = torch.autograd.grad(y, leaf, g)
    wide = x.double()
    slope = expected.slope(name, wide) if name != "sign" else torch.zeros_like(wide)
    right = wanted(g.double(), slope, wide, y.detach().double())
    torch.testing.assert_close(gx, right.to(dtype))


def test_example_prints_formulas_and_plans(capsys):
    expected.example("custom_rule").main()
    printed = capsys.readouterr().out
    assert "gx = -max(slope, floor)·g, where slope = y·(1 − y), floor = 0.2" in printed
    assert "[0.01, 0.01, 1.0]" in printed
    assert "relu keeps Plan(keeps='mask', bytes_per_element=0.125)" in printed


#: (rule, activation): what a half type keeps, and float32.
KEPT = (
    (CUBED, "gelu", "nothing", "nothing"),
    (CUBED, "sign", "nothing", "nothing"),
    (replace(CUBED, input_gate="positive"), "gelu", "mask", "mask"),
    (AT_LEAST, "relu", "mask", "mask"),
    (AT_LEAST, "tanh", "output", "output"),
    (AT_LEAST, "elu", "input", "output"),
    (AT_LEAST, "gelu", "input", "input"),
    (AT_LEAST, "identity", "nothing", "nothing"),
    (TOWARD, "relu", "input", "input"),
    (OUTPUTS, "tanh", "output", "output"),
    (OUTPUTS, "relu", "output", "output"),
    (OUTPUTS, "softshrink", "input", "input"),
    (EVERYTHING, "tanh", "input", "input"),
)


@pytest.mark.parametrize(("rule", "name", "half", "full"), KEPT, ids=str)
def test_plan_states_what_is_kept_and_a_call_keeps_it(rule, name, half, full):
    for dtype, kept in ((torch.bfloat16, half), (torch.float32, full)):
        found = pyrevgrad.plan(name, rule, dtype)
        size = {"nothing": 0, "mask": 0.125}.get(kept, dtype.itemsize)
        assert (found.keeps, found.bytes_per_element) == (kept, size)
        x = torch.ones(8, dtype=dtype, requires_grad=True)
        saved = []
        note = lambda tensor, saved=saved: saved.append(tensor) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            y = pyrevgrad.activation(x, name, rule)
        assert len(saved) == (kept != "nothing")
        for tensor in saved:
            one = {"mask": None, "output": y, "input": x}[kept]
            assert (
                tensor.dtype == torch.bool if one is None else tensor.data_ptr() == one.data_ptr()
            )


def test_a_zero_that_is_sent_is_plus_zero():
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    y = pyrevgrad.gelu(x, CUBED.scaled(-1.0))
    (gx,) = torch.autograd.grad(y, x, torch.tensor([0.0, -0.0]))
    assert not gx.signbit().any() and (gx == 0).all()


@pytest.mark.parametrize("name", ("relu", "tanh", "gelu", "identity"))
@pytest.mark.parametrize(("rule", "_"), WANTED, ids=IDS)
def test_second_derivatives_differentiate_what_is_sent(rule, _, name):
    x = torch.tensor([-2.1, -0.4, 0.3, 1.6], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([0.3, -0.8, 0.6, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda t: pyrevgrad.activation(t, name, rule), (x,), (g,))


def test_the_scale_is_live_and_in_place_works():
    scale = torch.tensor(1.0)
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    y = pyrevgrad.activation(x * 1, "tanh", AT_LEAST.scaled(scale), inplace=True)
    scale.fill_(-3.0)
    (gx,) = torch.autograd.grad(y.sum(), x)
    wanted = -3 * (1 - torch.tanh(x.detach()) ** 2).clamp(min=0.25)
    torch.testing.assert_close(gx, wanted)


def test_transforms_work_and_forward_mode_is_refused():
    x = torch.linspace(-2, 2, 12).reshape(3, 4)
    single = torch.func.grad(lambda t: (pyrevgrad.silu(t, EVERYTHING) ** 2).sum())
    torch.testing.assert_close(torch.func.vmap(single)(x), torch.stack([single(t) for t in x]))
    with pytest.raises(TracingError, match="is not linear in the gradient, so it has no jvp"):
        torch.func.jvp(lambda t: pyrevgrad.silu(t, CUBED), (x,), (x,))


@pytest.mark.filterwarnings("ignore")
def test_compiled_code_gives_what_eager_gives():
    def step(x, scale):
        y = pyrevgrad.gelu(x, AT_LEAST.given(least=0.3).scaled(scale)) * 2
        return pyrevgrad.relu(y, CUBED) + pyrevgrad.tanh(y, OUTPUTS)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    x, scale = torch.randn(33, requires_grad=True), torch.tensor(-0.5)
    wanted = torch.autograd.grad(step(x, scale).sum(), x)
    torch.testing.assert_close(torch.autograd.grad(compiled(x, scale).sum(), x), wanted)


def test_exporters_are_refused_while_a_gradient_can_be_needed():
    class Model(torch.nn.Module):
        def forward(self, x):
            return pyrevgrad.relu(x, CUBED)

    with pytest.raises(TracingError, match="would replace the backward"):
        torch.export.export(Model(), (torch.ones(2, requires_grad=True),))


def test_swap_and_layers_take_it():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Hardtanh())
    x = torch.randn(5, 3, requires_grad=True)
    with pyrevgrad.swap(model, AT_LEAST):
        (found,) = torch.autograd.grad(model(x).sum(), x)
    hidden = model[0](x.detach())
    inner = hidden.clamp(min=0)
    passed = torch.where((inner > -1) & (inner < 1), 1.0, 0.25)
    passed = passed * torch.where(hidden > 0, 1.0, 0.25)
    torch.testing.assert_close(found, passed @ model[0].weight)
    layer = pyrevgrad.nn.Activation("relu", rule=AT_LEAST.scaled(torch.tensor(0.5)))
    y = copy.deepcopy(layer)(x)
    wanted = torch.where(x > 0, 0.5, 0.125).detach()
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], wanted)
    assert pickle.loads(pickle.dumps(layer)).rule.custom == AT_LEAST.custom


def test_it_is_a_rule_like_any_other():
    live = AT_LEAST.scaled(-0.5).clipped(2.0)
    assert repr(live) == "at_least_of.given(least=0.25).scaled(-0.5).clipped(2.0)"
    assert repr(CUBED.scaled(2.0)) == "cubed.scaled(2.0)"
    names = {"Rule": Rule, "at_least_of": AT_LEAST, "toward": TOWARD, "cubed": CUBED}
    gated = replace(OUTPUTS, input_gate="positive", gradient_gate="gradient")
    flat = replace(AT_LEAST, slope="identity")
    for rule in (live, gated, TOWARD.given(width=1 / 3), flat, CUBED.scaled(2.0)):
        assert eval(repr(rule), names) == rule
        assert Rule.from_text(rule.text) == rule
        assert copy.deepcopy(rule) == rule == pickle.loads(pickle.dumps(rule))
        assert hash(copy.copy(rule)) == hash(rule)
    assert AT_LEAST.given(least=0.5) != AT_LEAST and not AT_LEAST.is_exact
    assert live.formula("tanh") == (
        "gx = -0.5·max(slope, least)·g′, where slope = 1 − y², least = 0.25, "
        "g′ = clamp(g, -2.0, 2.0)"
    )
    assert AT_LEAST.formula() == "gx = max(slope, least)·g, where slope = f′(x), least = 0.25"
    assert CUBED.formula("sign") == "gx = g³"
    assert TOWARD.scaled(3.0).formula("relu") == (
        "gx = 3.0·toward(g, x, center, width), where center = 0.5, width = 2.0"
    )


def test_the_same_function_is_made_once():
    assert pyrevgrad.custom_rule("cubed", cubed, text="g³") is CUBED
    made = [pyrevgrad.custom_rule("halved", lambda g: g / 2) for _ in range(3)]
    assert made[0] is made[1] is made[2]
    with pytest.raises(ValueError, match="the rule 'cubed' was made before of something else"):
        pyrevgrad.custom_rule("cubed", lambda g: g, text="g³")


def test_a_pickle_that_comes_before_its_rule_gets_a_sentence(monkeypatch):
    pickled = [pickle.dumps(one) for one in (CUBED, pyrevgrad.nn.Activation("relu", rule=CUBED))]
    monkeypatch.delitem(custom_rules.CUSTOM_RULES, "cubed")
    for one in pickled:
        with pytest.raises(
            ValueError, match=r"unknown custom rule 'cubed'.*before a rule that was"
        ):
            pickle.loads(one)


def test_a_rule_from_another_process_is_found_in_a_set():
    made = "import sys, pickle, pyrevgrad; sys.stdout.buffer.write(pickle.dumps(pyrevgrad.GUIDED))"
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    done = subprocess.run([sys.executable, "-c", made], capture_output=True, env=environment)
    assert pickle.loads(done.stdout) in {rules.GUIDED}


def test_native_is_refused_by_the_name_of_the_rule():
    x = torch.ones(2)
    with pyrevgrad.backend("reference"):
        assert pyrevgrad.relu(x, CUBED).tolist() == [1.0, 1.0]
    try:
        block = pyrevgrad.backend("native")
        with block, pytest.raises(BackendError, match="does not serve the rule cubed on cpu"):
            pyrevgrad.relu(x, CUBED)
    except BackendError as error:
        assert "is not there" in str(error)


LEARNT = torch.nn.Parameter(torch.tensor(2.0))
#: What is given instead of, or beside, ("bad", cubed), and what is said of it.
BAD = (
    (TypeError, "name must be a string, not int", {"name": 3}),
    (ValueError, "'my rule' is no Python name", {"name": "my rule"}),
    (ValueError, "'class' is no Python name", {"name": "class"}),
    (ValueError, "bad changes its arguments in place", {"sent": lambda g: g.mul_(2.0)}),
    (ValueError, "bad changes its arguments in place", {"sent": lambda g, x: x.mul_(g) * 1}),
    (ValueError, "pyrevgrad has a rule 'GUIDED' already", {"name": "GUIDED"}),
    (ValueError, "pyrevgrad has a rule 'rectgrad' already", {"name": "rectgrad"}),
    (ValueError, "pyrevgrad has a rule 'reverse' already", {"name": "reverse"}),
    (ValueError, "bad reads a tensor that requires grad", {"sent": lambda g: g * LEARNT}),
    (ValueError, "a parameter called 'self'", {"parameters": {"self": 1.0}}),
    (ValueError, "'lambda' is no Python name", {"parameters": {"lambda": 1.0}}),
    (TypeError, "bad must be a function of tensors", {"sent": 2.0}),
    (TypeError, "must take g, then any of slope, x and y in this order", {"sent": lambda x, g: g}),
    (TypeError, r"its parameters \(none\); it takes g, k", {"sent": lambda g, k: g}),
    (TypeError, "returned float, not a Tensor", {"sent": lambda g: 1.0}),
    (TypeError, r"keep shape and dtype, and made torch.float32 \(\)", {"sent": lambda g: g.sum()}),
    (TypeError, "must keep shape and dtype, and made torch.bool", {"sent": lambda g: g > 0}),
    (TypeError, r"made torch.float32 \(1, 3, 2\) of", {"sent": lambda g: g.mean(0, keepdim=True)}),
    (TypeError, "bad must keep shape", {"sent": lambda g, x: x if g.dim() == 2 else g.sum()}),
    (ValueError, "at most two parameters, got 3", {"parameters": {"a": 1, "b": 2, "c": 3}}),
    (ValueError, "a parameter called 'slope'", {"parameters": {"slope": 1.0}}),
    (TypeError, "a must be a number, not str", {"parameters": {"a": "1"}, "sent": lambda g, a: g}),
    (TypeError, "text of bad must be a string, not int", {"text": 3}),
    (TypeError, "the rule bad must be a @triton.jit function", {"triton": cubed}),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "message", "given"), BAD, ids=lambda it: str(it)[:20])
def test_wrong_arguments_get_a_sentence_and_leave_nothing(kind, message, given):
    with pytest.raises(kind, match=message):
        pyrevgrad.custom_rule(**{"name": "bad", "sent": cubed, **given})
    assert "bad" not in custom_rules.CUSTOM_RULES and "bad" not in ruling._MADE


#: (what is sent, what is said): of -2.7183, -2.2307, … it must be what it is of each number alone.
COUPLED = (
    (lambda g: g / (g.norm() + 1e-9), r"of -2.7183 among other numbers it made -0\..*, and -1 of "),
    (lambda g: torch.rand_like(g) * g, "the second time"),
    (lambda g, x: g * (x - x.mean()), r"of -2.7183, 2.6458 among .* of those numbers alone"),
    (lambda g, slope, y: g * slope * y.softmax(-1), "of those numbers alone"),
)


@pytest.mark.parametrize(("sent", "message"), COUPLED, ids=("norm", "random", "mean", "softmax"))
def test_a_rule_that_is_not_elementwise_or_random_is_refused(sent, message):
    wanted = f"the rule bad must be elementwise and the same each time: .*{message}"
    with pytest.raises(ValueError, match=wanted):
        pyrevgrad.custom_rule("bad", sent)
    assert "bad" not in custom_rules.CUSTOM_RULES and "bad" not in ruling._MADE


@pytest.mark.parametrize("name", ("replace", "field", "find", "plan"))
def test_only_the_names_of_rules_are_taken(name):
    assert pyrevgrad.custom_rule(name, cubed).custom == (name,)


def test_wrong_rules_get_a_sentence():
    with pytest.raises(ValueError, match="unknown custom rule 'cube': did you mean 'cubed'"):
        Rule(custom=("cube",))
    with pytest.raises(ValueError, match="the rule toward takes 2 parameters, got 1"):
        Rule(custom=("toward", 1.0))
    with pytest.raises(TypeError, match="toward: center must be a number, not str"):
        Rule(custom=("toward", "1", 1.0))
    with pytest.raises(TypeError, match="custom must be a tuple of a name and its parameters"):
        Rule(custom="cubed")
    with pytest.raises(TypeError, match="the rule toward has no parameter 'wid': did you mean 'wi"):
        TOWARD.given(wid=1.0)
    with pytest.raises(TypeError, match="this rule has none"):
        rules.GUIDED.given(least=1.0)
