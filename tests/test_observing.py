"""What can be logged of a reversal: λ and the norm of the reversed gradient, without waiting."""

import copy
import math

import pytest
import torch
import torch._dynamo.testing
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from pyrevgrad.nn import GradientReversal, ReversedLinear
from pyrevgrad.observing import observed
from pyrevgrad.schedules import GaninSchedule, LinearSchedule


def test_the_norm_of_the_reversed_gradient_is_recorded():
    layer = GradientReversal(0.5, record_norm=True)
    assert layer.gradient_norm.isnan() and layer.readings()["gradient_norm"].isnan()
    for g in ([3.0, 4.0], [0.0, 1.0]):
        x = torch.ones(2, requires_grad=True)
        layer(x).backward(torch.tensor(g))
        assert layer.gradient_norm.item() == 0.5 * math.hypot(*g)
        assert x.grad.tolist() == [-0.5 * part for part in g]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_recorded_norm_does_not_overflow_in_half_types(dtype):
    layer = GradientReversal(1.0, record_norm=True)
    x = torch.ones(10_000, dtype=dtype, requires_grad=True)
    layer(x).backward(torch.full_like(x, 1024.0))
    assert layer.gradient_norm.item() == pytest.approx(1024.0 * 100, rel=1e-6)
    assert layer.gradient_norm.dtype == torch.float64


def test_recording_changes_no_value_and_no_second_derivative():
    x = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    found = []
    for record in (False, True):
        layer = GradientReversal(0.5, record_norm=record)
        y = layer(x)
        (gx,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        found.append((y, gx, torch.autograd.grad(gx.sum(), x)[0]))
    assert all(map(torch.equal, *found))


def test_inside_torch_func_the_gradient_is_right_and_nothing_is_recorded():
    for made in (GradientReversal, lambda *a, **k: ReversedLinear(3, 2, scale=a[0], **k)):
        torch.manual_seed(0)
        plain, recording = made(0.5), made(0.5, record_norm=True)
        recording.load_state_dict(plain.state_dict())
        found = [
            take(lambda x, layer=layer: layer(x).sum())(torch.ones(3))
            for layer in (plain, recording)
            for take in (torch.func.grad, torch.func.jacrev)
        ]
        assert all(torch.equal(gradient, found[0]) for gradient in found)
        assert found[0].abs().sum() > 0 and recording.gradient_norm.isnan()


RECORDING = pytest.mark.parametrize("layer", [
    GradientReversal(0.5, record_norm=True),
    torch.nn.Sequential(ReversedLinear(3, 3, bias=False, scale=0.5, record_norm=True)),
], ids=["GradientReversal", "ReversedLinear"])  # fmt: skip


def reversed_jacobian(layer):
    """What backward multiplies by: −λ times the weight, where there is one."""
    return -0.5 * (layer[0].weight.detach() if hasattr(layer, "__len__") else torch.eye(3))


def norm_of(layer):
    return (layer[0] if hasattr(layer, "__len__") else layer).gradient_norm


@RECORDING
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_a_batch_of_gradients_is_right_and_nothing_is_recorded(layer):
    layer = copy.deepcopy(layer)
    x = torch.randn(3, requires_grad=True)
    y = layer(x)
    found = [
        torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True, retain_graph=True)[0],
        torch.func.vmap(lambda g: torch.autograd.grad(y, x, g, retain_graph=True)[0])(torch.eye(3)),
        torch.autograd.functional.jacobian(layer, x, vectorize=True),
    ]
    for jacobian in found:
        torch.testing.assert_close(jacobian, reversed_jacobian(layer))
    assert norm_of(layer).isnan()
    y.backward(torch.tensor([3.0, 4.0, 0.0]))
    assert norm_of(layer).isfinite()


@RECORDING
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")
def test_in_forward_mode_the_tangent_is_right_and_nothing_is_recorded(layer):
    layer = copy.deepcopy(layer)
    x, tangent = torch.randn(3, requires_grad=True), torch.randn(3)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent))).tangent
    torch.testing.assert_close(found, reversed_jacobian(layer) @ tangent)
    assert norm_of(layer).isnan()


def test_the_tangent_of_a_gradient_passes_and_its_norm_is_not_recorded():
    x, tangent = torch.randn(3, requires_grad=True), torch.randn(3)
    norm = torch.tensor(math.nan)
    y = observed(x, norm)
    with forward_ad.dual_level():
        (gx,) = torch.autograd.grad(y, x, forward_ad.make_dual(torch.ones(3), tangent))
        assert torch.equal(forward_ad.unpack_dual(gx).tangent, tangent)
    assert norm.isnan()


def test_without_being_asked_nothing_is_recorded():
    layer = GradientReversal(0.5)
    assert layer.gradient_norm is None and list(layer.readings()) == ["scale"]


def test_readings_are_copies_that_later_steps_leave_alone():
    schedule = LinearSchedule(2)
    layer = GradientReversal(schedule, record_norm=True)
    readings = []
    for _ in range(3):
        x = torch.ones(1, requires_grad=True)
        layer(x).backward()
        readings.append(layer.readings())
        schedule.step()
    assert [reading["scale"].item() for reading in readings] == [0.0, 0.5, 1.0]
    assert [reading["gradient_norm"].item() for reading in readings] == [0.0, 0.5, 1.0]


class NoValueRead(TorchDispatchMode):
    """Fails where a tensor's value is asked for, which on a device is a wait."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function), "a value was read"
        return function(*args, **(kwargs or {}))


def test_a_training_step_with_readings_asks_the_device_for_no_value():
    schedule = GaninSchedule(5)
    layer = GradientReversal(schedule, record_norm=True)
    with NoValueRead():
        for _ in range(3):
            x = torch.ones(2, requires_grad=True)
            layer(x).sum().backward()
            layer.readings()
            schedule.step()
    assert layer.scale.item() == schedule.value
    with pytest.raises(AssertionError, match="a value was read"), NoValueRead():
        layer.scale.item()


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_layer_records_the_norm_and_compiles_once():
    schedule = LinearSchedule(4, low=1.0, high=2.0)
    layer = GradientReversal(schedule, record_norm=True)
    counted = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counted, fullgraph=True)
    counts = []
    for _ in range(4):
        x = torch.tensor([3.0, 4.0], requires_grad=True)
        compiled(x).backward(torch.tensor([3.0, 4.0]))
        assert layer.gradient_norm.item() == pytest.approx(5.0 * schedule.value)
        counts.append(counted.frame_count)
        schedule.step()
    assert len(set(counts)) == 1


def test_a_recorded_norm_is_not_saved_and_a_copy_has_its_own():
    layer = GradientReversal(0.5, record_norm=True)
    x = torch.ones(1, requires_grad=True)
    layer(x).backward()
    made = copy.deepcopy(layer)
    layer(x).backward(torch.tensor([8.0]))
    assert (layer.gradient_norm.item(), made.gradient_norm.item()) == (4.0, 0.5)
    assert list(layer.state_dict()) == ["scale"]
