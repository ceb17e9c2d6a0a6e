"""ReversedConv2d: the gradients of a reversal and a convolution, by a kernel over the weights."""

import copy
import pickle

import pytest
import torch
from folded_layers import Operations, gradients
from torch import nn

from pyrevgrad import GUIDED, TracingError, autograd, backend, check_reversal
from pyrevgrad.adversarial import DANN
from pyrevgrad.binding import NODES, WHY
from pyrevgrad.nn import Activation, GradientReversal, ReversedConv2d
from pyrevgrad.schedules import LinearSchedule

pytestmark = pytest.mark.usefixtures("nodes")

GEOMETRIES = [
    {"kernel_size": 1},
    {"kernel_size": 3},
    {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
    {"kernel_size": 3, "padding": 1, "groups": 2},
    {"kernel_size": 3, "padding": (1,), "stride": (2,), "dilation": (1,)},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": (2, 4), "padding": "same"},
    {"kernel_size": (2, 3), "padding": "same"},
    {"kernel_size": (3, 2), "padding": "same"},
    {"kernel_size": 3, "padding": "valid", "stride": 2},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"},
    {"kernel_size": (2, 3), "padding": "same", "padding_mode": "reflect"},
]


def pair(scale=0.7, activation=None, rule=None, dtype=torch.float64, **geometry):
    """A folded layer, and the layers that it stands for, with the same weights."""
    options = {} if activation is None else {"activation": activation, "rule": rule}
    folded = ReversedConv2d(4, 6, scale=scale, dtype=dtype, **geometry, **options)
    plain = nn.Conv2d(4, 6, dtype=dtype, **geometry)
    plain.load_state_dict(dict(folded.named_parameters()))
    layers = [GradientReversal(scale), plain]
    return folded, nn.Sequential(*layers, *([Activation(activation, rule)] if options else []))


def both(folded, plain, x, g=None):
    """Value and gradients of the two."""
    g = torch.randn_like(plain(x)) if g is None else g
    found = []
    for function, layer in ((folded, folded), (plain, plain)):
        y, made = gradients(function, x, g, layer.parameters())
        found.append([y.detach(), *made])
    return found


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_gradients_are_those_of_a_reversal_and_a_convolution(geometry, bias):
    folded, plain = pair(bias=bias, **geometry)
    for x in (torch.randn(3, 4, 7, 8), torch.randn(4, 7, 8), torch.randn(1, 4, 9, 9)):
        for mine, other in zip(*both(folded, plain, x.double()), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, -2.0, torch.tensor(0.3)])
@pytest.mark.parametrize("size", [1, 12])
def test_weights_or_gradients_whichever_are_fewer_carry_the_scale(size, scale):
    folded, plain = pair(scale, kernel_size=1)
    x = torch.randn(1, 4, size, size, dtype=torch.float64)
    for mine, other in zip(*both(folded, plain, x), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [3, 12])
def test_every_dtype_is_as_exact_as_two_layers(size, dtype):
    folded, plain = pair(0.3, kernel_size=3, padding=1, dtype=dtype)
    x, g = torch.randn(2, 4, size, size, dtype=dtype), torch.randn(2, 6, size, size, dtype=dtype)
    ours, theirs = both(folded, plain, x, g)
    exact = copy.deepcopy(plain).double()
    _, wanted = gradients(exact, x.double(), g.double(), exact.parameters())
    for mine, other, right in zip(ours[1:], theirs[1:], wanted, strict=True):
        limit = (other.double() - right).abs().max()
        assert mine.dtype == dtype
        assert (mine.double() - right).abs().max() <= 2 * limit + 1e-6


@pytest.mark.parametrize("how", ["channels_last", "expanded", "transposed"])
def test_layouts_of_inputs_and_gradients_are_read_right(how):
    folded, plain = pair(kernel_size=3, padding=1)
    x, g = torch.randn(2, 4, 5, 5).double(), torch.randn(2, 6, 5, 5).double()
    if how == "channels_last":
        x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
        folded, plain = (layer.to(memory_format=torch.channels_last) for layer in (folded, plain))
    elif how == "expanded":
        g = torch.ones((), dtype=torch.float64).expand(2, 6, 5, 5)
    else:
        x, g = x.transpose(2, 3), g.transpose(2, 3)
    ours, theirs = both(folded, plain, x, g)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
    assert ours[1].stride() == theirs[1].stride()


