"""The CUDA kernels on a device: the whole matrix, streams, graphs, devices, sizes beyond 2^31.

Skipped where no CUDA device is served. PYREVGRAD_TEST_DEVICE=cpu runs what needs no device on the
CPU kernels instead, which tries the tests themselves. It may import the package, grids and oracle.
"""

from __future__ import annotations

import os

import pytest
import torch
from built import not_built
from grids import (
    DTYPES,
    FULL,
    TOLERANCES,
    array,
    grid,
    reproducible,
    run,
    same_bits,
)
from on_device import assert_agrees_with_the_oracle, captured, run_on
from oracle import (
    COMPOSED,
    FORMULAS,
    SELECTS,
    SPECS,
    expected_value,
    rule_and_spec,
)

import pyrevgrad
from pyrevgrad import GUIDED, BackendError, autograd, backend, backends, reverse, rules
from pyrevgrad.binding import NODES, WHY

DEVICE = torch.device(os.environ.get("PYREVGRAD_TEST_DEVICE", "cuda"))
CUDA = DEVICE.type == "cuda"


def _missing() -> str:
    if not CUDA:
        return "" if backends._native is not None else "no native library"
    if not torch.cuda.is_available():
        return "no CUDA device"
    return backends._native.cuda_problem(0) if backends._native else "no native library"


