"""The gradients of a folded product: of any order, in batches, by the C++ node and the Function."""

import re

import pytest
import torch
from folded_layers import Operations, composed, gradients, pair
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pyrevgrad
from pyrevgrad import autograd, folding, reverse
from pyrevgrad.binding import NODES, WHY
from pyrevgrad.nn import Activation, GradientReversal, ReversedConv2d, ReversedLinear

pytestmark = pytest.mark.usefixtures("nodes")
needs_nodes = pytest.mark.skipif(NODES is None, reason=f"no C++ nodes: {WHY}")


def test_second_derivatives_are_those_of_the_modified_gradient():
    folded, plain = pair()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    folded, plain = folded.double(), plain.double()
    found = []
    for function in (folded, lambda at: plain(GradientReversal(0.7)(at))):
        (gx,) = torch.autograd.grad(function(x).pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gx.square().sum(), x)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("bias", [True, False])
def test_derivatives_of_every_gradient_are_those_of_the_two_layers(bias):
    folded, plain = pair(bias=bias)
    folded, plain = folded.double(), plain.double()
    start, at_y = (torch.randn(4, size, dtype=torch.float64) for size in (3, 4))
    ours, theirs = [], []
    for found, function, layer in (
        (ours, folded, folded),
        (theirs, composed(plain, 0.7), plain),
    ):
        x, g = start.clone().requires_grad_(), at_y.clone().requires_grad_()
        wanted = [x, *layer.parameters()]
        first = torch.autograd.grad(function(x), wanted, g, create_graph=True)
        for one in first:
            second = torch.autograd.grad(
                one.sin().sum(), [*wanted, g], create_graph=True, allow_unused=True
            )
            found += [None if it is None else it.detach() for it in second]
        (third,) = torch.autograd.grad(first[1].sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(third.square().sum(), x)[0])
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [0.5, 0.0, 1e30, float("inf")])
@pytest.mark.parametrize("sizes", [(3, 0), (0, 3), (0, 0)], ids=str)
@pytest.mark.parametrize("shape", [(), (2,), (0,), (2, 3), (2, 0)], ids=str)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_a_layer_without_features_gives_gradients_of_their_shapes(shape, sizes, scale):
    folded = ReversedLinear(*sizes, scale=scale)
    x = torch.ones(*shape, sizes[0], requires_grad=True)
    folded(x).sum().backward()
    # Sums of nothing, times −λ, but b's: its gradient counts the rows.
    torch.testing.assert_close(x.grad, torch.zeros_like(x) * -scale, equal_nan=True)
    assert torch.equal(folded.weight.grad, torch.zeros_like(folded.weight))
    rows = x.new_zeros(shape).numel()
    assert torch.equal(folded.bias.grad, torch.full_like(folded.bias, rows))


