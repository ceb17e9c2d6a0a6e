"""Bad input gets a sentence, by its message, before anything is changed."""

import math

import numpy as np
import pytest
import torch
from expected import BACKENDS
from subprocesses import in_subprocess

import pyrevgrad
from pyrevgrad import (
    EXACT,
    GUIDED,
    Rule,
    activation,
    clipped_straight_through,
    guided,
    plan,
    rectgrad,
    reverse,
    reverse_gradient,
)
from pyrevgrad.activations import ACTIVATIONS
from pyrevgrad.nn import Activation, GradientReversal, ReversedLinear

X = torch.ones(3)
calls = pytest.mark.parametrize(
    "call",
    [
        lambda x: activation(x, "relu", GUIDED),
        lambda x: pyrevgrad.relu(x),
        lambda x: reverse_gradient(x),
        lambda x: Activation("gelu")(x),
        lambda x: GradientReversal()(x),
        lambda x: activation(x, "tanh", inplace=True),
    ],
    ids=["activation", "relu", "reverse_gradient", "Activation", "GradientReversal", "in place"],
)


# Tensors.


@calls
@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize(
    "dtype",
    [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.float8_e4m3fn],
    ids=str,
)
def test_integer_and_complex_input_is_refused(call, dtype, backend):
    x = torch.ones(3).to(dtype)
    message = rf"takes float16, bfloat16, float32 or float64 tensors, got {dtype}"
    with pytest.raises(TypeError, match=message):
        if backend is None:
            call(x)
        else:
            with pyrevgrad.backend(backend):
                call(x)
    assert torch.equal(x.to(torch.complex64), torch.ones(3).to(torch.complex64))


@calls
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr"])
def test_sparse_input_is_refused(call, layout):
    x = torch.eye(3).to_sparse() if layout == "sparse_coo" else torch.eye(3).to_sparse_csr()
    with pytest.raises(TypeError, match=rf"takes dense tensors, got layout torch.{layout}"):
        call(x)
    assert torch.equal(x.to_dense(), torch.eye(3))


@calls
@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
def test_masked_input_is_refused(call):
    x = torch.masked.masked_tensor(torch.ones(2), torch.tensor([True, False]))
    with pytest.raises(TypeError, match="masked"):
        call(x)


@calls
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_input_is_refused(call):
    x = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(TypeError, match="nested"):
        call(x)
    with pytest.raises(TypeError, match="takes dense tensors, got a nested tensor"):
        ReversedLinear(2, 2)(torch.nested.nested_tensor([torch.ones(2, 2), torch.ones(1, 2)]))


@calls
@pytest.mark.parametrize(("x", "name"), [([1.0], "list"), (1.0, "float"), (None, "NoneType")])
def test_what_is_no_tensor_is_refused(call, x, name):
    with pytest.raises(TypeError, match=rf"x must be a torch.Tensor, not {name}"):
        call(x)


def test_what_a_reversal_refuses_names_the_reversal():
    for call in (reverse_gradient, GradientReversal()):
        with pytest.raises(TypeError, match=r"a reversal \(or identity\) takes float16, "):
            call(torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize("call", [lambda s: reverse_gradient(X, s), reverse, GUIDED.scaled])
def test_a_schedule_where_a_number_belongs_names_the_layer(call):
    schedule = pyrevgrad.schedules.GaninSchedule(max_steps=2)
    message = "not GaninSchedule; nn.GradientReversal takes a schedule"
    with pytest.raises(TypeError, match=message):
        call(schedule)


# Names and parameters.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rleu", "unknown activation 'rleu': did you mean 'relu'"),
        ("leakyrelu", "unknown activation 'leakyrelu': did you mean 'leaky_relu'"),
        ("zzz", "unknown activation 'zzz': choose from .*relu.*tanh"),
        ("swish", "unknown activation 'swish': PyTorch and this table call it 'silu'"),
    ],
)
@pytest.mark.parametrize("where", ["activation", "Activation", "plan", "formula"])
def test_an_unknown_activation_lists_the_close_names(name, message, where):
    with pytest.raises(ValueError, match=message):
        {
            "activation": lambda: activation(X, name),
            "Activation": lambda: Activation(name),
            "plan": lambda: plan(name),
            "formula": lambda: EXACT.formula(name),
        }[where]()