def test_a_geometry_that_is_changed_later_is_the_one_that_counts():
    folded, plain = pair(kernel_size=3)
    for layer in (folded, plain[1]):
        layer.stride, layer.padding, layer.dilation = (2, 1), (1, 2), 2
    for mine, other in zip(*both(folded, plain, torch.randn(2, 4, 7, 8).double()), strict=True):
        torch.testing.assert_close(mine, other)


def test_an_activation_may_follow():
    folded, plain = pair(activation="relu", rule=GUIDED, kernel_size=1)
    for mine, other in zip(*both(folded, plain, torch.randn(2, 4, 5, 5).double()), strict=True):
        torch.testing.assert_close(mine, other)


def test_only_what_is_asked_for_is_made():
    folded, plain = pair(kernel_size=3)
    for layer in (folded, plain):
        layer.requires_grad_(False)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    at = x.clone().requires_grad_()
    (ours,) = torch.autograd.grad(folded(at).sum(), at)
    (theirs,) = torch.autograd.grad(plain(at).sum(), at)
    torch.testing.assert_close(ours, theirs)
    assert folded(x).grad_fn is None


@pytest.mark.skipif(NODES is None, reason=f"no C++ nodes: {WHY}")
@pytest.mark.parametrize("size", [3, 12])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_node_and_the_function_agree_bit_for_bit(dtype, size, monkeypatch):
    folded = ReversedConv2d(4, 6, 3, padding=1, scale=0.3, dtype=dtype)
    x, g = torch.randn(2, 4, size, size, dtype=dtype), torch.randn(2, 6, size, size, dtype=dtype)
    found = []
    for nodes in (NODES, None):
        monkeypatch.setattr(autograd, "NODES", nodes)
        y, made = gradients(folded, x, g, folded.parameters())
        name = "FoldedConvolutionBackward" if nodes else "_FoldedConvolutionBackward"
        assert y.grad_fn.name() == name
        found.append([y, *made])
    assert all(map(torch.equal, *found))


def test_a_weight_that_was_overwritten_is_pytorchs_error():
    layer, x = ReversedConv2d(3, 4, 1), torch.randn(2, 3, 5, 5, requires_grad=True)
    y = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradients_that_nobody_asks_for_are_not_made(nodes):
    layer, x = ReversedConv2d(3, 4, 1), torch.randn(2, 3, 9, 9)
    _, convolutions, _ = counted([layer.requires_grad_(False)], x)
    assert convolutions == [[True, False, False]]
    layer.requires_grad_(True)
    x = x.requires_grad_()
    y, seen = layer(x), []

    class Masks(Operations):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "convolution_backward" in str(function):
                seen.append(args[-1])
            return super().__torch_dispatch__(function, types, args, kwargs)

    with Masks():
        torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
        torch.autograd.grad(y, layer.weight, torch.ones_like(y))
    if nodes == "c++":
        assert seen == [[True, False, False], [False, True, False]]


def test_derivatives_of_every_gradient_are_those_of_the_two_layers():
    folded, plain = pair(kernel_size=3, padding=1)
    start = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    at_y = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    found = []
    for function in (folded, plain):
        x, g = start.clone().requires_grad_(), at_y.clone().requires_grad_()
        wanted = [x, *function.parameters()]
        first = torch.autograd.grad(function(x), wanted, g, create_graph=True)
        total = sum(one.sin().sum() for one in first)
        second = torch.autograd.grad(total, [*wanted, g], create_graph=True, allow_unused=True)
        (third,) = torch.autograd.grad(second[0].sin().sum(), x)
        found.append([*[it for it in second if it is not None], third])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)


