"""What counts as the same thing given twice, to `pyrevgrad.custom` and `pyrevgrad.custom_rule`.

Triton's functions stand in interpreted.py's processes; here a class that looks like theirs does.
"""

import functools
import math

import pytest
import torch

import pyrevgrad
from pyrevgrad.given import constants_of, same


def ran(source, file="<cell>", **names):
    """What `source` defines, run as a notebook's cell or a file of its own."""
    names = {"torch": torch, **names}
    exec(compile(source, file, "exec"), names)
    return names


def function(source, file="<cell>", **names):
    return ran(source, file, **names)["f"]


#: Two functions that differ in nothing but where they stand or what they are called.
ALIKE = (
    ("a line lower", "def f(x): return 2 * x", "\n\ndef f(x): return 2 * x"),
    ("a lambda", "f = lambda x: 2 * x", "\n\nf = lambda x: 2 * x"),
    (
        "one inside",
        "def f(x):\n    return (lambda t: 2 * t)(x)",
        "\ndef f(x):\n    return (lambda t: 2 * t)(x)",
    ),
    ("a tensor default", "def f(x, k=torch.ones(3)): return k * x", None),
    ("a NaN default", "def f(x, k=float('nan')): return k * x", None),
    ("a helper", "def h(x): return 2 * x\ndef f(x): return h(x)", None),
    ("recursion", "def f(x, n=1): return x if not n else f(x, n - 1)", None),
    ("a table", "K = {'k': [2.0, (3.0,)]}\ndef f(x): return K['k'][0] * x", None),
)


@pytest.mark.parametrize(("_", "one", "other"), ALIKE, ids=[row[0] for row in ALIKE])
def test_what_does_the_same_is_the_same_wherever_it_stands(_, one, other):
    assert same(function(one, "<cell 1>"), function(other or one, "<cell 2>"))


#: Two functions of one text or nearly that compute different things.
UNLIKE = (
    ("another number", "def f(x): return 2 * x", "def f(x): return 3 * x"),
    ("another operation", "def f(x): return 2 * x", "def f(x): return 2 + x"),
    ("another method", "def f(x): return x.sin()", "def f(x): return x.cos()"),
    ("a default", "def f(x, k=2): return k * x", "def f(x, k=3): return k * x"),
    ("a keyword default", "def f(x, *, k=2): return k * x", "def f(x, *, k=3): return k * x"),
    ("a global", "K = 2\ndef f(x): return K * x", "K = 3\ndef f(x): return K * x"),
    ("its type", "K = 1\ndef f(x): return K * x", "K = True\ndef f(x): return K * x"),
    ("its sign", "K = 0.0\ndef f(x): return K * x", "K = -0.0\ndef f(x): return K * x"),
    ("a constant's sign", "def f(x): return 0.0 * x", "def f(x): return -0.0 * x"),
    (
        "a global inside",
        "K = 2\ndef f(x): return (lambda t: K * t)(x)",
        "K = 3\ndef f(x): return (lambda t: K * t)(x)",
    ),
    (
        "a helper",
        "def h(x): return 2 * x\ndef f(x): return h(x)",
        "def h(x): return 3 * x\ndef f(x): return h(x)",
    ),
    (
        "a tensor default",
        "def f(x, k=torch.ones(3)): return k * x",
        "def f(x, k=torch.zeros(3)): return k * x",
    ),
    (
        "a tensor's dtype",
        "K = torch.ones(3)\ndef f(x): return K * x",
        "K = torch.ones(3).double()\ndef f(x): return K * x",
    ),
    ("an object", "K = object()\ndef f(x): return K", "K = object()\ndef f(x): return K"),
)


@pytest.mark.parametrize(("_", "one", "other"), UNLIKE, ids=[row[0] for row in UNLIKE])
def test_what_does_something_else_is_not_the_same(_, one, other):
    assert not same(function(one), function(other))


def holding(content):
    return lambda x: content * x


def test_closures_are_the_same_where_they_hold_the_same():
    assert same(holding(2.0), holding(2.0)) and same(holding([1, "a"]), holding([1, "a"]))
    assert same(holding(torch.ones(2)), holding(torch.ones(2)))
    for one, other in ((1, True), (1, 1.0), (2.0, 3.0), (0.0, -0.0), ([1], [1, 2])):
        assert not same(holding(one), holding(other))


class Curve:
    def __init__(self, factor):
        self.factor = factor

    def value(self, x):
        return self.factor * x


def test_bound_methods_and_partials_are_compared_by_their_parts():
    curve = Curve(2.0)
    assert same(curve.value, curve.value) and not same(curve.value, Curve(2.0).value)
    multiplied = functools.partial(math.pow, 2.0)
    assert same(multiplied, functools.partial(math.pow, 2.0))
    assert not same(multiplied, functools.partial(math.pow, 3.0))
    assert not same(multiplied, functools.partial(math.fmod, 2.0))
    made = [
        pyrevgrad.custom(
            "twice_by_parts", curve.value, functools.partial(torch.full_like, fill_value=2.0)
        )
        for _ in range(2)
    ]
    assert made[0] is made[1]


