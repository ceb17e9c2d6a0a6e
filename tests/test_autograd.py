"""The binding in eager PyTorch: what is kept and freed, what a live scale does, who computes."""

import gc
import weakref

import pytest
import torch
from expected import BACKENDS, SAMPLE, Serving, gradient, points
from threads import together
from torch import nn
from torch.utils.checkpoint import checkpoint

import pyrevgrad
from pyrevgrad import (
    DECONVNET,
    EXACT,
    GUIDED,
    STRAIGHT_THROUGH,
    activation,
    plan,
    reverse,
    reverse_gradient,
)
from pyrevgrad.rules import RULES

pytestmark = pytest.mark.usefixtures("nodes")

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_sample = pytest.mark.parametrize(("name", "rule"), SAMPLE)
KEEPING = [pair for pair in SAMPLE if plan(pair[0], RULES[pair[1]]).keeps != "nothing"]


def forward(name, rule, x, backend="reference"):
    with pyrevgrad.backend(backend):
        return activation(x, name, RULES[rule])


def packed_by(run):
    """What `run` saves for backward, as saved-tensor hooks see it."""
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return packed, result


# What is kept, and for how long.


@pytest.mark.parametrize(("name", "rule"), KEEPING)
def test_a_second_backward_raises_pytorchs_error(name, rule):
    x, g = points(name, rule)
    y = activation(x.requires_grad_(), name, RULES[rule])
    y.backward(g)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward(g)


@every_backend
@every_sample
def test_retain_graph_gives_the_same_gradient_again(name, rule, backend):
    x, g = points(name, rule)
    y = forward(name, rule, x.requires_grad_(), backend)
    first = torch.autograd.grad(y, x, g, retain_graph=True)[0]
    second = torch.autograd.grad(y, x, g)[0]
    assert torch.equal(first, second)


@every_backend
@pytest.mark.parametrize(("name", "rule"), KEEPING)
def test_what_was_kept_is_freed_by_backward(name, rule, backend):
    class Box:
        def __init__(self, tensor):
            self.tensor = tensor

    boxes = []

    def pack(tensor):
        box = Box(tensor)
        boxes.append(weakref.ref(box))
        return box

    x, g = points(name, rule)
    x = x.requires_grad_() * 1.0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        y = forward(name, rule, x, backend)
    assert boxes and all(box() is not None for box in boxes)
    torch.autograd.grad(y, x, g)
    gc.collect()
    assert all(box() is None for box in boxes)


@pytest.mark.skipif(len(BACKENDS) == 1, reason="the native library is not built")
@every_sample
def test_what_is_kept_has_the_bytes_of_the_plan(name, rule):
    x = torch.linspace(-3, 3, 1000).requires_grad_()
    packed, _ = packed_by(lambda: forward(name, rule, x, "native"))
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in packed}
    assert sum(storages.values()) == 1000 * plan(name, RULES[rule]).bytes_per_element


#: How a saved-tensor hook packs what is kept, and brings it back with the same elements.
REPACKED = {
    "strided": (lambda t: torch.stack([t, torch.zeros_like(t)], -1), lambda t: t[..., 0]),
    "transposed": (lambda t: t.reshape(2, -1).t().contiguous(), lambda t: t.t()),
    "expanded": (lambda t: t[:1].clone(), lambda t: t.expand(16)),
}


@every_backend
@pytest.mark.parametrize("form", REPACKED)
def test_a_mask_is_read_in_order_however_a_hook_brings_it_back(form, backend):
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0])
    x = (signs.repeat(16) if form == "expanded" else torch.randn(128)).requires_grad_()
    pack, unpack = REPACKED[form]
    if backend == "reference":
        shape = x.shape
        whole, unpack = unpack, lambda t: whole(t).reshape(shape)
        if form == "expanded":
            pack, unpack = (lambda t: t[:8].clone()), (lambda t: t.expand(16, 8).reshape(shape))
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        y = forward("relu", "GUIDED", x, backend)
    g = torch.rand(128) + 0.1
    assert torch.equal(torch.autograd.grad(y, x, g)[0], torch.where(x > 0, g, 0.0))


@pytest.mark.parametrize("rule", [DECONVNET, STRAIGHT_THROUGH], ids=repr)
def test_a_rule_that_needs_nothing_keeps_nothing(rule):
    x = torch.randn(100, requires_grad=True)
    assert packed_by(lambda: activation(x, "gelu", rule))[0] == []


def test_reverse_gradient_keeps_nothing_and_not_its_input():
    base = torch.randn(100, requires_grad=True)
    watches = []

    def run():
        x = base * 1.0
        watches.append(weakref.ref(x))
        return reverse_gradient(x, torch.tensor(0.5)).sum()

    packed, y = packed_by(run)
    gc.collect()
    assert packed == [] and watches[0]() is None
    y.backward()
    assert torch.equal(base.grad, torch.full((100,), -0.5))