def test_a_batch_of_gradients_is_served_as_one():
    folded, plain = pair(kernel_size=3)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    many = torch.randn(3, 2, 6, 3, 3, dtype=torch.float64)
    found = [
        torch.autograd.grad(layer(x), [x, *layer.parameters()], many, is_grads_batched=True)
        for layer in (folded, plain)
    ]
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other)


# What it costs.


def counted(layers, x):
    """Elements that multiplications make in a step, and the convolutions of its backward."""
    sizes, convolutions = [], []

    class Sizes(Operations):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = super().__torch_dispatch__(function, types, args, kwargs)
            if "pyrevgrad.backward" in str(function):
                sizes.append(made.numel())
            if "convolution_backward" in str(function):
                convolutions.append(args[-1])
            return made

    y = nn.Sequential(*layers)(x.detach().requires_grad_())
    g = torch.ones_like(y)
    with Sizes() as mode:
        y.backward(g)
    return sizes, convolutions, len(mode.seen)


@pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5), LinearSchedule(4)], ids=str)
def test_the_reversal_is_one_kernel_over_the_weights(scale):
    x = torch.randn(2, 4, 16, 16)
    sizes, convolutions, count = counted([ReversedConv2d(4, 6, 1, scale=scale)], x)
    assert (sizes, convolutions) == ([24], [[True, True, True]])
    _, _, plain = counted([nn.Conv2d(4, 6, 1)], x)
    assert count == plain + 1
    sizes, _, _ = counted([GradientReversal(0.5), nn.Conv2d(4, 6, 1)], x)
    assert sizes == [x.numel()]


def test_the_reversal_is_one_kernel_over_the_gradient_where_that_is_smaller():
    sizes, convolutions, _ = counted([ReversedConv2d(4, 6, 3)], torch.randn(2, 4, 3, 3))
    assert sizes == [12]
    assert convolutions == [[True, False, False], [False, True, True]]


def test_nothing_is_kept_for_the_reversal():
    def kept(layer):
        seen = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: seen.append(tensor.numel()), lambda it: it
        ):
            layer(torch.randn(1, 4, 5, 5, requires_grad=True))
        return sorted(seen)

    assert kept(ReversedConv2d(4, 6, 3)) == kept(nn.Conv2d(4, 6, 3))


# What it is.


def test_its_state_is_that_of_a_convolution_and_the_scale():
    layer, plain = ReversedConv2d(4, 6, 3, scale=0.25), nn.Conv2d(4, 6, 3)
    assert sorted(layer.state_dict()) == ["bias", "scale", "weight"]
    missing = layer.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys == ["scale"] and missing.unexpected_keys == []
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=0)
    torch.manual_seed(3)
    fresh = ReversedConv2d(4, 6, 3)
    torch.manual_seed(3)
    assert torch.equal(fresh.weight, nn.Conv2d(4, 6, 3).weight)
    assert layer.half().scale.dtype == torch.float64
    for made in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert made.scale.item() == 0.25 and made.stride == (1, 1)


def test_it_follows_its_schedule_until_backward_runs():
    schedule = LinearSchedule(2)
    layer = ReversedConv2d(1, 1, 1, bias=False, scale=schedule)
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    y = layer(x)
    schedule.step()
    y.sum().backward()
    torch.testing.assert_close(x.grad, (-0.5 * layer.weight).expand(1, 1, 2, 2))


def test_autocast_gives_the_dtypes_of_a_convolution():
    folded, plain = pair(kernel_size=3, dtype=torch.float32)
    x, g = torch.randn(2, 4, 5, 5), torch.randn(2, 6, 3, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = both(folded, plain, x, g)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=0.02, atol=0.05)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_layer_follows_its_scale_without_compiling_again():
    torch._dynamo.reset()
    graphs = []

    def counting(graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        graphs.append(1)
        return aot_eager(graph, inputs)

    folded, plain = pair(kernel_size=3, padding="same", dtype=torch.float32)
    compiled = torch.compile(folded, backend=counting, fullgraph=True)
    x, g = torch.randn(2, 4, 5, 5), torch.randn(2, 6, 5, 5)
    seen = []
    for scale in (1.0, 0.5, 0.25):
        folded.scale = plain[0].scale = scale
        ours = gradients(compiled, x, g, folded.parameters())[1]
        theirs = gradients(plain, x, g, plain.parameters())[1]
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other)
        seen.append(len(graphs))
    assert len(set(seen)) == 1


