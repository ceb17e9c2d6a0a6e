"""Triton's backend on a CUDA device: the matrix, layouts, graphs, streams, sizes, compilers.

Skipped without one. It may import the package and the oracle in oracle.py.
"""

import importlib.util

import pytest
import torch
from expected import example
from grids import (
    DTYPES,
    INTERPRETED,
    grid,
    one_thread,  # noqa: F401
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
    rule_and_spec,
)
from test_layouts import LAYOUTS, PAIRS, SHAPE, SHARED, numbers

import pyrevgrad
from pyrevgrad import EXACT, GUIDED, BackendError, backend, backends, reverse, rules

pytestmark = [
    pytest.mark.gpu,
    # Of a torch and a Triton that no test has seen: told, and no failure.
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is missing"),
    pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set"),
]
CUDA = torch.device("cuda")
GIB = 2**30


@pytest.fixture(autouse=True)
def on_triton():
    with backend("triton"):
        yield


def on_cuda(x, g, name, rule, **options):
    return run_on(CUDA, x, g, name, rule, **options)


@pytest.mark.parametrize("rule_name", (*SPECS, *COMPOSED))
@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient_agree_with_the_oracle(name, rule_name):
    assert_agrees_with_the_oracle(CUDA, name, rule_name)


@pytest.mark.parametrize("rule_name", (*SPECS, *COMPOSED))
@pytest.mark.parametrize("name", FORMULAS)
def test_bit_equal_to_the_reference_on_the_cpu_where_a_pair_selects_and_scales(name, rule_name):
    rule, spec = rule_and_spec(rule_name)
    for dtype in DTYPES:
        x, g = grid(dtype, True)
        y, gx = on_cuda(x, g, name, rule)
        with backend("reference"):
            wanted_y, wanted_gx = run(x, g, name, rule)
        assert name not in SELECTS or same_bits(y, wanted_y)
        assert not reproducible(name, spec) or same_bits(gx, wanted_gx)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "rule"), PAIRS, ids=str)
def test_any_layout_of_the_input_and_the_gradient(name, rule, layout):
    for dtype in DTYPES:
        x = LAYOUTS[layout](numbers(SHAPE, dtype).to(CUDA))
        plain = numbers(SHAPE, dtype, of=1).to(CUDA)
        for of_gradient in (*LAYOUTS.values(), *SHARED.values()):
            g = of_gradient(plain)
            y, gx = run(x, g, name, rule)
            wanted_y, wanted_gx = run(x.contiguous(), g.contiguous(), name, rule)
            assert y.stride() == torch.empty_like(x).stride()
            assert same_bits(y, wanted_y) and same_bits(gx, wanted_gx)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place_never_writes_outside_its_tensor(dtype):
    for count in (1, 7, 8, 64, 1023, 1024, 1025, 4099):
        for offset in (0, 1, 3, 8, 40):
            x = torch.linspace(-2, 2, count, dtype=torch.float64).to(CUDA, dtype)
            buffer = torch.full((count + 82,), 42.0, dtype=dtype, device=CUDA)
            view = buffer[offset : offset + count]
            view.copy_(x)
            pyrevgrad.relu(view, GUIDED, inplace=True)
            assert same_bits(view.cpu(), torch.where(x < 0, 0, x).cpu())
            assert (buffer[:offset] == 42).all() and (buffer[offset + count :] == 42).all()


def test_triton_serves_cuda_where_nothing_is_asked_for_and_native_is_not_built():
    x = torch.ones(3, device=CUDA)
    pair = backends.Pairs("relu", GUIDED, {}).full
    before, backends._forced = backends._forced, None
    try:
        assert backends.choose(x, pair).name in ("native", "triton")
    finally:
        backends._forced = before


def test_cpu_tensors_are_refused_with_a_sentence():
    with pytest.raises(BackendError, match="does not serve relu on cpu tensors; set TRITON_INT"):
        pyrevgrad.relu(torch.ones(3))


def test_a_scale_on_another_device_is_refused_with_a_sentence():
    x = torch.ones(3, device=CUDA, requires_grad=True)
    with pytest.raises(ValueError, match="the tensor scale is on cpu and x on cuda"):
        pyrevgrad.relu(x, reverse(torch.tensor(0.5)))


def kernels_made():
    from pyrevgrad.kernels import sweep

    return sum(len(caches[0]) for caches in sweep.backward.device_caches.values())


