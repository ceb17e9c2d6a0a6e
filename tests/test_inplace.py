"""In place: the overwritten input, views, chains, and what PyTorch's version counter must see."""

import functools

import pytest
import torch
from expected import BACKENDS, SAMPLE, gradient, points, value
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import pyrevgrad
from pyrevgrad import EXACT, GUIDED, activation, reverse, reverse_gradient
from pyrevgrad.activations import ACTIVATIONS
from pyrevgrad.rules import RULES

pytestmark = pytest.mark.usefixtures("nodes")

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_sample = pytest.mark.parametrize(("name", "rule"), SAMPLE)


def overwrite(x, name, rule, backend="reference"):
    with pyrevgrad.backend(backend):
        return activation(x, name, RULES[rule], inplace=True)


@every_backend
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_in_place_returns_its_input_with_the_value_and_the_modified_gradient(name, rule, backend):
    leaf, g = points(name, rule)
    x = leaf.requires_grad_() * 1.0
    pointer, version = x.data_ptr(), x._version
    y = overwrite(x, name, rule, backend)
    assert y is x and y.data_ptr() == pointer and y._version > version
    torch.testing.assert_close(y.detach(), value(name, leaf.detach()))
    y.backward(g)
    torch.testing.assert_close(leaf.grad, gradient(name, rule, leaf.detach(), g).detach())


@every_backend
@every_sample
def test_in_place_on_a_view_changes_the_base_and_its_gradient(name, rule, backend):
    x, g = (part[:30].reshape(5, 6) for part in points(name, rule))
    leaf = x.clone().requires_grad_()
    base = leaf * 1.0
    overwrite(base[1:4, ::2], name, rule, backend)
    expected_value, expected_gradient = x.clone(), g.clone()
    inner = (slice(1, 4), slice(None, None, 2))
    expected_value[inner] = value(name, x[inner])
    expected_gradient[inner] = gradient(name, rule, x[inner], g[inner]).detach()
    torch.testing.assert_close(base.detach(), expected_value)
    base.backward(g)
    torch.testing.assert_close(leaf.grad, expected_gradient)


