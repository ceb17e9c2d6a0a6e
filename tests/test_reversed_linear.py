"""ReversedLinear: the gradients of a reversal and a linear layer, and not one operation more."""

import copy
import io
import pickle

import pytest
import torch
from folded_layers import Operations, gradients, pair
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import pyrevgrad
from pyrevgrad import GUIDED, TracingError, autograd, check_reversal
from pyrevgrad.nn import Activation, GradientReversal, ReversedLinear
from pyrevgrad.schedules import LinearSchedule

# By the C++ node and by the Function.
pytestmark = pytest.mark.usefixtures("nodes")

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHAPES = [(5, 3), (3,), (2, 4, 3), (0, 3), (1, 3)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.7, 0.0, -2.0, torch.tensor(0.7)])
def test_gradients_are_those_of_a_linear_layer_with_the_inputs_one_reversed(scale, shape, bias):
    folded, plain = pair(scale, bias=bias)
    folded, plain = folded.double(), plain.double()
    x = torch.randn(shape, dtype=torch.float64)
    g = torch.randn(*shape[:-1], 4, dtype=torch.float64)
    y, ours = gradients(folded, x, g, folded.parameters())
    wanted, theirs = gradients(plain, x, g, plain.parameters())
    torch.testing.assert_close(y, wanted, rtol=0, atol=0)
    factor = -folded.scale.item()
    for mine, other, share in zip(ours, theirs, [factor, 1.0, 1.0][: len(ours)], strict=True):
        torch.testing.assert_close(mine, share * other, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_as_exact_as_two_layers(dtype, live):
    folded, plain = pair(torch.tensor(0.3) if live else 0.3)
    folded, plain = folded.to(dtype), plain.to(dtype)
    assert folded.scale.dtype == torch.float64
    x, g = torch.randn(50, 3, dtype=dtype), torch.randn(50, 4, dtype=dtype)
    _, ours = gradients(folded, x, g, folded.parameters())
    exact = -folded.scale * (g.double() @ folded.weight.double())
    _, two = gradients(lambda at: plain(GradientReversal(0.3)(at)), x, g, plain.parameters())
    error = (ours[0].double() - exact).abs().max()
    limit = (two[0].double() - exact).abs().max()
    assert ours[0].dtype == dtype and error <= 1.5 * limit + 1e-12


@pytest.mark.parametrize("scale", [0.0, 5e-324, 1e-46, 1e-38, 1.0])
def test_a_nan_in_the_gradient_is_not_lost_however_small_the_scale(scale):
    folded, _ = pair(scale)
    x = torch.randn(2, 3, requires_grad=True)
    (gx,) = torch.autograd.grad(folded(x), x, torch.full((2, 4), float("nan")))
    assert gx.isnan().all()


def test_a_gradient_that_is_expanded_or_transposed_is_read_right():
    folded, _ = pair()
    x = torch.randn(6, 3, requires_grad=True)
    folded(x).sum().backward()
    torch.testing.assert_close(x.grad, (-0.7 * folded.weight.sum(0)).expand(6, 3))
    x.grad = None
    folded(x).T.contiguous().cos().sum().backward()
    g = -folded(x).sin().detach()
    torch.testing.assert_close(x.grad, -0.7 * g @ folded.weight)


def test_only_what_is_asked_for_is_made():
    folded, _ = pair()
    folded.requires_grad_(False)
    x = torch.randn(5, 3, requires_grad=True)
    folded(x).sum().backward()
    assert folded.weight.grad is None and x.grad is not None
    folded.requires_grad_(True)
    folded(x.detach()).sum().backward()
    assert folded.weight.grad is not None and folded.bias.grad.tolist() == [5.0] * 4


@pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_relu"])
def test_an_activation_may_follow(activation):
    params = {"negative_slope": 0.3} if activation == "leaky_relu" else {}
    folded, plain = pair(activation=activation, rule=GUIDED, **params)
    x, g = torch.randn(9, 3), torch.randn(9, 4)
    y, ours = gradients(folded, x, g, folded.parameters())
    behind = Activation(activation, GUIDED, **params)
    wanted, theirs = gradients(lambda at: behind(plain(at)), x, g, plain.parameters())
    torch.testing.assert_close(y, wanted)
    for mine, other, share in zip(ours, theirs, (-0.7, 1.0, 1.0), strict=True):
        torch.testing.assert_close(mine, share * other)


# What it costs.


def operations(layers, x):
    network = nn.Sequential(nn.Linear(3, 3), *layers, nn.Tanh(), nn.Linear(4, 1))
    for _ in range(2):
        with Operations() as mode:
            network(x).sum().backward()
    return mode.seen


def known(layer, how):
    if how == "schedule":
        layer.scale = LinearSchedule(5)
        layer.schedule.step()
    elif how == "set":
        layer.scale = 0.25
    elif how == "copied":
        layer = copy.deepcopy(layer)
    elif how == "pickled":
        layer = pickle.loads(pickle.dumps(layer))
    elif how == "loaded":
        layer.load_state_dict(ReversedLinear(3, 4, scale=0.125).state_dict())
    elif how == "cast":
        layer = layer.half().float()
    return layer


@pytest.mark.parametrize(
    "how", ["number", "schedule", "set", "copied", "pickled", "loaded", "cast"]
)
@pytest.mark.parametrize("shape", [(7, 3), (2, 5, 3)])
def test_a_number_or_a_schedule_costs_no_operation_at_all(shape, how):
    layer = known(ReversedLinear(3, 4), how)
    x = torch.randn(shape)
    plain, folded = operations([nn.Linear(3, 4)], x), operations([layer], x)
    assert len(folded) == len(plain), (folded, plain)
    assert not any("mul" in name for name in folded)
    assert len(operations([GradientReversal(), nn.Linear(3, 4)], x)) > len(plain)


@pytest.mark.parametrize(("rows", "smaller"), [(2, 8), (100, 12)])
def test_a_tensor_on_a_device_costs_one_operation_on_the_smaller_operand(
    rows, smaller, monkeypatch
):
    layer = ReversedLinear(3, 4, scale=torch.tensor(0.5))
    x = torch.randn(rows, 3)
    assert len(operations([layer], x)) == len(operations([nn.Linear(3, 4)], x))
    # What a device alone knows, which a CPU tensor never is, and the C++ node serves no other.
    monkeypatch.setattr(autograd, "NODES", None)
    monkeypatch.setattr(ReversedLinear, "_number", lambda self, scale: None)
    sizes = []

    class Sizes(Operations):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = super().__torch_dispatch__(function, types, args, kwargs)
            if "pyrevgrad.backward" in str(function):
                sizes.append(made.numel())
            return made

    with Sizes():
        layer(x.requires_grad_()).backward(torch.ones(rows, 4))
    assert sizes == [smaller]
    assert len(operations([layer], x)) == len(operations([nn.Linear(3, 4)], x)) + 1


def test_the_profiler_counts_as_many_kernels_as_without_a_reversal():
    def counted(layer):
        x = torch.randn(64, 3, requires_grad=True)
        layer(x).backward(torch.ones(64, 4))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            layer(x).backward(torch.ones(64, 4))
        kernels = ("addmm", "addmm_", "mm", "mul", "sum", "neg", "copy_")
        names = [event.name for event in profile.events()]
        return sum(names.count(f"aten::{kernel}") for kernel in kernels)

    assert counted(ReversedLinear(3, 4)) == counted(nn.Linear(3, 4))


def test_nothing_is_kept_for_the_reversal():
    def kept(layers):
        seen = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: seen.append(tensor.numel()), lambda it: it
        )
        with hooks:
            nn.Sequential(*layers)(torch.randn(5, 3, requires_grad=True))
        return sorted(seen)

    assert kept([ReversedLinear(3, 4)]) == kept([nn.Linear(3, 4)])
    frozen = [layer.requires_grad_(False) for layer in (ReversedLinear(3, 4), nn.Linear(3, 4))]
    assert kept(frozen[:1]) == kept(frozen[1:])


