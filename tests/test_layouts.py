"""Layouts: strides in and out, misaligned starts, guard bands, poisoned memory, storage.

It may import the package and the grids in grids.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import torch
from grids import (
    BACKENDS,
    DTYPES,
    grid,
    needs_native,
    one_thread,  # noqa: F401
    places,
    run,
    same_bits,
)
from hypothesis import strategies
from oracle import (
    FORMULAS,
)

import pyrevgrad
from pyrevgrad import (
    DECONVNET,
    EXACT,
    GUIDED,
    STRAIGHT_THROUGH,
    autograd,
    backend,
    backends,
    rectgrad,
    reverse,
    rules,
)

SHAPE = (2, 3, 4, 5)


def numbers(shape, dtype, *, of=0, offset=0):
    """A contiguous tensor of `shape` from the grid's x (0) or g (1)."""
    return grid(dtype)[of][places(tuple(shape), offset)]


def at_offset(tensor, offset):
    """The same values, contiguous, starting `offset` elements into a buffer."""
    buffer = tensor.new_zeros(tensor.numel() + offset)
    return buffer[offset:].view(tensor.shape).copy_(tensor)


#: Each takes a contiguous tensor of four dimensions to one of the same values, laid out so.
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "permuted": lambda t: t.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
    "strided slice": lambda t: t.new_zeros(2, 3, 8, 15)[:, :, ::2, ::3].copy_(t),
    "narrowed": lambda t: t.new_zeros(2, 3, 6, 7)[:, :, 1:5, 2:7].copy_(t),
    "misaligned": lambda t: at_offset(t, 3),
    "misaligned channels_last": lambda t: at_offset(t.permute(0, 2, 3, 1).contiguous(), 5).permute(
        0, 3, 1, 2
    ),
}
#: Layouts of a gradient alone: some elements share a place.
SHARED = {
    "expanded from one element": lambda t: t.flatten()[7].expand(t.shape),
    "broadcast over batch": lambda t: t[:1].expand(t.shape),
    "broadcast over columns": lambda t: t[..., :1].expand(t.shape),
    "broadcast over channels": lambda t: t[:, 1:2].expand(t.shape),
}
PAIRS = (
    ("identity", EXACT),
    ("identity", reverse(0.3)),
    ("relu", EXACT),
    ("relu", GUIDED),
    ("relu", DECONVNET),
    ("gelu", STRAIGHT_THROUGH),
    ("leaky_relu", reverse(2.0)),
    ("relu", rectgrad(0.1)),
    ("hardtanh", rules.clipped_straight_through(-1.0, 1.0)),
    ("tanh", EXACT),
    ("sigmoid", rules.guided("product")),
    ("elu", rectgrad(0.1)),
    ("silu", reverse(0.5)),
    ("gelu", rules.guided("slope")),
    ("sign", EXACT),
)
each_pair = pytest.mark.parametrize(("name", "rule"), PAIRS, ids=lambda value: str(value))
each_backend = pytest.mark.parametrize("backend_name", BACKENDS)


def effective(tensor):
    """The strides that place an element: those of dimensions longer than 1."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def assert_layout(x, g, name, rule, backend_name):
    """y and gx are those of contiguous copies, with the strides that torch.empty_like gives.

    Where nothing is kept, a backward sees g alone and follows its strides, as the reference,
    which is plain PyTorch, may do anywhere.
    """
    if backend_name == "reference":
        assert_finite_gradients(g)
    with backend(backend_name):
        y, gx = run(x, g, name, rule)
        wanted_y, wanted_gx = run(x.contiguous(), g.contiguous(), name, rule)
    assert y.stride() == torch.empty_like(x).stride()
    if backend_name == "reference":
        torch.testing.assert_close(y, wanted_y, equal_nan=True)
        torch.testing.assert_close(gx, wanted_gx, equal_nan=True)
        return
    assert same_bits(y, wanted_y)
    assert same_bits(gx, wanted_gx)
    if pyrevgrad.plan(name, rule, x.dtype).keeps == "nothing":
        assert effective(gx) in (effective(g), effective(torch.empty_like(g)))
    elif x.numel():
        assert effective(gx) == effective(torch.empty_like(x))


def assert_finite_gradients(g):
    """PyTorch's paths round otherwise for other strides, which an infinite g would magnify."""
    assert g.isfinite().all()