@every_backend
@every_sample
def test_nothing_is_kept_where_no_gradient_is_needed(name, rule, backend):
    x, _ = points(name, rule)

    def run():
        with torch.no_grad():
            inside = forward(name, rule, x.clone().requires_grad_(), backend)
        return inside, forward(name, rule, x, backend)

    packed, outputs = packed_by(run)
    assert packed == []
    for y in outputs:
        assert y.grad_fn is None and not y.requires_grad


@every_sample
def test_inference_mode_gives_the_same_value_and_no_graph(name, rule):
    x, _ = points(name, rule)
    y = activation(x.requires_grad_(), name, RULES[rule])
    with torch.inference_mode():
        inside = activation(x, name, RULES[rule])
    assert inside.is_inference() and inside.grad_fn is None
    assert torch.equal(inside, y)


def test_reverse_gradient_without_a_gradient_is_a_plain_view():
    x = torch.randn(3)
    with torch.no_grad():
        inside = reverse_gradient(x.clone().requires_grad_())
    outside = reverse_gradient(x)
    assert inside.grad_fn is None and outside.grad_fn is None
    assert outside.data_ptr() == x.data_ptr()
    outside.add_(1)


# A live scale.


@every_backend
@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "identity"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_scale_changed_between_forward_and_backward_is_honoured(name, dtype, backend):
    x, g = points(name, "EXACT")
    x.requires_grad_()
    scale = torch.tensor(1.0, dtype=dtype)
    with pyrevgrad.backend(backend):
        y = activation(x, name, reverse(scale))
    for new in (0.25, -2.0):
        scale.fill_(new)
        (gx,) = torch.autograd.grad(y, x, g, retain_graph=True)
        torch.testing.assert_close(gx, gradient(name, "EXACT", x, g, -new).detach())


def test_a_scale_changed_between_forward_and_backward_is_honoured_by_reverse_gradient():
    x = torch.ones(3, requires_grad=True)
    scale = torch.tensor(1.0)
    y = reverse_gradient(x, scale)
    scale.fill_(0.25)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((3,), -0.25))


def test_no_gradient_flows_to_the_scale():
    x, scale = torch.ones(3, requires_grad=True), torch.tensor(0.5)
    y = activation(x, "tanh", reverse(scale))
    (gx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    gx.sum().backward()
    assert scale.grad is None and not scale.requires_grad


def test_a_scale_in_half_precision_keeps_its_own_rounding_and_no_more():
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.3, dtype=torch.bfloat16)
    (gx,) = torch.autograd.grad(reverse_gradient(x, scale).sum(), x)
    assert gx.item() == -0.30078125


# Who computes.


@pytest.mark.skipif(len(BACKENDS) == 1, reason="the native library is not built")
@every_sample
def test_a_backward_runs_on_the_backend_of_its_forward(name, rule):
    x, g = points(name, rule)
    x.requires_grad_()
    for chosen, other in (("reference", "native"), ("native", "reference")):
        y = forward(name, rule, x, chosen)
        with Serving() as serving:
            with pyrevgrad.backend(other):
                torch.autograd.grad(y, x, g, retain_graph=True)
            assert serving.backend == chosen
            torch.autograd.grad(y, x, g)
            assert serving.backend == chosen


# Threads, checkpoints, autocast, hooks.


@every_backend
def test_many_threads_run_backward_at_once(backend):
    x, g = points("tanh", "reverse")
    wanted = gradient("tanh", "reverse", x, g).detach()
    shared = forward("tanh", "reverse", shared_x := x.clone().requires_grad_(), backend)
    found = []

    def work():
        for _ in range(20):
            own = x.clone().requires_grad_()
            with torch.enable_grad():
                activation(own, "tanh", RULES["reverse"]).backward(g)
            found.append(own.grad)
            found.append(torch.autograd.grad(shared, shared_x, g, retain_graph=True)[0])

    together(work, 6)
    assert len(found) == 240
    for gx in found:
        torch.testing.assert_close(gx, wanted)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("inplace", [False, True])
@every_sample
def test_a_checkpoint_keeps_the_modified_gradient(name, rule, inplace, reentrant):
    x, g = points(name, rule)
    x.requires_grad_()

    def block(at):
        return activation(at * 1.5, name, RULES[rule], inplace=inplace) * 2.0

    y = checkpoint(block, x, use_reentrant=reentrant)
    y.backward(g)
    wanted = 1.5 * gradient(name, rule, 1.5 * x.detach(), 2.0 * g)
    torch.testing.assert_close(x.grad, wanted.detach())