@pytest.mark.parametrize("where", [lambda n: activation(X, n), Activation, plan])
def test_an_activation_that_is_no_name_is_refused(where):
    with pytest.raises(TypeError, match="an activation is named by a string, not function"):
        where(lambda x: x)


@pytest.mark.parametrize(
    ("name", "params", "kind", "message"),
    [
        ("relu", {"slope": 1.0}, TypeError, "relu has no parameter 'slope': it takes none"),
        (
            "leaky_relu",
            {"negativ_slope": 1.0},
            TypeError,
            "leaky_relu has no parameter 'negativ_slope': did you mean 'negative_slope'?",
        ),
        (
            "gelu",
            {"approximate": "tanh"},
            TypeError,
            "gelu has no parameter 'approximate': the approximation by tanh is 'gelu_tanh'",
        ),
        ("elu", {"alpha": "1"}, TypeError, "elu: alpha must be a number, not str"),
        ("elu", {"alpha": True}, TypeError, "elu: alpha must be a number, not bool"),
        ("elu", {"alpha": torch.tensor(1.0)}, TypeError, "elu: alpha must be a number, not Tensor"),
        ("elu", {"alpha": [1.0]}, TypeError, "elu: alpha must be a number, not list"),
        ("elu", {"alpha": math.nan}, ValueError, "elu: alpha must be finite"),
        ("elu", {"alpha": math.inf}, ValueError, "elu: alpha must be finite, got inf"),
        ("hardtanh", {"max_val": math.inf}, ValueError, "max_val must be finite, got inf"),
        ("leaky_relu", {"negative_slope": -math.inf}, ValueError, "must be finite, got -inf"),
        ("celu", {"alpha": 0.0}, ValueError, "celu: alpha must be finite and > 0, got 0.0"),
        ("softplus", {"beta": -1.0}, ValueError, "softplus: beta must be finite and"),
        ("hardshrink", {"lambd": -0.5}, ValueError, "lambd must be finite and >= 0, got -0.5"),
        ("softshrink", {"lambd": -0.5}, ValueError, "lambd must be finite and >= 0, got -0.5"),
        (
            "hardtanh",
            {"min_val": 1.0, "max_val": 1.0},
            ValueError,
            "hardtanh: min_val must be below max_val, got 1.0 and 1.0",
        ),
    ],
)
@pytest.mark.parametrize("where", ["activation", "named", "Activation", "plan", "in place"])
def test_a_bad_parameter_is_named(name, params, kind, message, where):
    x = torch.full((3,), -2.0)
    with pytest.raises(kind, match=message.replace("?", r"\?")):
        {
            "activation": lambda: activation(x, name, **params),
            "named": lambda: getattr(pyrevgrad, name)(x, **params),
            "Activation": lambda: Activation(name, **params),
            "plan": lambda: plan(name, **params),
            "in place": lambda: activation(x, name, inplace=True, **params),
        }[where]()
    assert x.tolist() == [-2.0] * 3


def test_a_refusal_does_not_depend_on_earlier_calls():
    """True equals 1 as a dictionary's key."""
    activation(X, "hardtanh", min_val=0, max_val=1)
    with pytest.raises(TypeError, match="max_val must be a number, not bool"):
        activation(X, "hardtanh", min_val=0, max_val=True)


# Rules.