pytestmark = [
    pytest.mark.gpu,
    # Of a torch and a Triton that no test has seen: told, and no failure.
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(bool(_missing()), reason=_missing() or "served"),
]
needs_cuda = pytest.mark.skipif(not CUDA, reason="streams and graphs are of CUDA devices")
RULE_NAMES = (*SPECS, *COMPOSED)
SAMPLE = (
    ("relu", "GUIDED"), ("leaky_relu", "reverse"), ("identity", "DECONVNET"),
    ("tanh", "reverse"), ("hardtanh", "rectgrad"), ("gelu", "guided_slope"),
    ("silu", "clipped_straight_through"), ("mish", "EXACT"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def native():
    """Nothing may be served by another backend."""
    with backend("native"):
        yield


def on_device(x, g, name, rule, **options):
    return run_on(DEVICE, x, g, name, rule, **options)


@pytest.mark.parametrize("rule_name", RULE_NAMES)
@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient_agree_with_the_oracle(name, rule_name):
    assert_agrees_with_the_oracle(DEVICE, name, rule_name)


@pytest.mark.parametrize("rule_name", RULE_NAMES)
@pytest.mark.parametrize("name", FORMULAS)
def test_select_and_scale_is_bit_equal_to_the_cpu(name, rule_name):
    rule, spec = rule_and_spec(rule_name)
    for dtype in DTYPES:
        x, g = grid(dtype, True)
        y, gx = on_device(x, g, name, rule)
        cpu_y, cpu_gx = run(x, g, name, rule)
        if name in SELECTS:
            assert same_bits(y, cpu_y)
        if reproducible(name, spec):
            assert same_bits(gx, cpu_gx)


@pytest.mark.parametrize("name", [name for name in FORMULAS if name not in SELECTS])
def test_value_is_within_a_few_ulp_of_the_oracle(name):
    for dtype in FULL:
        x, _ = grid(dtype)
        x = x[x.isfinite()]
        y = pyrevgrad.activation(x.to(DEVICE), name).cpu()
        rtol = 8 * torch.finfo(dtype).eps
        # Where gelu cancels: 8 times half of the 2 ulp that a GPU's erf may be off.
        atol = min(TOLERANCES[dtype][1], 8 * torch.finfo(dtype).eps)
        wanted = torch.from_numpy(expected_value(name, array(x))).to(dtype)
        torch.testing.assert_close(y.double(), wanted.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize(("name", "rule_name"), SAMPLE)
def test_element_depends_neither_on_size_nor_on_start(name, rule_name):
    """Sizes about a group, a warp and a block; starts off by 1 to 15 elements; no stray write."""
    rule = rules.RULES[rule_name]
    for dtype in DTYPES:
        x, g = (part.repeat(7) for part in grid(dtype))
        y, gx = on_device(x, g, name, rule)
        sizes = (0, 1, 7, 8, 9, 255, 256, 1023, 2048, 2049, 4096, 8191, 8192, 8193, 16385)
        for turn, size in enumerate(sizes):
            offset = turn % 16
            room_x = torch.full((size + 32,), 42.0, dtype=dtype, device=DEVICE)
            room_g = room_x.clone()
            inner, inner_g = room_x[offset:][:size], room_g[(3 * offset) % 16 :][:size]
            inner.copy_(x[:size])
            inner_g.copy_(g[:size])
            got_y, got_gx = run(inner, inner_g, name, rule)
            assert same_bits(got_y.cpu(), y[:size]) and same_bits(got_gx.cpu(), gx[:size])
            pyrevgrad.activation(inner, name, rule, inplace=True)
            assert same_bits(inner.cpu(), y[:size])
            edges = torch.cat([room_x[:offset], room_x[offset + size :]])
            assert (edges == 42.0).all()


@pytest.mark.parametrize(("name", "rule_name"), SAMPLE)
def test_layouts_and_expanded_gradients_agree_with_contiguous_ones(name, rule_name):
    rule = rules.RULES[rule_name]
    x = torch.randn(4, 6, 10, 14, device=DEVICE)
    g = torch.randn_like(x)
    y, gx = run(x, g, name, rule)
    last = {"memory_format": torch.channels_last}
    for same_x in (x.contiguous(**last), x.permute(3, 1, 0, 2).clone().permute(2, 1, 3, 0)):
        for same_g in (g, g.contiguous(**last), g[..., None].expand(*g.shape, 2)[..., 0]):
            got_y, got_gx = run(same_x, same_g, name, rule)
            assert torch.equal(got_y, y) and torch.equal(got_gx, gx)
            assert got_y.stride() == torch.empty_like(same_x).stride()
    ones = run(x, torch.ones_like(x), name, rule)[1]
    assert torch.equal(run(x, torch.ones((), device=DEVICE).expand_as(x), name, rule)[1], ones)
    thin = x[:, ::2, 1:, ::3]
    got_y, got_gx = run(thin, g[:, ::2, 1:, ::3], name, rule)
    assert torch.equal(got_y, y[:, ::2, 1:, ::3]) and torch.equal(got_gx, gx[:, ::2, 1:, ::3])


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize(("name", "rule_name"), SAMPLE)
def test_tensor_scale_gives_what_the_number_gives(name, rule_name, scale_dtype):
    scale = torch.tensor(0.375, dtype=scale_dtype, device=DEVICE)
    rule = rules.RULES[rule_name]
    for dtype in DTYPES:
        x, g = grid(dtype)
        by_tensor = on_device(x, g, name, rule.scaled(scale))[1]
        assert same_bits(by_tensor, on_device(x, g, name, rule.scaled(0.375))[1])


@needs_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_tensor_scale_is_read_without_waiting_for_the_device():
    scale = torch.tensor(2.0, device=DEVICE)
    x = torch.randn(4096, device=DEVICE, requires_grad=True)
    g = torch.randn(4096, device=DEVICE)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = pyrevgrad.activation(x, "relu", reverse(scale))
        scale.fill_(0.25)
        (gx,) = torch.autograd.grad(y, x, g)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert torch.equal(gx, torch.where(x > 0, -0.25 * g, 0.0))


@needs_cuda
@pytest.mark.parametrize(("name", "rule_name"), SAMPLE)
def test_captured_graph_follows_the_scale_and_the_data(name, rule_name):
    scale = torch.tensor(1.0, device=DEVICE)
    rule = rules.RULES[rule_name].scaled(scale)
    x = torch.randn(10007, device=DEVICE).requires_grad_()
    g = torch.randn(10007, device=DEVICE)

    def step():
        y = pyrevgrad.activation(x, name, rule)
        return y, torch.autograd.grad(y, x, g)[0]

    graph, (y, gx) = captured(step)
    for number in (0.5, -3.0, 0.0):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        g.copy_(torch.randn_like(g))
        scale.fill_(number)
        graph.replay()
        wanted_y, wanted_gx = run(x, g, name, rules.RULES[rule_name].scaled(number))
        assert same_bits(y.cpu(), wanted_y.cpu()) and same_bits(gx.cpu(), wanted_gx.cpu())


def layer_and_shape(kind):
    """A reversal in float64, which no TF32 rounds, and the shape of its input."""
    torch.manual_seed(0)
    made = {
        "GradientReversal": lambda: (pyrevgrad.nn.GradientReversal(0.5, record_norm=True), (5, 8)),
        "ReversedLinear": lambda: (pyrevgrad.nn.ReversedLinear(8, 3, scale=0.5), (5, 8)),
        "ReversedConv2d": lambda: (pyrevgrad.nn.ReversedConv2d(4, 3, 3, scale=0.5), (2, 4, 9, 9)),
    }
    layer, shape = made[kind]()
    return layer.double(), shape


def on_the_device(kind):
    """The layer, an input that needs a gradient, and what arrives."""
    layer, shape = layer_and_shape(kind)
    layer.to(DEVICE)
    x = torch.randn(shape, dtype=torch.float64, device=DEVICE).requires_grad_()
    return layer, x, torch.randn_like(layer(x))


def gradients(layer, x, g):
    """y, and the gradients of x and of the parameters."""
    y = layer(x)
    return y, *torch.autograd.grad(y, [x, *layer.parameters()], g)


each_layer = pytest.mark.parametrize(
    "kind", ("GradientReversal", "ReversedLinear", "ReversedConv2d")
)


@each_layer
def test_reversing_layers_moved_to_the_device_agree_with_the_cpu(kind):
    layer, shape = layer_and_shape(kind)
    x = torch.randn(shape, dtype=torch.float64)
    g = torch.randn_like(layer(x))
    wanted = gradients(layer, x.requires_grad_(), g)
    layer.to(DEVICE)
    there = x.detach().to(DEVICE).requires_grad_()
    found = gradients(layer, there, g.to(DEVICE))
    assert layer.scale.device.type == DEVICE.type
    torch.testing.assert_close([tensor.cpu() for tensor in found], list(wanted))
    layer.set_scale(2.0)
    torch.testing.assert_close(gradients(layer, there, g.to(DEVICE))[1].cpu(), 4 * wanted[1])


@needs_cuda
@each_layer
def test_reversing_layers_never_wait_for_the_device(kind):
    layer, x, g = on_the_device(kind)
    gradients(layer, x, g)
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = layer(x)
        layer.set_scale(0.25)
        torch.autograd.grad(y, x, g)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@each_layer
def test_captured_reversing_layers_follow_the_scale(kind):
    layer, x, g = on_the_device(kind)
    graph, found = captured(lambda: gradients(layer, x, g))
    for number in (0.5, -3.0, 0.0):
        layer.set_scale(number)
        graph.replay()
        torch.testing.assert_close(found, gradients(layer, x, g))


@needs_cuda
def test_kernels_run_on_the_stream_of_the_moment():
    """What a side stream prepares late is seen, which a kernel on another stream would not."""
    x = torch.zeros(1 << 20, device=DEVICE)
    busy = torch.randn(2048, 2048, device=DEVICE)
    ready = torch.randn(1 << 20, device=DEVICE)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(50):
            busy = torch.tanh(busy @ busy)
        x.copy_(ready)
        y = pyrevgrad.relu(x, GUIDED)
        leaf = x.detach().requires_grad_()
        (gx,) = torch.autograd.grad(pyrevgrad.relu(leaf, GUIDED), leaf, x)
    side.synchronize()
    assert torch.equal(y, ready.clamp_min(0)) and torch.equal(gx, ready.clamp_min(0))


@needs_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
@pytest.mark.parametrize(("name", "rule_name"), SAMPLE)
def test_tensor_of_another_device_than_the_current_one(name, rule_name):
    x, g = grid(torch.float32)
    rule = rules.RULES[rule_name]
    y, gx = on_device(x, g, name, rule)
    with torch.cuda.device(0):
        other_y, other_gx = run(x.to("cuda:1"), g.to("cuda:1"), name, rule)
        assert torch.cuda.current_device() == 0
        assert other_y.device == other_gx.device == torch.device("cuda:1")
        assert torch.ones(1, device="cuda").device == torch.device("cuda:0")
    assert same_bits(other_y.cpu(), y) and same_bits(other_gx.cpu(), gx)


@needs_cuda
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("serving", "mode"),
    [("reference", "reduce-overhead"), ("native", "default"), ("native", "reduce-overhead")],
)
@pytest.mark.parametrize(("name", "rule_name"), SAMPLE)
def test_compiled_code_gives_what_eager_gives(name, rule_name, serving, mode):
    """With CUDA graphs too; the kernels are opaque operations whose program lies on the host."""
    rule = rules.RULES[rule_name]
    # The pairs share code objects, whose recompilations Dynamo counts and limits.
    torch._dynamo.reset()
    with backend(serving):
        x, g = (torch.randn(4096, device=DEVICE) for _ in range(2))
        wanted = run(x, g, name, rule)

        @torch.compile(mode=mode, fullgraph=True)
        def compiled(x):
            return pyrevgrad.activation(x, name, rule)

        for _ in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            leaf = x.clone().requires_grad_()
            y = compiled(leaf)
            (gx,) = torch.autograd.grad(y, leaf, g)
            torch.testing.assert_close((y.clone(), gx.clone()), wanted)


@needs_cuda
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "value alone"])
def test_no_memory_is_an_error_of_pytorch(recorded):
    x = torch.zeros(1, device=DEVICE, requires_grad=recorded).expand(1 << 40)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        pyrevgrad.relu(x, GUIDED)
    assert pyrevgrad.relu(torch.ones(2, device=DEVICE), GUIDED).sum().item() == 2