class Power(torch.nn.Module):
    def __init__(self, power):
        super().__init__()
        self.power = power
        self.register_buffer("factor", torch.tensor(2.0))

    def forward(self, x):
        return self.factor * x**self.power


def test_layers_are_the_same_where_class_and_contents_are():
    nn = torch.nn
    makers = (
        nn.Softplus,
        lambda: nn.Softplus(beta=2.0),
        lambda: nn.Hardtanh(-2.0, 2.0),
        lambda: nn.Sequential(nn.Tanh(), nn.LeakyReLU(0.1)),
        lambda: nn.Sequential(nn.Tanh(), nn.LeakyReLU(0.2)),
        lambda: Power(2),
        lambda: Power(3),
    )
    for i, make in enumerate(makers):
        assert [same(make(), other()) for other in makers] == [i == j for j in range(len(makers))]
    changed = Power(2)
    changed.factor.fill_(3.0)
    assert not same(changed, Power(2))
    hooked = nn.Softplus()
    hooked.register_forward_hook(lambda module, args, y: 2 * y)
    assert not same(hooked, nn.Softplus())


def test_a_cell_of_layers_that_runs_again_gives_the_function_that_is_there():
    made = [
        pyrevgrad.custom("softplus_of_layers", torch.nn.Softplus(), torch.nn.Sigmoid())
        for _ in range(2)
    ]
    assert made[0] is made[1]
    with pytest.raises(ValueError, match="choose another name, or pass replace=True"):
        pyrevgrad.custom("softplus_of_layers", torch.nn.Softplus(2.0), torch.nn.Sigmoid())
    steeper = pyrevgrad.custom(
        "softplus_of_layers", torch.nn.Softplus(2.0), torch.nn.Sigmoid(), replace=True
    )
    assert steeper(torch.zeros(())).item() == pytest.approx(math.log(2) / 2)


class LikeTritons:
    """What is asked of a ``@triton.jit`` function: its arguments, and Python's function inside."""

    def __init__(self, fn):
        self.fn, self.arg_names = fn, ["x"]


def test_tritons_functions_are_compared_by_the_functions_inside():
    one, lower, other = (
        LikeTritons(function(text))
        for text in ("def f(x): return 2 * x", "\ndef f(x): return 2 * x", "def f(x): return x")
    )
    assert same(one, lower) and not same(one, other)


def test_globals_that_tritons_functions_compile_in_are_those_of_the_first_time():
    names = ran("K = 2\ndef h(x): return K * x\ndef f(x): return h(x)")
    names["h"] = LikeTritons(names["h"])
    before = constants_of(LikeTritons(names["f"]))
    assert same(before, constants_of(LikeTritons(names["f"])))
    names["K"] = 3
    assert not same(before, constants_of(LikeTritons(names["f"])))


CELL = """
K = {factor}
def value(x, *, more={more}): return K * x + more
def slope(x): return 0 * x + K
"""


def test_a_cell_that_runs_again_gives_the_function_that_is_there():
    made = []
    for lines, file in ((0, "<cell 1>"), (4, "<cell 1>"), (0, "<cell 7>")):
        names = ran("\n" * lines + CELL.format(factor=2.0, more=0), file)
        made.append(pyrevgrad.custom("cell_of", names["value"], names["slope"]))
    assert made[0] is made[1] is made[2]


@pytest.mark.parametrize("edited", ({"factor": 3.0}, {"more": 1}), ids=str)
def test_a_cell_that_was_edited_is_never_answered_by_the_old_function(edited):
    name = f"edited_{'_'.join(edited)}"
    for given in ({"factor": 2.0, "more": 0}, {"factor": 2.0, "more": 0, **edited}):
        names = ran(CELL.format(**given))
        if given["factor"] == 2.0 and given["more"] == 0:
            pyrevgrad.custom(name, names["value"], names["slope"])
        else:
            with pytest.raises(ValueError, match=f"'{name}' was made before of something else"):
                pyrevgrad.custom(name, names["value"], names["slope"])


def test_rules_are_compared_likewise():
    text = "def sent(g, *, k={}): return k * g"
    one, lower = (ran(lines + text.format(2))["sent"] for lines in ("", "\n\n"))
    assert pyrevgrad.custom_rule("k_times", one) == pyrevgrad.custom_rule("k_times", lower)
    with pytest.raises(ValueError, match="the rule 'k_times' was made before of something else"):
        pyrevgrad.custom_rule("k_times", ran(text.format(3))["sent"])