@pytest.mark.parametrize("rule", ["guided", None, 0.3, Rule, []])
def test_a_rule_that_is_none_is_refused(rule):
    for call in (
        lambda: activation(X, "relu", rule),
        lambda: pyrevgrad.relu(X, rule),
        lambda: Activation("relu", rule),
        lambda: plan("relu", rule),
    ):
        with pytest.raises(TypeError, match=r"rule must be a pyrevgrad.Rule such as GUIDED"):
            call()


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: guided("inputs"), ValueError, "unknown form 'inputs' of guided: did you mean"),
        (lambda: guided("zzz"), ValueError, "choose from input, product, slope"),
        (lambda: Rule(slope="exat"), ValueError, "unknown slope 'exat': choose from exact"),
        (lambda: Rule(gradient_gate="gradien"), ValueError, "did you mean 'gradient'"),
        (lambda: Rule(input_gate="negative"), ValueError, "unknown input gate 'negative'"),
        (lambda: clipped_straight_through(1, -1), ValueError, "low must not be above high"),
        (lambda: clipped_straight_through("a", 1), TypeError, "bound must be a number, not str"),
        (
            lambda: clipped_straight_through(0.5),
            TypeError,
            r"both bounds, as \(-0.5, 0.5\), or nei",
        ),
        (lambda: clipped_straight_through(high=2.0), TypeError, "takes both bounds"),
        (lambda: rectgrad("0"), TypeError, "threshold must be a number, not str"),
        (lambda: rectgrad(math.nan), ValueError, "threshold must not be NaN"),
        (lambda: GUIDED.clipped(0.0), ValueError, "clip must be > 0, got 0.0"),
        (lambda: GUIDED.clipped(None), TypeError, "clip must be a number, not NoneType"),
        (
            lambda: reverse(torch.tensor(1.0)).scaled(torch.tensor(2.0)),
            ValueError,
            "has a tensor scale already",
        ),
        (lambda: plan("relu", dtype=torch.int32), TypeError, "dtype must be one of torch.float16"),
    ],
)
def test_a_bad_rule_is_explained(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


# Scales.


@pytest.mark.parametrize(
    ("scale", "kind", "message"),
    [
        ("0.5", TypeError, "scale must be a number or a 0-dim tensor, not str"),
        (None, TypeError, "scale must be a number or a 0-dim tensor, not NoneType"),
        (True, TypeError, "scale must be a number or a 0-dim tensor, not bool"),
        (1j, TypeError, "scale must be a number or a 0-dim tensor, not complex"),
        (np.array(0.5), TypeError, r"not ndarray; pass scale\.item\(\)"),
        (math.nan, ValueError, "scale must not be NaN"),
        (torch.ones(1), ValueError, r"scale must be a 0-dim tensor, got shape \(1,\)"),
        (torch.tensor(1), TypeError, "of float32, float64, bfloat16 or float16, got torch.int64"),
        (torch.tensor(1j), TypeError, "float16, got torch.complex64"),
        (torch.tensor(0.5).to(torch.float8_e5m2), TypeError, "float16, got torch.float8_e5m2"),
        (
            torch.tensor(1.0, requires_grad=True),
            ValueError,
            r"no gradient flows to scale, .* must not require grad; pass \.detach\(\)",
        ),
    ],
)
def test_a_bad_scale_is_explained(scale, kind, message):
    for call in (
        lambda: reverse_gradient(X, scale),
        lambda: reverse(scale),
        lambda: GUIDED.scaled(scale),
        lambda: GradientReversal(scale),
        lambda: GradientReversal().set_scale(scale),
    ):
        with pytest.raises(kind, match=message):
            call()


@pytest.mark.parametrize("needs", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_scale_on_another_device_is_refused(needs, inplace):
    x = torch.full((3,), -2.0, requires_grad=needs) * 1.0
    scale = torch.tensor(1.0, device="meta")
    message = "the tensor scale is on meta and x on cpu; they must share a device"
    with pytest.raises(ValueError, match=message):
        activation(x, "relu", reverse(scale), inplace=inplace)
    with pytest.raises(ValueError, match=message):
        reverse_gradient(x, scale)
    assert x.tolist() == [-2.0] * 3


def test_a_scale_that_came_to_require_grad_is_refused():
    scale = torch.tensor(1.0)
    rule = reverse(scale)
    scale.requires_grad_()
    x = torch.full((3,), -2.0)
    with pytest.raises(ValueError, match="no gradient flows to scale"):
        activation(x, "relu", rule, inplace=True)
    assert x.tolist() == [-2.0] * 3


# In place.

KINDS = [("relu", GUIDED), ("tanh", EXACT), ("tanh", reverse(0.3)), ("gelu", EXACT)]
KINDS += [("identity", reverse(0.3))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "rule"), KINDS)
@pytest.mark.parametrize("part", ["leaf", "view", "view of a view"])
def test_in_place_on_a_leaf_that_needs_grad_is_refused(name, rule, part, backend):
    leaf = torch.full((2, 3), -2.0, requires_grad=True)
    x = {"leaf": leaf, "view": leaf[0], "view of a view": leaf.t()[1:]}[part]
    with pyrevgrad.backend(backend), pytest.raises(ValueError, match="leaf that requires grad"):
        activation(x, name, rule, inplace=True)
    assert leaf.tolist() == [[-2.0] * 3] * 2 and leaf._version == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needs", [False, True])
@pytest.mark.parametrize(("name", "rule"), KINDS)
def test_in_place_on_an_expanded_tensor_is_refused(name, rule, needs, backend):
    base = torch.full((3, 1), -2.0, requires_grad=needs) * 1.0
    with pyrevgrad.backend(backend), pytest.raises(ValueError, match="on an expanded tensor"):
        activation(base.expand(3, 4), name, rule, inplace=True)
    assert base.tolist() == [[-2.0]] * 3
    activation(base.expand(3, 1), name, rule, inplace=True)


@pytest.mark.parametrize("recorder", ["nodes", "functions"])
@pytest.mark.parametrize(("name", "rule"), KINDS)
def test_a_sparse_gradient_is_refused(name, rule, recorder, monkeypatch):
    if recorder == "functions":
        monkeypatch.setattr(pyrevgrad.autograd, "NODES", None)
    x = torch.full((3,), 2.0, requires_grad=True)
    y = activation(x, name, rule)
    with pytest.raises(TypeError, match=r"takes dense gradients, .* call .to_dense\(\) on it"):
        y.backward(torch.ones(3).to_sparse())


# Kinds.


def test_our_own_errors_are_documented_runtime_errors():
    for kind in (pyrevgrad.BackendError, pyrevgrad.TracingError):
        assert issubclass(kind, RuntimeError) and kind.__doc__


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("GradientReversal", "; it is pyrevgrad.nn.GradientReversal"),
        ("GuidedBackprop", "; it is pyrevgrad.attribution.GuidedBackprop"),
        ("GaninSchedule", "; it is .* or pyrevgrad.schedules.GaninSchedule"),
        ("no_such_name", "'no_such_name'$"),
    ],
)
def test_a_name_that_is_public_elsewhere_is_an_error_that_says_where(name, where):
    with pytest.raises(AttributeError, match=f"'pyrevgrad' has no attribute .*{where}"):
        getattr(pyrevgrad, name)


