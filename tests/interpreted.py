"""Triton's kernels under its interpreter, held against the float64 oracle: a part of the matrix.

test_triton.py runs this file with TRITON_INTERPRET=1, which must be set before triton is imported;
`make triton-matrix` runs the whole matrix too. It may import the package and the grids.
"""

import itertools

import numpy
import pytest
import torch
from custom_triton import CUSTOM_RULES, MULTIPLIED, SENT
from expected import example, ruled
from grids import (
    DTYPES,
    INTERPRETED,
    array,
    assert_gradient,
    assert_value,
    cut,
    grid,
    one_thread,  # noqa: F401
    places,
    reproducible,
    run,
    same_bits,
)
from oracle import (
    COMPOSED,
    FORMULAS,
    SELECTS,
    SPECS,
    expected_gradient,
    numbers_of,
    rule_and_spec,
)
from test_kernels import PARAMETERS, RULE_NAMES, check
from test_layouts import LAYOUTS, PAIRS, SHAPE, SHARED, assert_layout, numbers

import pyrevgrad
from pyrevgrad import BackendError, backend, backends, reverse, rules
from pyrevgrad.activations import ACTIVATIONS
from pyrevgrad.configuration import configuration

if not INTERPRETED:
    pytest.skip("runs with TRITON_INTERPRET=1", allow_module_level=True)

from pyrevgrad.kernels import inspection, sweep
from pyrevgrad.kernels.backend import TRITON, backward_arguments, forward_arguments
from pyrevgrad.kernels.formulas import FORMULAS as TRITON_FORMULAS

HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def on_triton():
    with backend("triton"):
        yield


def test_every_activation_has_triton_functions():
    assert set(ACTIVATIONS) <= set(TRITON_FORMULAS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("place", "name"), list(enumerate(FORMULAS)))
def test_every_activation_in_every_dtype_agrees_with_the_oracle(place, name, dtype):
    rule_name = RULE_NAMES[(place * len(DTYPES) + DTYPES.index(dtype)) % len(RULE_NAMES)]
    check(*grid(dtype, name in SELECTS), name, *rule_and_spec(rule_name))


@pytest.mark.parametrize("rule_name", (*SPECS, *COMPOSED))
def test_every_rule_agrees_with_the_oracle(rule_name):
    name = ("silu", "leaky_relu", "sigmoid")[RULE_NAMES.index(rule_name) % 3]
    check(*grid(torch.float32), name, *rule_and_spec(rule_name))


@pytest.fixture
def approximations_of_a_gpu(monkeypatch):
    """exp2 and division as far off as PTX allows: 2^-22, and 2 units in the last place."""
    from triton.runtime.interpreter import InterpreterBuilder

    random = numpy.random.default_rng(5)

    def off(name, error):
        exact = getattr(InterpreterBuilder, name)

        def approximate(self, *arguments):
            made = exact(self, *arguments)
            if made.data.dtype == numpy.float32:
                errors = 1 + random.choice((-error, error), made.data.shape)
                made.data = (made.data * errors).astype(numpy.float32)
            return made

        monkeypatch.setattr(InterpreterBuilder, name, approximate)

    off("create_exp2", 2.0**-22)
    off("create_fdiv", 2.0**-22)


@pytest.mark.usefixtures("approximations_of_a_gpu")
@pytest.mark.parametrize("name", [name for name in FORMULAS if name not in SELECTS])
def test_approximations_of_a_gpu_stay_within_the_tolerance(name):
    check(*grid(torch.float32), name, *rule_and_spec("EXACT"))


@pytest.mark.parametrize(("name", "params"), PARAMETERS)
def test_parameters_other_than_the_defaults_agree_with_the_oracle(name, params):
    check(*grid(torch.float32), name, *rule_and_spec("rectgrad"), params)


def test_float64_keeps_the_digits_of_every_number():
    x, g = grid(torch.float64)
    check(x, g, "leaky_relu", rules.EXACT, rule_and_spec("EXACT")[1], {"negative_slope": 1 / 3})
    gx = run(x, g, "identity", reverse(1 / 3))[1]
    assert torch.equal(gx[g.isfinite()], (-1 / 3) * g[g.isfinite()])


