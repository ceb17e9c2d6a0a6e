"""The reversal layers of other libraries: the same values and arguments, a state that is saved."""

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.utils.checkpoint import checkpoint

import pyrevgrad
from pyrevgrad.compat import GradientReverseLayer, RevGrad, WarmStartGradientReverseLayer, revgrad

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def gradient(layer, x, g, *arguments):
    at = x.clone().requires_grad_()
    (gx,) = torch.autograd.grad(layer(at, *arguments), at, g)
    return gx


def drawn(dtype=torch.float32):
    return torch.randn(4, 33, dtype=dtype), torch.randn(4, 33, dtype=dtype)


def published_warm_start(i, alpha=1.0, lo=0.0, hi=1.0, max_iters=1000):
    """The formula as the library's documentation prints it."""
    return 2 * (hi - lo) / (1 + math.exp(-alpha * i / max_iters)) - (hi - lo) + lo


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


# RevGrad.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alpha", [1.0, 0.3, 2, 0.0, -1.5, 1e-30])
def test_revgrad_gives_the_gradients_of_pytorch_revgrad_bit_for_bit(alpha, dtype):
    theirs = pytest.importorskip("pytorch_revgrad", reason="pytorch-revgrad is not installed")
    x, g = drawn(dtype)
    given = () if alpha == 1.0 else (alpha,)
    ours, other = RevGrad(*given), theirs.RevGrad(*given)
    assert torch.equal(gradient(ours, x, g), gradient(other, x, g))
    assert torch.equal(ours(x), other(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alpha", [1.0, 0.3, -1.5])
def test_the_function_revgrad_gives_the_gradients_of_pytorch_revgrads_bit_for_bit(alpha, dtype):
    theirs = pytest.importorskip(
        "pytorch_revgrad.functional", reason="pytorch-revgrad is not installed"
    )
    x, g = drawn(dtype)
    scale = torch.tensor(alpha)
    wanted = gradient(theirs.revgrad, x, g, scale)
    assert torch.equal(gradient(revgrad, x, g, scale), wanted)
    assert torch.equal(revgrad(x, scale), x) and revgrad(x, scale).data_ptr() == x.data_ptr()


def test_the_function_revgrad_multiplies_by_minus_its_alpha():
    x, g = drawn()
    for alpha in (0.25, torch.tensor(0.25)):
        assert torch.equal(gradient(revgrad, x, g, alpha), -0.25 * g)
    with pytest.raises(ValueError, match="0-dim tensor"):
        revgrad(x, torch.ones(2))


def test_an_alpha_of_one_element_is_that_number_as_in_pytorch_revgrad():
    x, g = drawn()
    alpha = torch.tensor([0.25])
    assert torch.equal(gradient(revgrad, x, g, alpha), -0.25 * g)
    layer = RevGrad(alpha)
    assert torch.equal(gradient(layer, x, g), -0.25 * g) and layer._alpha.shape == ()
    layer._alpha = torch.tensor([[0.5]])
    assert torch.equal(gradient(layer, x, g), -0.5 * g)


def test_revgrad_takes_the_arguments_of_pytorch_revgrad():
    theirs = pytest.importorskip("pytorch_revgrad", reason="pytorch-revgrad is not installed")
    named = inspect.signature(theirs.RevGrad).parameters["alpha"]
    ours = inspect.signature(RevGrad).parameters["alpha"]
    assert (ours.name, ours.default, ours.kind) == (named.name, named.default, named.kind)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_revgrad_multiplies_by_minus_a_float32_alpha(dtype):
    x, g = drawn(dtype)
    alpha = torch.tensor(0.3, dtype=torch.float32).to(max(dtype, torch.float32, key=_width))
    assert torch.equal(gradient(RevGrad(0.3), x, g), (-alpha * g.to(alpha.dtype)).to(dtype))


def _width(dtype):
    return torch.finfo(dtype).bits


def test_revgrad_is_a_view_and_keeps_nothing():
    x = torch.ones(3, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda it: it):
        y = RevGrad()(x)
    assert y._is_view() and y.data_ptr() == x.data_ptr()
    assert kept == []


def test_revgrads_alpha_is_read_and_set_by_its_old_name():
    layer = RevGrad(alpha=0.5)
    assert layer._alpha.item() == 0.5
    for value in (0.25, torch.tensor(0.25), nn.Parameter(torch.tensor(0.25), requires_grad=False)):
        layer._alpha = 1.0
        layer._alpha = value
        x, g = drawn()
        assert torch.equal(gradient(layer, x, g), -0.25 * g)
        assert list(layer.state_dict()) == ["scale"] and not list(layer.parameters())
    layer._alpha.fill_(2.0)
    assert torch.equal(gradient(layer, x, g), -2.0 * g)


def test_revgrads_alpha_survives_a_cast_and_a_file():
    model = nn.Sequential(nn.Linear(2, 2), RevGrad(0.3)).half()
    fresh = nn.Sequential(nn.Linear(2, 2), RevGrad()).half()
    fresh.load_state_dict(through_a_file(model.state_dict()))
    assert fresh[1]._alpha.item() == torch.tensor(0.3).item()
    assert fresh[1]._alpha.dtype == torch.float64


@pytest.mark.parametrize("bad", ["1", None, [1.0, 2.0], torch.ones(2), math.nan])
def test_a_wrong_alpha_is_refused(bad):
    with pytest.raises((TypeError, ValueError), match="scale must"):
        RevGrad(bad)


@pytest.mark.parametrize("make", [RevGrad, WarmStartGradientReverseLayer, GradientReverseLayer])
def test_a_file_of_the_other_library_which_holds_no_state_loads(make):
    old = nn.Sequential(nn.Linear(2, 2), nn.Identity()).state_dict()
    model = nn.Sequential(nn.Linear(2, 2), make())
    before = repr(model[1])
    missing, unexpected = model.load_state_dict(through_a_file(old))
    assert not missing and not unexpected and repr(model[1]) == before
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({"0.weight": old["0.weight"]})


def test_half_a_state_is_still_an_error():
    state = WarmStartGradientReverseLayer().state_dict()
    del state["_extra_state"]
    with pytest.raises(RuntimeError, match="Missing key"):
        WarmStartGradientReverseLayer().load_state_dict(state)


# GradientReverseLayer.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("coeff", [None, 0.3, 2.0, torch.tensor(0.3)])
def test_gradient_reverse_layer_multiplies_by_minus_its_coefficient(coeff, dtype):
    x, g = drawn(dtype)
    given = () if coeff is None else (coeff,)
    factor = 1.0 if coeff is None else coeff
    if isinstance(factor, torch.Tensor):
        factor = factor.to(torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(gradient(GradientReverseLayer(), x, g, *given), g.neg() * factor)


@pytest.mark.parametrize("layer", [GradientReverseLayer(), WarmStartGradientReverseLayer(lo=0.5)])
def test_an_in_place_layer_may_follow_as_in_the_transfer_learning_library(layer):
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    y = torch.relu_(layer(x))
    y.sum().backward()
    assert y.tolist() == [0.0, 2.0] and x.tolist() == [-1.0, 2.0]
    assert x.grad[0] == 0 and x.grad[1] < 0


def test_gradient_reverse_layer_has_no_state():
    assert not GradientReverseLayer().state_dict()


# WarmStartGradientReverseLayer.


def test_the_warm_start_has_the_published_arguments_and_defaults():
    parameters = inspect.signature(WarmStartGradientReverseLayer).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "alpha": 1.0, "lo": 0.0, "hi": 1.0, "max_iters": 1000.0, "auto_step": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{}, {"max_iters": 4}, {"alpha": 10.0, "lo": 0.1, "hi": 2.0, "max_iters": 7}],
)
def test_the_warm_start_follows_the_published_formula_step_by_step(options):
    layer = WarmStartGradientReverseLayer(**options)
    x, g = drawn(torch.float64)
    for i in range(12):
        wanted = -published_warm_start(i, **options) * g
        torch.testing.assert_close(gradient(layer, x, g), wanted, rtol=1e-13, atol=1e-15)
        layer.step()


def test_a_falling_warm_start_does_not_overflow():
    layer = WarmStartGradientReverseLayer(alpha=-900.0, lo=0.5, hi=2.0, max_iters=1)
    layer.step()
    assert layer.scale.item() == 0.5 - 1.5


def test_the_published_warm_start_ends_at_46_and_alpha_10_mends_it():
    ends = []
    for options in ({}, {"alpha": 10.0}):
        layer = WarmStartGradientReverseLayer(max_iters=5, **options)
        for _ in range(5):
            layer.step()
        ends.append(round(layer.scale.item(), 4))
    assert ends == [0.4621, 0.9999]


def test_auto_step_counts_forwards_and_the_first_has_lo():
    layer = WarmStartGradientReverseLayer(lo=0.5, max_iters=10, auto_step=True)
    x, g = drawn(torch.float64)
    factors = [(gradient(layer, x, g) / -g).mean().item() for _ in range(4)]
    assert factors == pytest.approx(
        [published_warm_start(i, lo=0.5, max_iters=10) for i in range(4)], rel=1e-12
    )
    assert layer.iter_num == 4


def test_auto_step_counts_a_forward_that_is_computed_again_as_the_docstring_says():
    layer = WarmStartGradientReverseLayer(alpha=10.0, max_iters=4, auto_step=True)
    x = torch.ones(2, requires_grad=True)
    checkpoint(layer, x, use_reentrant=True).sum().backward()
    assert layer.iter_num == 2
    wanted = published_warm_start(1, alpha=10.0, max_iters=4)
    torch.testing.assert_close(x.grad, torch.full((2,), -wanted))


def test_the_scale_of_a_backward_is_that_of_its_forward():
    layer = WarmStartGradientReverseLayer(lo=0.5, max_iters=3, auto_step=True)
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    outputs = [layer(x) for _ in range(3)]
    layer.step()
    found = [torch.autograd.grad(y, x)[0].item() for y in outputs]
    assert found == pytest.approx([-published_warm_start(i, lo=0.5, max_iters=3) for i in range(3)])


@pytest.mark.parametrize("name", ["alpha", "lo", "hi", "max_iters", "iter_num"])
def test_an_attribute_set_by_hand_changes_the_scale(name):
    layer = WarmStartGradientReverseLayer(alpha=2.0, lo=0.25, hi=0.75, max_iters=8)
    layer.iter_num = 3
    setattr(layer, name, 5)
    numbers = {"alpha": 2.0, "lo": 0.25, "hi": 0.75, "max_iters": 8, "i": 3}
    numbers["i" if name == "iter_num" else name] = 5
    assert layer.scale.item() == pytest.approx(published_warm_start(**numbers), rel=1e-14)


COPIES = {
    "state_dict": lambda it: _loaded(it),
    "deepcopy": copy.deepcopy,
    "pickle": lambda it: pickle.loads(pickle.dumps(it)),
}


def _loaded(layer):
    made = WarmStartGradientReverseLayer(max_iters=10)
    made.load_state_dict(through_a_file(layer.state_dict()))
    return made


@pytest.mark.parametrize("how", COPIES)
def test_a_saved_warm_start_goes_on_where_it_stopped(how):
    layer = WarmStartGradientReverseLayer(max_iters=10)
    for _ in range(4):
        layer.step()
    made = COPIES[how](layer)
    assert repr(made) == repr(layer)
    made.step()
    assert (made.iter_num, layer.iter_num) == (5, 4)
    assert made.scale.item() == pytest.approx(published_warm_start(5, max_iters=10))


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_warm_start_follows_its_steps_without_compiling_again():
    layer = WarmStartGradientReverseLayer(lo=0.5, max_iters=10)
    counted = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counted, fullgraph=True)
    x, g = drawn(torch.float64)
    counts = []
    for i in range(5):
        wanted = -published_warm_start(i, lo=0.5, max_iters=10) * g
        torch.testing.assert_close(gradient(compiled, x, g), wanted, rtol=1e-12, atol=0)
        counts.append(counted.frame_count)
        layer.step()
    assert len(set(counts)) == 1


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"max_iters": 0}, ValueError, "max_iters must be > 0, got 0"),
        ({"alpha": math.nan}, ValueError, "alpha must not be NaN"),
        ({"hi": math.inf}, ValueError, "hi must be finite"),
        ({"lo": "0"}, TypeError, "lo must be a number, not str"),
        ({"lo": -1e308, "hi": 1e308}, ValueError, "too far apart: the scale overflows"),
    ],
)
def test_a_wrong_argument_is_named(options, kind, message):
    with pytest.raises(kind, match=message):
        WarmStartGradientReverseLayer(**options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hi", 1e308, "lo=-8e[+]307 and hi=1e[+]308 are too far apart"),
        ("max_iters", 0, "must be > 0"),
    ],
)
def test_a_wrong_number_set_by_hand_changes_nothing(name, value, message):
    layer = WarmStartGradientReverseLayer(lo=-8e307, hi=0.0)
    layer.step()
    before, scale = getattr(layer, name), layer.scale.item()
    with pytest.raises(ValueError, match=message):
        setattr(layer, name, value)
    assert getattr(layer, name) == before and layer.scale.item() == scale


def test_compat_is_reachable_from_the_package():
    assert pyrevgrad.compat.RevGrad is RevGrad


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_warm_start_steps_itself():
    x, g = torch.randn(4, requires_grad=True), torch.randn(4)
    found = []
    for compiles in (False, True):
        layer = WarmStartGradientReverseLayer(max_iters=10, auto_step=True)
        step = torch.compile(layer, backend="aot_eager") if compiles else layer
        found.append([torch.autograd.grad(step(x), x, g)[0] for _ in range(3)])
        assert layer.iter_num == 3
    assert all(map(torch.equal, *found)) and found[0][2].any()