def test_completion_offers_the_public_names_alone():
    rooms = {"adversarial", "attribution", "compat", "functional", "nn", "schedules"}
    offered = {name for name in dir(pyrevgrad) if not name.startswith("__")}
    assert offered == {*pyrevgrad.__all__, *rooms, *ACTIVATIONS}
    assert {"__version__", "__file__"} <= set(dir(pyrevgrad))


@pytest.mark.parametrize("version", ["1.13.1", "2.9.1+cpu"])
def test_a_torch_that_is_too_old_is_named_before_anything_of_it_is_missed(version):
    code = f"import torch; torch.__version__ = {version!r}; del torch.Tensor; import pyrevgrad"
    done = in_subprocess(code)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: pyrevgrad needs torch 2.10 or newer, and this is {version}: upgrade it "
        '(`pip install "torch>=2.10"`)'
    )


@pytest.mark.parametrize("version", ["2.10.0a0+git1234", "2.10.1", "3.0"])
def test_a_torch_that_is_new_enough_is_taken(version):
    code = f"import torch; torch.__version__ = {version!r}; import pyrevgrad; print('taken')"
    assert in_subprocess(code, PYREVGRAD_BACKEND="").stdout == "taken\n"


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "value alone"])
@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_no_memory_is_said_in_the_words_of_pytorch(name, recorded, nodes):
    x = torch.zeros(1, requires_grad=recorded).expand(1 << 50)
    with pytest.raises(RuntimeError, match="you tried to allocate 4503599627370496 bytes"):
        pyrevgrad.activation(x, name, GUIDED)