@needs_cuda
@pytest.mark.parametrize("rule_name", ["GUIDED", "rectgrad", "DECONVNET"])
def test_more_elements_than_32_bits_count(rule_name):
    count = 2**31 + 8 * 256 + 5
    if torch.cuda.mem_get_info()[0] < 9 * count:
        pytest.skip("takes 20 GB of device memory")
    rule = rules.RULES[rule_name]
    x = torch.zeros(count, dtype=torch.bfloat16, device=DEVICE)
    step = 2**20 + 7
    x[::step] = 3.0
    x[-9:] = torch.tensor([1, -1, 2, -2, 3, -3, 4, -4, 5], dtype=x.dtype, device=DEVICE)
    y, gx = run(x, x, "relu", rule)
    for part in (slice(0, 4096), slice(2**31 - 4096, 2**31 + 4096), slice(count - 4096, count)):
        wanted_y, wanted_gx = run(x[part].clone(), x[part].clone(), "relu", rule)
        assert same_bits(y[part], wanted_y) and same_bits(gx[part], wanted_gx)
    assert torch.equal(y[::step], x[::step].clamp_min(0))


# Bad input.


@needs_cuda
def test_scale_on_another_device_is_refused():
    x = torch.randn(8, device=DEVICE, requires_grad=True)
    with pytest.raises(ValueError, match="the tensor scale is on cpu and x on cuda:0"):
        pyrevgrad.activation(x, "relu", reverse(torch.tensor(1.0)))