def before_the_store(name, rule_name):
    """x, g, y and gx in bfloat16's kernels, y and gx as the float32 that a store would round."""
    rule, _ = rule_and_spec(rule_name)
    x, g = grid(HALF)
    pair = backends.Pairs(name, rule, {}).half
    y, gx = torch.empty(2, len(x), dtype=torch.float32)
    _, kept = TRITON.value_and_mask(x, pair) if pair.keeps == "mask" else (None, None)
    blocks = (-(-len(x) // sweep.BLOCK),)
    with numpy.errstate(all="ignore"):
        sweep.forward[blocks](x, y, None, len(x), **forward_arguments(pair, False, 2))
        if kept is None and pair.keeps != "nothing":
            kept = x if pair.keeps == "input" else y.to(HALF)
        sweep.backward[blocks](g, kept, gx, None, len(x), **backward_arguments(pair, 2))
    return x, g, y, gx


@pytest.mark.parametrize("name", [n for n in FORMULAS if n not in ("sign", "round", "heaviside")])
def test_bfloat16_is_right_in_float32_before_the_store(name):
    for rule_name in ("EXACT", "rectgrad"):
        x, g, y, gx = before_the_store(name, rule_name)
        assert_value(y, x, name)
        columns = {"x": array(x), "g": array(g), "y": array(y.to(HALF))}
        wanted = expected_gradient(name, rule_and_spec(rule_name)[1], HALF, *columns.values())
        assert numbers_of(name, {}, HALF) == numbers_of(name, {}, torch.float32)
        assert_gradient(gx, wanted, f"{name} under {rule_name}", **columns)
        assert same_bits(TRITON.value(x, backends.Pairs(name, rules.EXACT, {}).half), y.to(HALF))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SELECTS)
def test_selecting_pairs_are_bit_equal_to_the_reference(name, dtype):
    x, g = grid(dtype, True)
    rule_name = RULE_NAMES[SELECTS.index(name)]
    rule, spec = rule_and_spec(rule_name)
    y, gx = run(x, g, name, rule)
    with backend("reference"):
        expected_y, expected_gx = run(x, g, name, rule)
    assert same_bits(y, expected_y)
    assert not reproducible(name, spec) or same_bits(gx, expected_gx)


@pytest.mark.parametrize("count", (0, 1, 7, 8, 9, 15, 1017, 1023, 1024, 1025, 1032, 2047, 2503))
def test_element_depends_neither_on_count_nor_on_place(count):
    for dtype, name, rule in zip(
        DTYPES,
        ("relu", "hardtanh", "leaky_relu", "relu"),
        (rules.GUIDED, rules.EXACT, rules.guided("slope"), rules.rectgrad(0.1)),
        strict=True,
    ):
        y, gx = (part[places((count,), 0)] for part in reference_of(dtype, name, rule))
        got_y, got_gx = run(*cut(dtype, (count,)), name, rule)
        assert same_bits(got_y, y)
        assert same_bits(got_gx, gx)


def reference_of(dtype, name, rule):
    with backend("reference"):
        return run(*grid(dtype), name, rule)


@pytest.mark.parametrize(("place", "layout"), list(enumerate(LAYOUTS)))
def test_any_layout_of_the_input_and_the_gradient(place, layout):
    of_gradient = itertools.cycle((*LAYOUTS.values(), *SHARED.values()))
    for step, (name, rule) in enumerate(PAIRS[place % 3 :: 3]):
        dtype = DTYPES[(place + step) % len(DTYPES)]
        x = LAYOUTS[layout](numbers(SHAPE, dtype))
        g = next(itertools.islice(of_gradient, place, None))(numbers(SHAPE, dtype, of=1))
        assert_layout(x, g, name, rule, "triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place_never_writes_outside_its_tensor(dtype):
    for count, offset in itertools.product((1, 9, 200), (0, 1, 3, 40)):
        x = numbers((count,), dtype)
        buffer = torch.full((count + 82,), 42.0, dtype=dtype)
        view = buffer[offset : offset + count]
        view.copy_(x)
        assert pyrevgrad.relu(view, rules.GUIDED, inplace=True) is view
        assert same_bits(view, torch.where(x < 0, 0, x))
        assert (buffer[:offset] == 42).all() and (buffer[offset + count :] == 42).all()


@pytest.mark.parametrize("rule", (rules.EXACT, rules.GUIDED), ids=str)
def test_in_place_writes_into_a_view_with_gaps(rule):
    for recorded in (False, True):
        base = torch.arange(-6.0, 6.0).reshape(2, 6).requires_grad_(recorded).clone()
        view = base[:, ::2]
        assert pyrevgrad.relu(view, rule, inplace=True) is view
        assert base.tolist() == [[0, -5, 0, -3, 0, -1], [0, 1, 2, 3, 4, 5]]


def test_nothing_is_compiled_to_look_at():
    pair = backends.Pairs("relu", rules.GUIDED, {}).full
    with pytest.raises(RuntimeError, match="under TRITON_INTERPRET nothing is compiled"):
        inspection.compiled_forward(pair, torch.float32)


@pytest.mark.parametrize("count", (8, 9, 200, sweep.BLOCK + 16))
def test_a_mask_is_not_written_past_its_last_byte(count):
    x = numbers((count,), torch.float32)
    mask = torch.full((-(-count // 8) + 2,), 42, dtype=torch.uint8)
    pair = backends.Pairs("relu", rules.GUIDED, {}).full
    blocks = (-(-count // sweep.BLOCK),)
    sweep.forward[blocks](x, torch.empty_like(x), mask, count, **forward_arguments(pair, True, 4))
    assert mask[-2:].tolist() == [42, 42]
    bits = numpy.unpackbits(mask[:-2].numpy(), bitorder="little")[:count]
    # A NaN passes the gate.
    assert numpy.array_equal(bits, ~(x <= 0).numpy())


def test_a_mask_is_read_in_order_however_a_hook_brings_it_back():
    x = torch.randn(1029, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: torch.stack([t, torch.zeros_like(t)], 1), lambda t: t[:, 0]
    ):
        y = pyrevgrad.relu(x, rules.GUIDED)
    assert torch.equal(torch.autograd.grad(y, x, x.abs())[0], x.detach().clamp(min=0))


@pytest.mark.parametrize("scale_dtype", DTYPES, ids=str)
def test_tensor_scale_is_read_when_backward_runs(scale_dtype):
    scale = torch.tensor(5.0, dtype=scale_dtype)
    for dtype in (torch.float64, HALF) if scale_dtype == torch.float64 else (torch.float32,):
        x, g = grid(dtype)
        leaf = x.clone().requires_grad_()
        y = pyrevgrad.relu(leaf, rules.GUIDED.scaled(scale).scaled(-2.0))
        scale.fill_(0.3)
        (gx,) = torch.autograd.grad(y, leaf, g)
        assert same_bits(gx, run(x, g, "relu", rules.GUIDED.scaled(-2.0 * scale.item()))[1])


def test_double_backward_and_layers_run_on_triton():
    x = torch.tensor([-1.0, 2.0], dtype=torch.float64, requires_grad=True)
    for name in ("relu", "tanh", "silu"):
        assert torch.autograd.gradcheck(lambda t, n=name: pyrevgrad.activation(t, n), x)
        assert torch.autograd.gradgradcheck(lambda t, n=name: pyrevgrad.activation(t, n), x)
    layer = pyrevgrad.nn.GradientReversal(0.5)
    layer(x).sum().backward()
    assert x.grad.tolist() == [-0.5, -0.5]


def test_conjugate_views_with_a_lazy_minus_are_read_with_it():
    x = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert x.is_neg()
    assert pyrevgrad.relu(x).tolist() == [0.0, 4.0]


def test_an_input_with_a_lazy_minus_that_is_kept_is_read_with_it():
    # One element, which is dense at any stride: what is not is copied, and the minus with it.
    z = torch.tensor([1 + 2j], requires_grad=True)
    x = z.conj().imag
    assert x.is_neg()
    found = [
        torch.autograd.grad(silu(x).sum(), x)[0]
        for silu in (pyrevgrad.silu, torch.nn.functional.silu)
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("fullgraph", (False, True))
def test_compiled_code_is_refused(fullgraph):
    # PyTorch's compiler may wrap what is raised while it traces.
    with pytest.raises(RuntimeError, match=r"does not serve torch\.compile"):
        torch.compile(pyrevgrad.relu, fullgraph=fullgraph, backend="eager")(torch.ones(3))


def test_batched_gradients_are_the_references_unless_triton_is_forced():
    x = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    g = torch.tensor([[1.0, 2.0, -3.0], [4.0, -5.0, 6.0]])
    for name, rule in (
        ("relu", rules.GUIDED),
        ("tanh", rules.EXACT),
        ("silu", rules.rectgrad(0.1)),
    ):
        y = pyrevgrad.activation(x, name, rule)
        options = {"is_grads_batched": True, "retain_graph": True}
        with pytest.raises(BackendError, match="does not serve batched gradients"):
            torch.autograd.grad(y, x, g, **options)
        single = [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in g]
        backends._forced = None
        try:
            (batched,) = torch.autograd.grad(y, x, g, **options)
        finally:
            backends._forced = "triton"
        torch.testing.assert_close(batched, torch.stack(single))


@pytest.mark.parametrize("rule_name", rules.RULES)
def test_a_custom_activation_runs_by_its_triton_functions(rule_name):
    squareplus = example("custom_activation").squareplus
    x = torch.tensor([-2.0, -0.7, 0.4, 1.7]).repeat_interleave(3)
    g = torch.tensor([-1.5, 0.0, 0.7]).repeat(4)
    for dtype in DTYPES:
        leaf = x.to(dtype).requires_grad_()
        y = squareplus(leaf, rules.RULES[rule_name], b=2.5)
        (gx,) = torch.autograd.grad(y, leaf, g.to(dtype))
        wide, root = leaf.detach().double(), (leaf.detach().double() ** 2 + 2.5).sqrt()
        torch.testing.assert_close(y, ((wide + root) / 2).to(dtype))
        slope = (1 + wide / root) / 2
        wanted = ruled(rule_name, wide, g.to(dtype).double(), y.double(), slope)
        torch.testing.assert_close(gx, wanted.to(dtype))


#: Every activation under two rules of custom_triton.py, rules and dtypes in turn.
CUSTOM_PAIRS = [
    (name, tuple(CUSTOM_RULES)[(place + step) % 4], DTYPES[(place // 2 + step) % 4])
    for place, name in enumerate(FORMULAS)
    for step in (0, 1)
]


@pytest.mark.parametrize(("name", "rule_name", "dtype"), CUSTOM_PAIRS, ids=str)
def test_a_custom_rule_runs_by_its_triton_function(name, rule_name, dtype):
    """Against its PyTorch function on the reference, whose tests have formulas of their own."""
    rule = CUSTOM_RULES[rule_name]
    x, g = (part.repeat(2) for part in grid(dtype))
    finite = x.isfinite() & g.isfinite() & (x.abs() < 30) & (g.abs() < 1e3)
    x, g = x[finite], g[finite]
    for one in (rule, rule.scaled(-0.5).clipped(0.7)):
        y, gx = run(x, g, name, one)
        with backend("reference"):
            wanted_y, wanted = run(x, g, name, one)
        torch.testing.assert_close(y, wanted_y)
        torch.testing.assert_close(gx, wanted)


def test_a_custom_rule_takes_a_live_scale_and_keeps_what_its_plan_says():
    rule, scale = CUSTOM_RULES["floored"], torch.tensor(1.0)
    x = torch.linspace(-2, 2, 1029).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = pyrevgrad.relu(x, rule.given(floor=0.25).scaled(scale))
    assert [(len(mask), mask.dtype) for mask in saved] == [(129, torch.uint8)]
    scale.fill_(-2.0)
    (gx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(gx, torch.where(x > 0, -2.0, -0.5))
    z = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda t: pyrevgrad.tanh(t, rule), z)


def _multiplied(name, factor):
    value, slope, fused = MULTIPLIED[factor]
    return pyrevgrad.custom(name, value, slope, triton=fused, replace=True)


def test_an_activation_that_is_replaced_runs_by_the_new_functions_and_its_graphs_by_the_old():
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    function = _multiplied("multiplied", 2.0)
    before, layer = function(x), pyrevgrad.nn.Activation("multiplied")
    backward_arguments.cache_clear()
    _multiplied("multiplied", 3.0)
    after = function(x)
    assert (before.tolist(), after.tolist()) == ([-2.0, 4.0], [-3.0, 6.0])
    recorded = ((before, 2.0), (after, 3.0))
    for y, factor in recorded:
        (gx,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        assert gx.tolist() == [factor, factor]
    with pytest.raises(BackendError, match="does not serve multiplied, which has been replaced"):
        layer(x)
    with backend("reference"):
        assert layer(x).tolist() == [-2.0, 4.0]
    value, slope, _ = MULTIPLIED[2.0]
    pyrevgrad.custom("multiplied", value, slope, replace=True)
    with pytest.raises(BackendError, match="not serve multiplied, which has no Triton functions"):
        function(x)
    backward_arguments.cache_clear()
    for y, factor in recorded:
        assert torch.autograd.grad(y.sum(), x)[0].tolist() == [factor, factor]


def test_a_rule_that_is_replaced_runs_by_the_new_function():
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    for factor in (2.0, 3.0, 2.0):
        sent, fused = SENT[factor]
        rule = pyrevgrad.custom_rule("sent_times", sent, triton=fused, replace=True)
        (gx,) = torch.autograd.grad(pyrevgrad.relu(x, rule).sum(), x)
        assert gx.tolist() == [factor, factor]
    with pytest.raises(ValueError, match="has a Triton function, and what replaces it needs one"):
        pyrevgrad.custom_rule("sent_times", lambda g: g, replace=True)


def test_a_custom_rule_without_a_triton_function_is_refused_by_name():
    bare = pyrevgrad.custom_rule("bare_rule", lambda g: g * g)
    with pytest.raises(BackendError, match="not serve the rule bare_rule, which has no Triton fu"):
        pyrevgrad.relu(torch.ones(2), bare)


def test_a_triton_function_of_other_arguments_than_the_rule_is_refused():
    fused = example("custom_rule").FUSED
    for sent in (lambda g, slope: g, lambda g, x, floor: g):
        given = {"parameters": {"floor": 1.0}} if sent.__code__.co_argcount == 3 else {}
        with pytest.raises(TypeError, match=r"the rule bad must take .*; it takes g, slope, floor"):
            pyrevgrad.custom_rule("bad", sent, triton=fused, **given)


def test_a_custom_activation_without_triton_functions_is_refused_by_name():
    bare = pyrevgrad.custom("bare", lambda x: x * x, lambda x: 2 * x)
    with pytest.raises(BackendError, match="does not serve bare, which has no Triton functions"):
        bare(torch.ones(2))


def test_triton_functions_of_other_arguments_are_refused():
    fused = example("custom_activation").FUSED
    given = ("bad", lambda x: x * x, lambda x: 2 * x)
    with pytest.raises(TypeError, match="must take 1 arguments, x and the parameters; it takes x"):
        pyrevgrad.custom(*given, triton=fused)


def test_other_devices_and_what_lies_elsewhere_are_refused():
    with pytest.raises(BackendError, match="does not serve relu on meta tensors"):
        pyrevgrad.relu(torch.empty(3, device="meta"))
    pair = backends.Pairs("relu", rules.EXACT, {}).full
    elsewhere = torch.ones(3, device="meta")
    with pytest.raises(ValueError, match="the gradient is on cpu and what its backward reads on"):
        TRITON.backward(torch.ones(3), elsewhere, pair, None)
    with pytest.raises(ValueError, match="they must share a device"):
        TRITON.backward(torch.ones(3), torch.ones(1, dtype=torch.uint8), pair, elsewhere)


def test_the_configuration_says_that_the_kernels_are_interpreted():
    lines = configuration()
    assert "interpreted" in lines["triton"]
    assert lines["cpu tensors"].split()[0] == "triton"


def test_an_activation_without_triton_functions_is_refused_by_name(monkeypatch):
    monkeypatch.delitem(TRITON_FORMULAS, "mish")
    backends.triton_backend._refusal.cache_clear()
    with pytest.raises(BackendError, match="does not serve mish, which has no Triton functions"):
        pyrevgrad.mish(torch.ones(2))
    backends.triton_backend._refusal.cache_clear()