def gradients(shape, dtype, backend_name):
    g = numbers(shape, dtype, of=1)
    return torch.nan_to_num(g, 0.5, 3.0, -3.0) if backend_name == "reference" else g


@each_backend
@each_pair
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_the_input_and_the_gradient(layout, name, rule, backend_name):
    for dtype in DTYPES:
        x = LAYOUTS[layout](numbers(SHAPE, dtype))
        g = gradients(SHAPE, dtype, backend_name)
        for of_gradient in (*LAYOUTS.values(), *SHARED.values()):
            assert_layout(x, of_gradient(g), name, rule, backend_name)


@each_backend
@each_pair
def test_sum_sends_back_a_gradient_of_one_place(name, rule, backend_name):
    for dtype in DTYPES:
        for make in LAYOUTS.values():
            x = make(numbers(SHAPE, dtype)).requires_grad_()
            with backend(backend_name):
                pyrevgrad.activation(x, name, rule).sum().backward()
                _, wanted = run(x.detach(), torch.ones(SHAPE, dtype=dtype), name, rule)
            torch.testing.assert_close(x.grad, wanted, equal_nan=True)


@needs_native
@each_pair
@pytest.mark.parametrize("offset", range(1, 16))
def test_tensors_that_start_anywhere(offset, name, rule):
    for dtype in DTYPES:
        for count in (5, 37, 133):
            x, g = numbers((count,), dtype, offset=offset), numbers((count,), dtype, of=1)
            with backend("native"):
                y, gx = run(x, g, name, rule)
                for xs, gs in (
                    (at_offset(x, offset), g),
                    (x, at_offset(g, offset)),
                    (at_offset(x, offset), at_offset(g, 16 - offset)),
                ):
                    got_y, got_gx = run(xs, gs, name, rule)
                    assert same_bits(got_y, y)
                    assert same_bits(got_gx, gx)