@needs_cuda
def test_tensors_on_two_devices_are_refused_by_the_operation():
    pairs = backends.pairs_of("relu", GUIDED, {})
    program = pairs.full.program
    g = torch.randn(16, device=DEVICE)
    mask = torch.zeros(2, dtype=torch.uint8)
    backward = torch.ops.pyrevgrad.backward.default
    with pytest.raises(RuntimeError, match="the kept tensor is on another device than the grad"):
        backward(g, mask, program)
    with pytest.raises(RuntimeError, match="the tensor scale is on another device than the grad"):
        backward(g, mask.to(DEVICE), program, torch.tensor(1.0))


@needs_cuda
def test_device_that_does_not_exist_is_a_sentence():
    problem = torch.ops.pyrevgrad.cuda_problem.default(torch.cuda.device_count() + 3)
    assert "invalid device ordinal" in problem
    torch.ones(1, device=DEVICE).add_(1)
    assert pyrevgrad.relu(torch.ones(2, device=DEVICE)).tolist() == [1.0, 1.0]


def test_nodes_record_once_the_device_has_been_asked():
    if NODES is None:
        not_built(f"no C++ nodes: {WHY}")
    x = torch.randn(5, device=DEVICE, requires_grad=True)
    pyrevgrad.relu(x)
    for y in (pyrevgrad.relu(x, GUIDED), pyrevgrad.tanh(x, reverse(2.0))):
        assert y.grad_fn.name() == "ModifiedBackward"


@needs_cuda
def test_double_backward_and_its_errors_cross_the_thread_of_the_device(monkeypatch):
    x = torch.randn(5, device=DEVICE, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: pyrevgrad.gelu(x, reverse(2.0)), x)
    y = pyrevgrad.gelu(x, reverse(2.0))

    def fails(*_):
        raise ArithmeticError("as asked")

    monkeypatch.setattr(autograd.eager, "gradient_of_input", fails)
    with pytest.raises(ArithmeticError, match="as asked"):
        torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)


def test_native_is_what_serves():
    x = torch.ones(3, device=DEVICE)
    assert backends.choose(x, backends.pairs_of("relu", GUIDED, {}).full).name == "native"
    with backend("reference"):
        assert pyrevgrad.relu(x).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(BackendError, match="does not serve relu on meta tensors"):
        pyrevgrad.relu(torch.ones(3, device="meta"))