# λ, wherever it comes from.


def test_the_scale_is_the_one_when_backward_runs():
    schedule = LinearSchedule(2)
    layer = ReversedLinear(3, 4, scale=schedule)
    x = torch.ones(1, 3, requires_grad=True)
    y = layer(x)
    schedule.step()
    y.sum().backward()
    torch.testing.assert_close(x.grad, -0.5 * layer.weight.sum(0, keepdim=True))


@pytest.mark.parametrize("where", ["cpu", "moved", "shared", "inference"])
def test_a_buffer_that_is_written_behind_its_back_is_believed(where):
    with torch.inference_mode(where == "inference"):
        layer = ReversedLinear(3, 4, scale=0.5)
    if where == "inference":
        layer = ReversedLinear(3, 4, scale=layer.scale.clone())
    if where == "shared":
        layer.share_memory()
    layer.scale.fill_(2.0) if where != "moved" else None
    if where == "moved":
        layer.scale.data.fill_(9.0)
        layer.scale.fill_(2.0)
        layer = layer.to("meta").to_empty(device="cpu")
        with torch.no_grad():
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
    x = torch.ones(1, 3, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, -2.0 * layer.weight.sum(0, keepdim=True))


def test_the_state_is_saved_and_the_copy_is_its_own():
    layer = ReversedLinear(3, 4, scale=0.125)
    assert sorted(layer.state_dict()) == ["bias", "scale", "weight"]
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    for assign in (False, True):
        fresh = ReversedLinear(3, 4)
        fresh.load_state_dict(torch.load(file), assign=assign)
        file.seek(0)
        x, g = torch.randn(5, 3), torch.randn(5, 4)
        ours = gradients(layer, x, g, layer.parameters())[1]
        assert all(map(torch.equal, gradients(fresh, x, g, fresh.parameters())[1], ours))
    made = copy.deepcopy(layer)
    made.scale = 8.0
    assert layer.scale.item() == 0.125