def test_a_changed_scale_or_parameter_compiles_nothing_again():
    x, g = (part.to(CUDA) for part in grid(torch.float32))
    run(x, g, "leaky_relu", reverse(0.5))
    before = kernels_made()
    for step in range(5):
        run(x, g, "leaky_relu", reverse(0.1 * step + 0.1), {"negative_slope": 0.01 * step + 0.02})
    assert kernels_made() == before


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_tensor_scale_never_waits_for_the_device():
    scale = torch.tensor(0.5, device=CUDA)
    x = torch.randn(4099, device=CUDA, requires_grad=True)
    torch.autograd.grad(pyrevgrad.tanh(x, reverse(scale)).sum(), x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        (gx,) = torch.autograd.grad(pyrevgrad.tanh(x, reverse(scale)).sum(), x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(gx, -0.5 * (1 - torch.tanh(x.detach()) ** 2))


@pytest.mark.parametrize(("name", "rule"), (("relu", GUIDED), ("silu", EXACT), ("tanh", EXACT)))
def test_captured_graph_reads_the_scale_at_each_replay(name, rule):
    scale = torch.tensor(1.0, dtype=torch.float64, device=CUDA)
    x = torch.randn(1027, 33, device=CUDA, requires_grad=True)
    g = torch.randn(1027, 33, device=CUDA)
    live = rule.scaled(scale).scaled(-1.0)

    def step():
        return torch.autograd.grad(pyrevgrad.activation(x, name, live), x, g)[0]

    graph, found = captured(step)
    for number in (0.25, -3.0):
        scale.fill_(number)
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        torch.cuda.synchronize()
        wanted = run(x.detach(), g, name, rule.scaled(-number))[1]
        assert same_bits(found.cpu(), wanted.cpu())


def test_kernels_run_on_the_current_stream():
    side = torch.cuda.Stream()
    x = torch.randn(2**22, device=CUDA)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        # Long enough that a kernel on another stream would read before the last of these.
        for _ in range(200):
            x.mul_(-1.0)
        x.fill_(3.0)
        y = pyrevgrad.relu(x)
    side.synchronize()
    assert (y == 3).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
def test_kernels_run_on_the_device_of_their_tensor():
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    x, g = (part.to(last) for part in grid(torch.float32))
    y, gx = run(x, g, "relu", GUIDED)
    assert y.device == gx.device == last
    with backend("reference"):
        assert same_bits(gx.cpu(), run(x.cpu(), g.cpu(), "relu", GUIDED)[1])
    assert torch.cuda.current_device() == 0


def test_more_than_two_to_the_thirty_one_elements():
    count = 2**31 + 1024 + 5
    if torch.cuda.mem_get_info()[0] < 24 * GIB:
        pytest.skip("needs 24 GiB of free device memory")
    x = torch.full((count,), -1.0, dtype=torch.bfloat16, device=CUDA)
    places = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**31 + 7, count - 2, count - 1], device=CUDA)
    x[places] = 2.0
    x.requires_grad_()
    y = pyrevgrad.relu(x, GUIDED)
    (gx,) = torch.autograd.grad(y, x, torch.ones((), dtype=x.dtype, device=CUDA).expand(count))
    for found, at in ((y.detach(), 2.0), (gx, 1.0)):
        assert found[places].eq(at).all()
        assert int(found.count_nonzero()) == len(places)


def test_a_custom_activation_runs_by_its_triton_functions():
    squareplus = example("custom_activation").squareplus
    x = torch.linspace(-4, 4, 4099, device=CUDA, requires_grad=True)
    (gx,) = torch.autograd.grad(squareplus(x, reverse(0.5)).sum(), x)
    wide = x.detach().double()
    wanted = -0.5 * (1 + wide / (wide * wide + 4).sqrt()) / 2
    torch.testing.assert_close(gx, wanted.float())


@pytest.mark.parametrize("name", ("relu", "sigmoid", "silu"))
def test_a_custom_rule_runs_by_its_triton_function(name):
    floored = example("custom_rule").floored
    for dtype in DTYPES:
        x, g = (part[part.isfinite()][:1000] for part in grid(dtype))
        x, g = (part[: min(len(x), len(g))] for part in (x, g))
        y, gx = on_cuda(x, g, name, floored)
        with backend("reference"):
            wanted_y, wanted_gx = on_cuda(x, g, name, floored)
        torch.testing.assert_close(y, wanted_y)
        torch.testing.assert_close(gx, wanted_gx)


@pytest.mark.parametrize("mode", ("default", "reduce-overhead"))
@pytest.mark.filterwarnings("ignore")
def test_compiled_code_keeps_the_rule_where_nothing_is_asked_for(mode):
    scale = torch.tensor(0.5, device=CUDA)
    before, backends._forced = backends._forced, None
    try:
        function = torch.compile(
            lambda t: pyrevgrad.silu(t * 2, rules.guided("slope").scaled(scale)), mode=mode
        )
        x = torch.randn(515, 33, device=CUDA, requires_grad=True)
        for number in (0.5, -2.0, 3.0):
            scale.fill_(number)
            torch.compiler.cudagraph_mark_step_begin()
            g = torch.randn_like(x)
            (gx,) = torch.autograd.grad(function(x), x, g)
            z = 2 * x.detach()
            s = torch.sigmoid(z)
            slope = s * (1 + z * (1 - s))
            wanted = torch.where(g <= 0, 0.0, 2 * number * slope * g)
            torch.testing.assert_close(gx, wanted)
    finally:
        backends._forced = before