@every_backend
@every_sample
@pytest.mark.parametrize("layout", ["transposed", "channels_last", "strided"])
def test_in_place_keeps_the_strides_of_any_layout(name, rule, layout, backend):
    x, g = (part[:24].reshape(2, 3, 2, 2) for part in points(name, rule))
    leaf = x.clone().requires_grad_()
    laid = {
        "transposed": lambda t: t.transpose(1, 3).contiguous().transpose(1, 3),
        "channels_last": lambda t: t.to(memory_format=torch.channels_last),
        "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    }[layout](leaf * 1.0)
    strides = laid.stride()
    y = overwrite(laid, name, rule, backend)
    assert y.stride() == strides
    y.backward(g)
    torch.testing.assert_close(leaf.grad, gradient(name, rule, x, g).detach())


@every_backend
def test_a_chain_of_activations_in_place_applies_each_rule_at_its_own_input(backend):
    chain = [("leaky_relu", "reverse"), ("tanh", "reverse"), ("gelu", "guided_slope")]
    chain += [("relu", "GUIDED"), ("sigmoid", "reverse"), ("hardtanh", "STRAIGHT_THROUGH")]
    x = torch.tensor([-2.0, -0.4, 0.3, 1.2], dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    y = leaf * 1.0
    inputs = [x]
    for name, rule in chain:
        overwrite(y, name, rule, backend)
        inputs.append(value(name, inputs[-1]))
    torch.testing.assert_close(y.detach(), inputs[-1])
    g = torch.tensor([1.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    y.backward(g)
    for (name, rule), at in zip(reversed(chain), reversed(inputs[:-1]), strict=True):
        g = gradient(name, rule, at, g).detach()
    torch.testing.assert_close(leaf.grad, g)


@every_backend
@every_sample
def test_pytorch_notices_that_a_tensor_kept_elsewhere_was_overwritten(name, rule, backend):
    leaf = torch.zeros(4, requires_grad=True)
    x = leaf.exp()
    overwrite(x, name, rule, backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


@every_backend
@every_sample
def test_pytorch_notices_an_overwriting_under_no_grad_too(name, rule, backend):
    leaf = torch.zeros(4, requires_grad=True)
    x = leaf.exp()
    with torch.no_grad():
        overwrite(x, name, rule, backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


@every_backend
@every_sample
def test_without_a_gradient_the_input_is_overwritten_and_nothing_recorded(name, rule, backend):
    x, _ = points(name, rule)
    wanted = value(name, x)
    y = overwrite(x, name, rule, backend)
    assert y is x and y.grad_fn is None
    torch.testing.assert_close(x, wanted)


@pytest.mark.parametrize("made_inside", [False, True])
def test_inference_mode_may_overwrite(made_inside):
    x = torch.tensor([-1.0, 2.0])
    with torch.inference_mode():
        at = x.clone() if made_inside else x
        activation(at, "relu", inplace=True)
    assert at.tolist() == [0.0, 2.0]


def test_under_no_grad_a_leaf_may_be_overwritten():
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    with torch.no_grad():
        activation(x, "relu", inplace=True)
    assert x.tolist() == [0.0, 2.0] and x.is_leaf


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "identity"])
def test_in_place_with_a_live_scale_reads_it_when_backward_runs(name):
    leaf, g = points(name, "EXACT")
    scale = torch.tensor(1.0)
    y = activation(leaf.requires_grad_() * 1.0, name, reverse(scale), inplace=True)
    scale.fill_(2.0)
    y.backward(g)
    torch.testing.assert_close(leaf.grad, gradient(name, "EXACT", leaf, g, -2.0).detach())


def test_in_place_on_a_negated_view_is_that_of_its_values():
    z = torch.tensor([1 + 2j, 1 - 3j])
    negated = z.conj().imag
    assert negated.is_neg()
    assert activation(negated, "relu", inplace=True).tolist() == [0.0, 3.0]
    assert z.imag.tolist() == [0.0, -3.0]


# Views: what reverse_gradient returns is one, and PyTorch guards it.


@pytest.mark.parametrize("change", ["mul_", "activation"])
def test_in_place_on_the_result_of_reverse_gradient_raises_pytorchs_error(change):
    base = torch.tensor([-1.0, 2.0], requires_grad=True) * 1.0
    y = reverse_gradient(base, 0.5)
    with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
        y.mul_(2) if change == "mul_" else activation(y, "relu", GUIDED, inplace=True)
    assert base.tolist() == [-1.0, 2.0]


@pytest.mark.parametrize("change", ["mul_", "activation"])
def test_in_place_on_the_base_of_reverse_gradient_raises_pytorchs_error(change):
    base = torch.tensor([-1.0, 2.0], requires_grad=True) * 1.0
    y = reverse_gradient(base, 0.5)
    base.mul_(2) if change == "mul_" else activation(base, "relu", GUIDED, inplace=True)
    with pytest.raises(RuntimeError, match="its base or another view of its base has been modif"):
        y.sum().backward()


@pytest.mark.parametrize("rule", [EXACT, GUIDED], ids=repr)
@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_in_place_on_one_of_several_views_raises_before_anything_changes(name, rule):
    base = torch.tensor([[-1.0, 2.0], [3.0, -4.0]], requires_grad=True) * 1.0
    part = base.unbind(0)[0]
    with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
        activation(part, name, rule, inplace=True)
    assert base.tolist() == [[-1.0, 2.0], [3.0, -4.0]]


@pytest.mark.parametrize(
    ("name", "rule"), [("relu", "GUIDED"), ("gelu", "EXACT"), ("leaky_relu", "reverse")]
)
def test_a_result_that_is_not_kept_may_be_overwritten(name, rule):
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    activation(x, name, RULES[rule]).mul_(3.0).sum().backward()
    wanted = gradient(name, rule, x.detach(), torch.full_like(x, 3.0))
    torch.testing.assert_close(x.grad, wanted.detach())


@pytest.mark.parametrize("rule", [EXACT, reverse(0.3)], ids=repr)
def test_a_kept_output_that_is_overwritten_raises_pytorchs_error(rule):
    y = activation(torch.ones(3, requires_grad=True), "tanh", rule)
    y.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


OVERLAPPING = {
    "unfolded": lambda base: base.unfold(0, 2, 1),
    "strided": lambda base: base.as_strided((2, 2), (1, 1)),
    "of interlaced rows": lambda base: base.as_strided((2, 3), (3, 2)),
}


@every_backend
@pytest.mark.parametrize("needs", [False, True])
@pytest.mark.parametrize("how", OVERLAPPING)
@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_in_place_on_a_tensor_that_overlaps_itself_is_refused(name, how, needs, backend):
    base = torch.full((9,), -2.0, requires_grad=needs) * 1.0
    with (
        pyrevgrad.backend(backend),
        pytest.raises(ValueError, match="on a tensor that overlaps itself would write"),
    ):
        activation(OVERLAPPING[how](base), name, inplace=True)
    assert base.tolist() == [-2.0] * 9


@every_backend
@pytest.mark.parametrize("strides", [(1, 2, 1, 0), (0, 0, 0, 0)])
def test_in_place_on_nothing_is_no_matter_of_strides(strides, backend):
    x = torch.empty_strided((1, 0, 2, 2), strides)
    with pyrevgrad.backend(backend):
        assert activation(x, "relu", inplace=True) is x


@pytest.mark.parametrize("rule", ["EXACT", "reverse", "GUIDED"])
@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_selective_checkpointing_runs_what_overwrites_again(name, rule):
    """What a policy saves is not run again; what overwrites returns nothing to save."""

    def policy(context, operator, *args, **kwargs):
        own = "pyrevgrad" in str(operator)
        return CheckpointPolicy.MUST_SAVE if own else CheckpointPolicy.PREFER_RECOMPUTE

    def body(x):
        return overwrite(x * 2, name, rule, BACKENDS[-1]).sin()

    x = torch.tensor([-0.7, 0.1, 0.6, 1.2], requires_grad=True)
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    y = checkpoint(body, x, use_reentrant=False, context_fn=contexts)
    plain = body(x)
    assert torch.equal(y, plain)
    got, want = (torch.autograd.grad(out.sum(), x)[0] for out in (y, plain))
    assert torch.equal(got, want)


class Own(torch.Tensor):
    """A subclass that adds nothing."""


@every_sample
def test_a_subclass_may_be_overwritten(name, rule):
    leaf, g = points(name, rule)
    x = (leaf.requires_grad_() * 1.0).as_subclass(Own)
    assert activation(x, name, RULES[rule], inplace=True) is x
    x.backward(g)
    torch.testing.assert_close(leaf.grad, gradient(name, rule, leaf.detach(), g).detach())


@pytest.mark.parametrize("kind", [torch.Tensor, Own])
def test_a_leaf_of_any_class_is_refused(kind):
    leaf = torch.full((3,), -2.0).as_subclass(kind).requires_grad_()
    with pytest.raises(ValueError, match="in place on a leaf that requires grad"):
        activation(leaf, "relu", inplace=True)
    assert leaf.tolist() == [-2.0] * 3