def test_transforms_are_served_and_exporters_refused():
    layer = ReversedConv2d(1, 1, 1, bias=False, scale=0.5)
    x = torch.randn(6, 1, 2, 2)
    each = torch.func.vmap(torch.func.grad(lambda one: layer(one).sum()))(x)
    torch.testing.assert_close(each, (-0.5 * layer.weight).expand(6, 1, 2, 2))
    with pytest.raises(TracingError, match="symbolic_trace would replace the backward"):
        torch.fx.Tracer().trace(layer)


def test_the_reference_serves_it_where_it_is_asked_for():
    folded, plain = pair(kernel_size=3)
    with backend("reference"):
        for mine, other in zip(*both(folded, plain, torch.randn(2, 4, 5, 5).double()), strict=True):
            torch.testing.assert_close(mine, other)


def test_the_norm_of_its_reversed_gradient_is_recorded():
    layer = ReversedConv2d(4, 6, 3, scale=0.5, record_norm=True)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    layer(x).sum().backward()
    assert layer.readings()["gradient_norm"].item() == pytest.approx(x.grad.norm().item())


def test_check_reversal_and_dann_find_it():
    head = nn.Sequential(ReversedConv2d(3, 4, 1, activation="relu"), nn.Conv2d(4, 1, 1))
    model = DANN(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 5, 1), head, scale=0.5)
    assert model.reversal is head[0]
    source, target = torch.randn(2, 2, 5, 5), torch.randn(3, 2, 5, 5)
    labels = torch.randint(5, (2, 3, 3))
    assert check_reversal(model, (source, labels, target)).ok
    with pytest.raises(ValueError, match="is a reversal, and the network brings its own"):
        DANN(ReversedConv2d(2, 3, 3), nn.Conv2d(3, 5, 1), nn.Conv2d(3, 1, 1))
    sigmoid = nn.Sequential(ReversedConv2d(3, 1, 1, activation="sigmoid"))
    with pytest.raises(ValueError, match="domain_head ends in a sigmoid"):
        DANN(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 5, 1), sigmoid)(source, labels, target)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: ReversedConv2d(3, 4, 1)(torch.ones(2, 5, 4, 4)),
            ValueError,
            r"x must be of shape \(batch, 3, height, width\) or \(3, height, width\), got "
            r"\(2, 5, 4, 4\)",
        ),
        (lambda: ReversedConv2d(3, 4, 1)(torch.ones(3, 4)), ValueError, r"got \(3, 4\)"),
        (lambda: ReversedConv2d(3, 4, 1)("x"), TypeError, "x must be a torch.Tensor, not str"),
        (lambda: ReversedConv2d(3, 4, 1, groups=2), ValueError, "divisible by groups"),
        (lambda: ReversedConv2d(3, 4, 1, padding_mode="wrap"), ValueError, "padding_mode"),
        (lambda: ReversedConv2d(3, 4, 1, scale="1"), TypeError, "scale must be a number"),
        (lambda: ReversedConv2d(3, 4, 1, rule=GUIDED), ValueError, "belong to an activation"),
        (lambda: ReversedConv2d(3, 4, 1, alpha=1.0), ValueError, "belong to an activation"),
        (
            lambda: ReversedConv2d(3, 4, 1, dtype=torch.complex64)(
                torch.ones(1, 3, 2, 2, dtype=torch.complex64, requires_grad=True)
            ),
            TypeError,
            "got torch.complex64",
        ),
    ],
)
def test_bad_input_gets_a_sentence(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_it_reads_as_it_was_made():
    layer = ReversedConv2d(3, 4, 1, stride=2, bias=False, scale=0.5, activation="relu")
    text = repr(layer)
    wanted = "3, 4, kernel_size=(1, 1), stride=(2, 2), bias=False, scale=0.5"
    assert f"ReversedConv2d(\n  {wanted}" in text and "Activation('relu')" in text