def test_a_checkpoint_keeps_no_mask():
    x = torch.randn(1000, requires_grad=True)

    def block(at):
        return activation(at, "relu", GUIDED)

    packed, _ = packed_by(lambda: checkpoint(block, x, use_reentrant=False))
    assert all(one is x for one in packed)


def test_a_checkpoint_reads_a_scale_when_backward_runs():
    x, scale = torch.ones(2, requires_grad=True), torch.tensor(1.0)
    y = checkpoint(lambda at: reverse_gradient(at, scale), x, use_reentrant=False)
    scale.fill_(3.0)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((2,), -3.0))


@pytest.mark.parametrize("rule", ["EXACT", "reverse", "GUIDED", "DECONVNET"])
@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_autocast_leaves_the_gradient_modified(name, rule):
    torch.manual_seed(0)
    linear = nn.Linear(8, 16)
    x = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = linear(x)
        h.retain_grad()
        y = activation(h, name, RULES[rule])
    g = torch.randn(4, 16).bfloat16()
    y.backward(g)
    assert y.dtype == h.grad.dtype == torch.bfloat16
    assert linear.weight.grad.dtype == torch.float32
    wanted = gradient(name, rule, h.detach().double(), g.double()).detach()
    torch.testing.assert_close(h.grad.double(), wanted, rtol=2e-2, atol=4e-3)


@every_sample
def test_hooks_see_the_gradient_before_and_after_the_rule(name, rule):
    x, g = points(name, rule)
    x = x.requires_grad_() * 1.0
    seen = {}
    x.register_hook(lambda gx: seen.update(x=gx))
    y = activation(x, name, RULES[rule])
    y.register_hook(lambda gy: seen.update(y=gy))
    y.backward(g)
    assert torch.equal(seen["y"], g)
    torch.testing.assert_close(seen["x"], gradient(name, rule, x, g).detach())


def test_a_hook_that_changes_the_gradient_is_obeyed_before_the_gate():
    x = torch.tensor([1.0, 1.0], requires_grad=True)
    y = activation(x, "relu", GUIDED)
    y.register_hook(lambda g: -g)
    y.backward(torch.tensor([1.0, -2.0]))
    assert torch.equal(x.grad, torch.tensor([0.0, 2.0]))


def test_one_tensor_into_two_activations_gets_each_ones_own_gradient():
    """A hook on the shared tensor would gate the sum; a rule gates each call's own gradient."""
    x = torch.tensor([2.0], requires_grad=True)
    (3 * activation(x, "relu", GUIDED) - 5 * activation(x, "relu", GUIDED)).backward()
    assert x.grad.item() == 3.0


def test_a_pre_activation_residual_keeps_its_skip_path_plain():
    h = torch.tensor([2.0, 2.0], requires_grad=True)
    (h + 4 * activation(h, "relu", DECONVNET)).backward(torch.tensor([-1.0, 1.0]))
    assert torch.equal(h.grad, torch.tensor([-1.0, 5.0]))


@every_backend
@every_sample
def test_a_sums_expanded_gradient_is_read_as_ones(name, rule, backend):
    x, _ = points(name, rule)
    x = x[:30].reshape(5, 6).requires_grad_()
    forward(name, rule, x, backend).sum().backward()
    wanted = gradient(name, rule, x.detach(), torch.ones_like(x)).detach()
    torch.testing.assert_close(x.grad, wanted)


@every_backend
@every_sample
def test_batched_gradients_are_those_of_one_at_a_time(name, rule, backend):
    x, _ = points(name, rule)
    y = forward(name, rule, x.requires_grad_(), backend)
    g = torch.randn(3, *x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    (batched,) = torch.autograd.grad(y, x, g, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in g]
    torch.testing.assert_close(batched, torch.stack(single))


def test_a_subclass_of_tensor_gets_the_modified_gradient():
    class Tagged(torch.Tensor):
        pass

    x = torch.tensor([1.0, -1.0]).as_subclass(Tagged).requires_grad_()
    activation(x, "relu", EXACT.scaled(-2.0)).sum().backward()
    assert torch.equal(x.grad.as_subclass(torch.Tensor), torch.tensor([-2.0, 0.0]))


def test_the_first_call_may_be_made_under_fake_tensors():
    """Nothing that a fake-tensor block sees first may stay behind for the calls after it."""
    fake = torch._subclasses.fake_tensor.FakeTensorMode()
    rule = EXACT.scaled(0.0625)
    with fake:
        assert activation(torch.ones(3), "softsign", rule).shape == (3,)
    x = torch.zeros(3, requires_grad=True)
    activation(x, "softsign", rule).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 0.0625))