def test_autocast_gives_the_dtypes_of_a_linear_layer():
    folded, plain = pair()
    x, g = torch.randn(5, 3), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y, ours = gradients(folded, x, g.bfloat16(), folded.parameters())
        wanted, theirs = gradients(plain, x, g.bfloat16(), plain.parameters())
    assert y.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(y, wanted)
    for mine, other, share in zip(ours, theirs, (-0.7, 1.0, 1.0), strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, share * other, rtol=0.02, atol=0.02)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_layer_follows_its_scale_without_compiling_again():
    torch._dynamo.reset()
    counts, seen = [], []

    def backend(graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        counts.append(1)
        return aot_eager(graph, inputs)

    layer = ReversedLinear(3, 4)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    x, g = torch.randn(5, 3), torch.randn(5, 4)
    for scale in (1.0, 0.5, 0.25):
        layer.scale = scale
        ours = gradients(compiled, x, g, layer.parameters())[1]
        for mine, other in zip(ours, gradients(layer, x, g, layer.parameters())[1], strict=True):
            torch.testing.assert_close(mine, other)
        seen.append(len(counts))
    assert len(set(seen)) == 1


def test_transforms_are_served_and_exporters_refused():
    layer = ReversedLinear(3, 4, scale=0.5).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    each = torch.func.vmap(torch.func.grad(lambda row: layer(row).sum()))(x)
    torch.testing.assert_close(each, (-0.5 * layer.weight.sum(0)).expand(6, 3))
    with pytest.raises(TracingError, match="symbolic_trace would replace the backward"):
        torch.fx.Tracer().trace(layer)


def test_check_reversal_finds_it_right():
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), ReversedLinear(3, 4), nn.Linear(4, 1))
    assert check_reversal(model, torch.randn(6, 5)).ok


def test_the_norm_of_its_reversed_gradient_is_recorded():
    layer = ReversedLinear(3, 4, scale=0.5, record_norm=True)
    x = torch.randn(5, 3, requires_grad=True)
    layer(x).sum().backward()
    assert layer.readings()["gradient_norm"].item() == pytest.approx(x.grad.norm().item())


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: ReversedLinear(3, 4)(torch.ones(2, 5)), ValueError, "x must have 3 features"),
        (
            lambda: ReversedLinear(3, 4, dtype=torch.complex64)(
                torch.ones(2, 3, dtype=torch.complex64, requires_grad=True)
            ),
            TypeError,
            "takes float16, bfloat16, float32 or float64 tensors, got torch.complex64",
        ),
        (lambda: ReversedLinear(3, 4)("x"), TypeError, "x must be a torch.Tensor, not str"),
        (lambda: ReversedLinear(3, 4, scale="1"), TypeError, "scale must be a number"),
        (lambda: ReversedLinear(3, 4, rule=GUIDED), ValueError, "belong to an activation"),
        (lambda: ReversedLinear(3, 4, alpha=1.0), ValueError, "belong to an activation"),
        (lambda: ReversedLinear(3, 4, activation="rleu"), ValueError, "did you mean 'relu'"),
    ],
)
def test_bad_input_gets_a_sentence(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_it_reads_as_it_was_made():
    text = repr(ReversedLinear(3, 4, scale=0.5, activation="relu"))
    assert "ReversedLinear(\n  in_features=3, out_features=4, bias=True, scale=0.5" in text
    assert "Activation('relu')" in text
    assert pyrevgrad.nn.ReversedLinear is ReversedLinear


@pytest.mark.parametrize("how", ["functional_call", "data", "numpy", "another buffer"])
def test_a_scale_that_came_by_another_way_is_the_one_that_counts(how):
    layer = ReversedLinear(2, 1, bias=False, scale=0.5)
    x = torch.ones(1, 2, requires_grad=True)
    three = torch.tensor(3.0, dtype=torch.float64)
    if how == "functional_call":
        y = torch.func.functional_call(layer, {"scale": three}, (x,))
    else:
        if how == "data":
            layer.scale.data.fill_(3.0)
        elif how == "numpy":
            layer.scale.numpy()[...] = 3.0
        else:
            layer._buffers["scale"] = three
        y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, -3.0 * layer.weight.detach())


def test_it_can_be_built_of_fake_tensors():
    with FakeTensorMode():
        layer = ReversedLinear(3, 2)
        assert layer(torch.ones(4, 3)).shape == (4, 2)


@pytest.mark.parametrize("shape", [(0,), (1,), (2,)], ids=str)
def test_no_number_is_read_from_a_buffer_that_has_dimensions(shape):
    assert ReversedLinear(2, 2)._number(torch.ones(shape, dtype=torch.float64)) is None