def test_a_batch_of_gradients_is_served_as_one():
    folded, plain = pair()
    x, many = torch.randn(5, 3, requires_grad=True), torch.randn(6, 5, 4)
    asked = [x, *folded.parameters()]
    ours = torch.autograd.grad(folded(x), asked, many, is_grads_batched=True)
    theirs = torch.autograd.grad(
        composed(plain, 0.7)(x), [x, *plain.parameters()], many, is_grads_batched=True
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
    rows = torch.func.vmap(lambda g: torch.autograd.grad(y, x, g, retain_graph=True)[0])
    y = folded(x)
    torch.testing.assert_close(rows(many), ours[0])


def test_a_batch_of_gradients_reads_no_memory_that_nobody_wrote(monkeypatch):
    """vmap multiplies a product's first argument by beta: 0 times what lay there may be NaN."""
    unwritten = lambda like, *size, **options: like.new_full(size, float("nan"), **options)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "new_empty", unwritten)
    layer = ReversedLinear(3, 2, scale=0.7)
    x, many = torch.randn(4, 3, requires_grad=True), torch.randn(5, 4, 2)
    y = layer(x)
    rows = torch.func.vmap(lambda g: torch.autograd.grad(y, x, g, retain_graph=True)[0])
    torch.testing.assert_close(rows(many), -0.7 * (many @ layer.weight.detach()))


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_what_follows_may_work_in_place(shape, bias):
    folded, plain = pair(bias=bias)
    x = torch.randn(shape)
    y, ours = gradients(lambda at: folded(at).relu_(), x, torch.ones(*shape[:-1], 4), [])
    _, theirs = gradients(lambda at: composed(plain, 0.7)(at).relu(), x, torch.ones_like(y), [])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("dtype", "cast"), [(torch.float64,) * 2, (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("layer", [ReversedLinear(4, 4), ReversedConv2d(2, 3, 1)])
def test_autocast_casts_what_it_casts_for_plain_layers(layer, dtype, cast, grad):
    x = torch.randn(1, 2, 4, 4, dtype=dtype, requires_grad=grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.to(dtype)(x).dtype == cast


@pytest.mark.parametrize("layer", [ReversedLinear(4, 5), ReversedConv2d(2, 3, 1)])
def test_layers_without_numbers_give_shapes(layer):
    x = torch.randn(1, 2, 4, 4, device="meta", requires_grad=True)
    y = layer.to("meta")(x)
    assert y.shape == layer(x.detach()).shape and y.grad_fn is not None


def test_a_counter_of_products_sees_them_all():
    counts = []
    for layer in (ReversedLinear(64, 64), nn.Linear(64, 64)):
        x = torch.randn(8, 64, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            layer(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


# The C++ node and the Function.


@needs_nodes
@pytest.mark.parametrize("shape", [(5, 3), (3,), (2, 4, 3), (0, 3), (64, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_node_and_the_function_agree_bit_for_bit(dtype, shape, monkeypatch):
    folded = pair(0.3)[0].to(dtype)
    x, g = torch.randn(shape, dtype=dtype), torch.randn(*shape[:-1], 4, dtype=dtype)
    found = []
    for nodes in (NODES, None):
        monkeypatch.setattr(autograd, "NODES", nodes)
        y, both = gradients(folded, x, g, folded.parameters())
        found.append([y, *both])
    assert all(map(torch.equal, *found))


#: λ as big as, past and far past float32's range, and where the product is scaled as a whole.
HUGE = (2.0**64, 3.4028235e38, 1e39, -1e39, float("inf"))


@pytest.mark.parametrize("nodes", [NODES, None], ids=["node", "function"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", HUGE)
def test_a_huge_scale_gives_what_the_two_layers_give(scale, dtype, nodes, monkeypatch):
    monkeypatch.setattr(autograd, "NODES", nodes)
    folded, plain = (layer.to(dtype) for layer in pair(scale))
    x, g = torch.randn(5, 3, dtype=dtype), torch.randn(5, 4, dtype=dtype)
    y, found = gradients(folded, x, g, folded.parameters())
    two, wanted = gradients(composed(plain, scale), x, g, plain.parameters())
    torch.testing.assert_close([y, *found], [two, *wanted])
    if dtype == torch.float32 and abs(scale) > 1e38:
        assert not found[0].isnan().any()


@pytest.mark.parametrize("nodes", [NODES, None], ids=["node", "function"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_a_scale_of_zero_lets_what_is_no_number_through(layer, bad, nodes, monkeypatch):
    """It is that of the first step of Ganin's schedule, where a loss may have gone wrong."""
    monkeypatch.setattr(autograd, "NODES", nodes)
    if layer == "linear":
        folded, x, g = ReversedLinear(3, 2, scale=0.0), torch.randn(2, 3), torch.ones(2, 2)
        place = (0, 0)
    else:
        folded, x = ReversedConv2d(3, 2, 1, scale=0.0), torch.randn(2, 3, 2, 2)
        g, place = torch.ones(2, 2, 2, 2), (0, 0, 0, 0)
    g[place] = bad
    _, (gx, *_) = gradients(folded, x, g, [])
    assert gx[0].isnan().any() and not gx[1].isnan().any() and not gx[1].any()


@pytest.mark.parametrize("nodes", [NODES, None], ids=["node", "function"])
@pytest.mark.parametrize("known", [True, False], ids=["a number", "a tensor's"])
@pytest.mark.parametrize("scale", [5e-5, 1e-6, -2e5])
@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_a_scale_that_float16_hardly_holds_is_as_exact_as_two_layers(
    layer, scale, known, nodes, monkeypatch
):
    """Gradients are of the size that a scaled loss has, or that a large λ asks for."""
    monkeypatch.setattr(autograd, "NODES", nodes)
    if not known:
        monkeypatch.setattr(ReversedLinear, "_number", lambda self, scale: None)
    if layer == "linear":
        folded, x = ReversedLinear(8, 4, scale=scale), torch.randn(64, 8)
        g, columns = torch.randn(64, 4), "nj,ji->ni"
    else:
        folded, x = ReversedConv2d(8, 4, 1, scale=scale), torch.randn(4, 8, 6, 6)
        g, columns = torch.randn(4, 4, 6, 6), "njhw,ji->nihw"
    folded, x = folded.half(), x.half()
    g = (g * (2048.0 if abs(scale) < 1 else 1e-3)).half()
    _, (gx, *_) = gradients(folded, x, g, [])
    weight = folded.weight.detach().double().reshape(4, 8)
    wanted = -scale * torch.einsum(columns, g.double(), weight)
    bound = abs(scale) * torch.einsum(columns, g.double().abs(), weight.abs())
    # Roundings of the product and of the scaled result, and a step of the least numbers.
    limit = 8 * torch.finfo(torch.float16).eps * bound + 2.0**-24
    assert ((gx.double() - wanted).abs() <= limit).all()


def test_the_node_and_the_function_call_the_same_scale_tiny_and_huge(repository):
    header = (repository / "csrc" / "folded.h").read_text(encoding="utf-8")
    ((low, high),) = re.findall(r"is_factor\(\).*\n.*>= 0x1p(-\d+).*< 0x1p(\d+)", header)
    assert (2.0 ** int(low), 2.0 ** int(high)) == (folding._TINY, folding._HUGE)


@pytest.mark.parametrize("nodes", [NODES, None], ids=["node", "function"])
@pytest.mark.parametrize("powers", [(-60, 30), (30, -60), (-140, 40)], ids=str)
def test_a_huge_scale_overflows_no_product_that_is_finite(powers, nodes, monkeypatch):
    monkeypatch.setattr(autograd, "NODES", nodes)
    layer = ReversedLinear(3, 4, False, scale=2.0**100)
    g, weight = (2.0**power for power in powers)
    nn.init.constant_(layer.weight, weight)
    x = torch.ones(5, 3, requires_grad=True)
    layer(x).backward(torch.full((5, 4), g))
    assert torch.equal(x.grad, torch.full((5, 3), -(2.0**100) * 4 * g * weight))


LAYERS = (
    (lambda: ReversedLinear(3, 4, scale=0.3), lambda: nn.Linear(3, 4)),
    (lambda: ReversedLinear(3, 4, False, scale=0.3), lambda: nn.Linear(3, 4, False)),
    (lambda: ReversedConv2d(3, 4, 2, scale=0.3), lambda: nn.Conv2d(3, 4, 2)),
)


@pytest.mark.parametrize(("make", "plain"), LAYERS)
def test_weights_of_a_layer_made_on_meta_start_as_pytorchs(make, plain):
    with torch.device("meta"):
        layer = make()
    layer.to_empty(device="cpu")
    for one in (layer, wanted := plain()):
        torch.manual_seed(3)
        one.reset_parameters()
    assert layer.scale.item() == 0.3
    found = dict(layer.named_parameters())
    assert found.keys() == dict(wanted.named_parameters()).keys()
    assert all(torch.equal(found[name], one) for name, one in wanted.named_parameters())


@pytest.mark.parametrize("make", [GradientReversal, lambda s: Activation("relu", reverse(s))])
def test_layers_without_weights_have_nothing_to_reset_and_keep_their_scale(make):
    layer = make(torch.tensor(0.25))
    layer.reset_parameters()
    assert layer.scale.item() == 0.25


@needs_nodes
def test_the_node_serves_plain_tensors_and_leaves_the_rest_to_the_function(monkeypatch):
    monkeypatch.setattr(autograd, "NODES", NODES)
    layer, x = ReversedLinear(3, 4), torch.randn(5, 3, requires_grad=True)

    class Own(torch.Tensor):
        pass

    def name(given=x, made=layer):
        return made(given).grad_fn.name()

    assert name() == "FoldedLinearBackward"
    assert name(made=ReversedLinear(3, 4, bias=False)) == "FoldedLinearBackward"
    with torch.autocast("cpu", torch.bfloat16):
        assert name() == "_FoldedLinearBackward"
    with pyrevgrad.backend("reference"):
        assert name() == "_FoldedLinearBackward"
    assert name(made=ReversedLinear(3, 4, record_norm=True)) == "_FoldedLinearBackward"
    assert "Folded" not in name(x.as_subclass(Own))
    with torch.no_grad():
        assert layer(x).grad_fn is None
    assert "Folded" not in name(x.detach())
    seen = []

    class Watching(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Watching():
        layer(x)
    assert nn.functional.linear in seen


def test_a_weight_that_was_overwritten_is_pytorchs_error():
    layer, x = ReversedLinear(3, 4), torch.randn(5, 3, requires_grad=True)
    y = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_graph_that_was_freed_is_pytorchs_error():
    x = torch.randn(5, 3, requires_grad=True)
    y = ReversedLinear(3, 4)(x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()


@pytest.mark.parametrize("rows", [2, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_scale_that_only_a_tensor_knows_is_as_exact_as_two_layers(dtype, rows, monkeypatch):
    monkeypatch.setattr(autograd, "NODES", None)
    monkeypatch.setattr(ReversedLinear, "_number", lambda self, scale: None)
    folded, plain = (layer.to(dtype) for layer in pair(0.3))
    x, g = torch.randn(rows, 3, dtype=dtype), torch.randn(rows, 4, dtype=dtype)
    _, (ours, *_) = gradients(folded, x, g, folded.parameters())
    _, (theirs, *_) = gradients(composed(plain, 0.3), x, g, plain.parameters())
    wide_g, weight = g.double(), folded.weight.detach().double()
    exact = -0.3 * wide_g @ weight
    # What the roundings of four products, their sum and two of the scale can come to, in whatever
    # order a machine's library adds.
    roundings = 4 + 2
    limit = roundings * torch.finfo(dtype).eps / 2 * (0.3 * wide_g.abs() @ weight.abs())
    for found in (ours, theirs):
        assert ((found.double() - exact).abs() <= limit).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("layer", "plain"),
    [
        (ReversedLinear(3, 4), nn.Linear(3, 4)),
        (ReversedConv2d(3, 4, 1), nn.Conv2d(3, 4, 1)),
        (nn.Sequential(GradientReversal(0.5), nn.Linear(3, 4)), nn.Linear(3, 4)),
        (lambda x: pyrevgrad.reverse_gradient(x, 0.5).tanh(), torch.tanh),
    ],
    ids=["ReversedLinear", "ReversedConv2d", "GradientReversal", "reverse_gradient"],
)
def test_a_compiler_is_shown_the_plain_products_and_one_multiplication(layer, plain):
    """By the larger graph's operations: what it fuses is its own affair."""
    from torch._dynamo.backends.common import aot_autograd

    torch._dynamo.reset()
    seen = []

    def backward_graph(graph, inputs):
        called = [node for node in graph.graph.nodes if node.op == "call_function"]
        seen.append([str(node.target) for node in called])
        return graph

    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=backward_graph)
    for made in (layer, plain):
        x = torch.randn((2, 3, 5, 5) if isinstance(plain, nn.Conv2d) else (6, 3)).requires_grad_()
        torch.compile(made, backend=backend, fullgraph=True)(x).sum().backward()
    products = ("aten.mm", "aten.addmm", "aten.convolution", "aten.sum", "pyrevgrad")
    ours, theirs = (sorted(name for name in one if name.startswith(products)) for one in seen)
    assert ours == theirs
    multiplied = [sum(name.startswith("aten.mul") for name in one) for one in seen]
    assert 1 <= multiplied[0] - multiplied[1] <= 3


def test_gradients_that_nobody_asks_for_are_not_made(nodes):
    layer, x = ReversedLinear(3, 4), torch.randn(7, 3, requires_grad=True)
    y = layer(x)
    g = torch.ones(7, 4)
    with Operations() as mode:
        torch.autograd.grad(y, x, g)
    assert len(mode.seen) == (1 if nodes == "c++" else 3), mode.seen