@each_backend
@pytest.mark.parametrize(
    ("name", "rule"), (("relu", GUIDED), ("gelu", EXACT), ("tanh", EXACT), ("round", DECONVNET))
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_never_writes_outside_its_tensor(dtype, name, rule, backend_name):
    for count in (0, 1, 7, 8, 9, 16, 31, 64, 65, 200):
        x = numbers((count,), dtype)
        with backend(backend_name):
            wanted = pyrevgrad.activation(x, name, rule)
            for offset in range(41):
                buffer = torch.full((count + 82,), 42.0, dtype=dtype)
                view = buffer[offset : offset + count]
                view.copy_(x)
                pyrevgrad.activation(view, name, rule, inplace=True)
                assert (buffer[:offset] == 42).all()
                assert (buffer[offset + count :] == 42).all()
                torch.testing.assert_close(view, wanted, equal_nan=True)


@each_backend
@pytest.mark.parametrize("name", FORMULAS)
def test_in_place_on_a_strided_slice_leaves_its_neighbours(name, backend_name):
    buffer = torch.full((9, 11), 42.0)
    view = buffer[1:8:2, 2:9:3]
    view.copy_(numbers(view.shape, torch.float32))
    with backend(backend_name):
        wanted = pyrevgrad.activation(view, name)
        pyrevgrad.activation(view, name, GUIDED, inplace=True)
    torch.testing.assert_close(view, wanted, equal_nan=True)
    view.fill_(42)
    assert (buffer == 42).all()


@each_backend
@each_pair
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place_in_any_layout(layout, name, rule, backend_name):
    for dtype in DTYPES:
        x = LAYOUTS[layout](numbers(SHAPE, dtype))
        g = gradients(SHAPE, dtype, backend_name)
        with backend(backend_name):
            y, gx = run(x, g, name, rule)
            leaf = torch.zeros(SHAPE, dtype=dtype, requires_grad=True)
            inner = torch.empty_strided(SHAPE, x.stride(), dtype=dtype).copy_(leaf).add_(x)
            stride = inner.stride()
            got = pyrevgrad.activation(inner, name, rule, inplace=True)
            (got_gx,) = torch.autograd.grad(got, leaf, g)
        assert got.data_ptr() == inner.data_ptr()
        assert got.stride() == stride
        torch.testing.assert_close(got.detach(), y, equal_nan=True)
        torch.testing.assert_close(got_gx, gx, equal_nan=True)


@each_backend
@pytest.mark.parametrize("rule", (EXACT, GUIDED, STRAIGHT_THROUGH, rectgrad(0.1)), ids=str)
@pytest.mark.parametrize("name", FORMULAS)
def test_output_has_storage_of_its_own(name, rule, backend_name):
    for x in (torch.ones(5), torch.ones(4, 6)[:, ::2], torch.ones(2, 3).t(), torch.ones(())):
        for needs in (False, True):
            x = x.detach().requires_grad_(needs)
            with backend(backend_name):
                y = pyrevgrad.activation(x, name, rule)
            assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@each_backend
@pytest.mark.parametrize("rule", (EXACT, GUIDED, STRAIGHT_THROUGH, rectgrad(0.1)), ids=str)
@pytest.mark.parametrize("name", FORMULAS)
def test_in_place_keeps_the_storage_and_counts_a_version(name, rule, backend_name):
    for needs in (False, True):
        x = torch.ones(5, requires_grad=needs) * 0.3
        place, version = x.data_ptr(), x._version
        with backend(backend_name):
            y = pyrevgrad.activation(x, name, rule, inplace=True)
        assert y is x
        assert y.data_ptr() == place
        assert y._version > version


@each_backend
def test_in_place_in_inference_mode(backend_name):
    with torch.inference_mode(), backend(backend_name):
        x = torch.tensor([-1.0, 2.0])
        assert pyrevgrad.relu(x, inplace=True) is x
        assert x.tolist() == [0.0, 2.0]


def strided(values, order, steps, offset):
    """`values` laid out with the dimensions in `order`, `steps` apart, `offset` elements in."""
    padded = [size * step for size, step in zip(values.shape, steps, strict=True)]
    moved = [padded[dimension] for dimension in order]
    buffer = values.new_zeros(offset + torch.Size(moved).numel())
    placed = buffer[offset:].view(moved).permute([order.index(d) for d in range(len(order))])
    return placed[tuple(slice(None, None, step) for step in steps)].copy_(values)


@strategies.composite
def odd_tensors(draw):
    """(x, g) of one odd shape: any order of the dimensions, any steps, any start; g may share."""
    shape = draw(strategies.lists(strategies.integers(0, 9), max_size=5))
    hypothesis.assume(torch.Size(shape).numel() <= 5000)
    dtype = draw(strategies.sampled_from(DTYPES))
    start = draw(strategies.integers(0, 2000))
    made = []
    for of in (0, 1):
        order = draw(strategies.permutations(range(len(shape))))
        steps = [draw(strategies.sampled_from((1, 1, 1, 2, 3))) for _ in shape]
        offset = draw(strategies.integers(0, 15))
        values = numbers(shape, dtype, of=of, offset=start)
        made.append(strided(values, order, steps, offset))
    x, g = made
    shared = [draw(strategies.booleans()) and size > 0 for size in shape]
    if draw(strategies.booleans()):
        g = g[tuple(slice(0, 1) if share else slice(None) for share in shared)].expand(shape)
    return x, g


@needs_native
@hypothesis.settings(max_examples=600, deadline=None, derandomize=True, database=None)
@hypothesis.given(odd_tensors(), strategies.sampled_from(PAIRS))
def test_odd_shapes_and_strides(tensors, pair):
    assert_layout(*tensors, *pair, "native")


@needs_native
@hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
@hypothesis.given(odd_tensors(), strategies.sampled_from(PAIRS))
def test_odd_shapes_and_strides_in_place(tensors, pair):
    x, _ = tensors
    with backend("native"):
        wanted = pyrevgrad.activation(x, pair[0])
        assert pyrevgrad.activation(x, *pair, inplace=True) is x
    assert same_bits(x, wanted)


POISONED = """
import torch
from grids import (
    DTYPES,
    cut,
    reproducible,
    run,
    same_bits,
)
from oracle import (
    FORMULAS,
    SELECTS,
    SPECS,
    rule_and_spec,
)
from pyrevgrad import backend

assert (torch.empty(1000, dtype=torch.uint8) == 0xAA).sum() > 900, "memory is not poisoned"
for name in FORMULAS:
    for rule_name in SPECS:
        rule, spec = rule_and_spec(rule_name)
        for dtype in DTYPES:
            for shape in ((1,), (13,), (130,), (3, 7, 11), (70001,)):
                x, g = cut(dtype, shape)
                with backend("native"):
                    y, gx = run(x, g, name, rule)
                    torch.full_like(y, 42.0), torch.full_like(gx, 42.0)
                    again_y, again_gx = run(x, g, name, rule)
                assert same_bits(y, again_y) and same_bits(gx, again_gx)
                with backend("reference"):
                    wanted_y, wanted_gx = run(x, g, name, rule)
                if name in SELECTS:
                    assert same_bits(y, wanted_y), (name, rule, dtype, shape)
                if reproducible(name, spec):
                    assert same_bits(gx, wanted_gx), (name, rule, dtype, shape)
                assert torch.equal(y.isnan(), wanted_y.isnan()), (name, rule, dtype, shape)
print("every element was written")
"""


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="poisons through glibc's allocator")
def test_no_element_is_left_as_the_allocator_gave_it():
    root = Path(pyrevgrad.__file__).resolve().parent.parent
    path = os.pathsep.join([str(Path(__file__).parent), str(root)])
    environment = {**os.environ, "PYTHONPATH": path, "MALLOC_PERTURB_": str(0xAA ^ 0xFF)}
    ended = subprocess.run(
        [sys.executable, "-c", POISONED], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "every element was written\n"


@pytest.fixture
def filled_memory():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@each_backend
@pytest.mark.usefixtures("filled_memory")
@pytest.mark.parametrize("name", FORMULAS)
def test_filled_memory_leaves_no_nan(name, backend_name):
    for rule in rules.RULES.values():
        for dtype in DTYPES:
            x = torch.linspace(-5, 5, 77).to(dtype).reshape(7, 11)
            g = torch.linspace(3, -3, 77).to(dtype).reshape(11, 7).t()
            with backend(backend_name):
                for tensor in (*run(x, g, name, rule), *run(x[:, ::2], g[:, ::2], name, rule)):
                    assert not tensor.isnan().any()


def test_a_value_in_another_memory_order_than_its_mask_meets_its_own_gradient():
    x = torch.randn(3, 5, requires_grad=True)
    g = torch.randn(3, 5)
    pairs = backends.pairs_of("relu", GUIDED, {})

    def value(x):
        return torch.relu(x.t().contiguous()).t()

    y = autograd.call_unwatched(x, pairs, None, value=value)
    (gx,) = torch.autograd.grad(y, x, g)
    assert torch.equal(y, x.clamp(min=0))
    assert torch.equal(gx, torch.where((x > 0) & (g > 0), g, 0.0))
