"""Every activation under every rule, by both backends, against the float64 oracle and each other.

It may import the package and the oracle in oracle.py.
"""

import pytest
import torch
from grids import (
    BACKENDS,
    CAPABILITIES,
    DTYPES,
    FULL,
    SHAPES,
    TOLERANCES,
    VECTORISED,
    array,
    assert_gradient,
    assert_value,
    cut,
    grid,
    needs_native,
    one_thread,  # noqa: F401
    places,
    reproducible,
    run,
    same_bits,
)
from oracle import (
    COMPOSED,
    FORMULAS,
    INF,
    NAN,
    SELECTS,
    SPECS,
    expected_gradient,
    expected_value,
    rule_and_spec,
)
from subprocesses import in_subprocess

import pyrevgrad
from pyrevgrad import backend, reverse, rules
from pyrevgrad.activations import ACTIVATIONS

RULE_NAMES = (*SPECS, *COMPOSED)
#: Parameters other than the defaults, at the edges of their bounds and beyond 1.
PARAMETERS = (
    ("leaky_relu", {"negative_slope": 0.0}),
    ("leaky_relu", {"negative_slope": -0.5}),
    ("leaky_relu", {"negative_slope": 2.5}),
    ("leaky_relu", {"negative_slope": 1.0}),
    ("hardtanh", {"min_val": -0.5, "max_val": 2.5}),
    ("hardtanh", {"min_val": 0.5, "max_val": 3.0}),
    ("hardtanh", {"min_val": -0.7, "max_val": 0.7}),
    ("elu", {"alpha": -1.0}),
    ("elu", {"alpha": 0.0}),
    ("elu", {"alpha": 0.5}),
    ("elu", {"alpha": 1.5}),
    ("celu", {"alpha": 0.3}),
    ("celu", {"alpha": 2.0}),
    ("softplus", {"beta": 2.0, "threshold": 1.0}),
    ("softplus", {"beta": 0.5, "threshold": -1.0}),
    ("hardshrink", {"lambd": 0.0}),
    ("hardshrink", {"lambd": 1.5}),
    ("softshrink", {"lambd": 0.0}),
    ("softshrink", {"lambd": 0.3}),
    ("heaviside", {"values": 0.5}),
)


def check(x, g, name, rule, spec, params=None, **options):
    """Run a pair and hold value and gradient against the oracle; return both."""
    y, gx = run(x, g, name, rule, params, **options)
    assert y.shape == gx.shape == x.shape
    assert y.dtype == gx.dtype == x.dtype
    assert_value(y, x, name, params)
    columns = {"x": array(x), "g": array(g), "y": array(y)}
    wanted = expected_gradient(name, spec, x.dtype, *columns.values(), params)
    assert_gradient(gx, wanted, f"of {name} under {rule} in {x.dtype} are off", **columns)
    return y, gx


def test_the_oracle_covers_every_rule_and_activation():
    assert set(SPECS) == set(rules.RULES)
    assert set(FORMULAS) == set(ACTIVATIONS)


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("rule_name", RULE_NAMES)
@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient_agree_with_the_oracle(name, rule_name, backend_name):
    rule, spec = rule_and_spec(rule_name)
    for dtype in DTYPES:
        x, g = grid(dtype, name in SELECTS)
        with backend(backend_name):
            check(x, g, name, rule, spec)


@needs_native
@pytest.mark.parametrize("rule_name", RULE_NAMES)
@pytest.mark.parametrize("name", FORMULAS)
def test_native_and_reference_are_bit_equal_where_a_pair_selects_and_scales(name, rule_name):
    rule, spec = rule_and_spec(rule_name)
    for dtype in DTYPES:
        x, g = grid(dtype, True)
        with backend("native"):
            y, gx = run(x, g, name, rule)
        with backend("reference"):
            expected_y, expected_gx = run(x, g, name, rule)
        if name in SELECTS:
            assert same_bits(y, expected_y)
        if reproducible(name, spec):
            assert same_bits(gx, expected_gx)


def shapes_and_offsets():
    """Every shape, with where in the grid it starts; several starts for a single element."""
    for turn, shape in enumerate(SHAPES):
        for offset in range(6 if torch.Size(shape).numel() == 1 else 1):
            yield shape, 131 * turn + 17 * offset


@pytest.mark.parametrize("rule_name", SPECS)
@pytest.mark.parametrize("name", FORMULAS)
def test_reference_agrees_with_the_oracle_in_every_shape(name, rule_name):
    rule, spec = rule_and_spec(rule_name)
    with backend("reference"):
        for dtype in DTYPES:
            for shape, offset in shapes_and_offsets():
                if dtype != torch.float32 and torch.Size(shape).numel() > 10_000:
                    continue
                check(*cut(dtype, shape, offset), name, rule, spec)


@needs_native
@pytest.mark.parametrize("rule_name", SPECS)
@pytest.mark.parametrize("name", FORMULAS)
def test_native_element_depends_neither_on_shape_nor_on_place(name, rule_name):
    """Bit-equal to the flat grid, which another test holds against the oracle."""
    rule, _ = rule_and_spec(rule_name)
    for dtype in DTYPES:
        with backend("native"):
            y, gx = run(*grid(dtype), name, rule)
            for shape, offset in shapes_and_offsets():
                got_y, got_gx = run(*cut(dtype, shape, offset), name, rule)
                assert same_bits(got_y, y[places(shape, offset)])
                assert same_bits(got_gx, gx[places(shape, offset)])


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("rule_name", RULE_NAMES)
@pytest.mark.parametrize(("name", "params"), PARAMETERS)
def test_parameters_other_than_the_defaults_agree_with_the_oracle(
    name, params, rule_name, backend_name
):
    rule, spec = rule_and_spec(rule_name)
    with backend(backend_name):
        for dtype in DTYPES:
            check(*grid(dtype), name, rule, spec, params)


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("rule_name", RULE_NAMES)
@pytest.mark.parametrize("name", FORMULAS)
def test_in_place_gives_what_fresh_storage_gives(name, rule_name, backend_name):
    rule, _ = rule_and_spec(rule_name)
    with backend(backend_name):
        for dtype in DTYPES:
            x, g = grid(dtype)
            y, gx = run(x, g, name, rule)
            in_place_y, in_place_gx = run(x, g, name, rule, inplace=True)
            assert same_bits(in_place_y, y)
            torch.testing.assert_close(in_place_gx, gx, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("name", FORMULAS)
def test_value_is_the_same_whether_or_not_a_gradient_is_needed(name, backend_name):
    with backend(backend_name):
        for dtype in DTYPES:
            x, g = grid(dtype)
            plain = pyrevgrad.activation(x, name)
            for rule_name in ("EXACT", "GUIDED", "clipped_straight_through", "rectgrad"):
                assert same_bits(plain, run(x, g, name, rules.RULES[rule_name])[0])


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("name", FORMULAS)
def test_tensor_scale_gives_what_the_number_gives(name, scale_dtype, backend_name):
    scale = torch.tensor(0.3, dtype=scale_dtype)
    for rule_name in ("EXACT", "GUIDED", "guided_product", "rectgrad", "deconvnet_clipped"):
        rule = rules.RULES[rule_name]
        for dtype in DTYPES:
            x, g = grid(dtype)
            with backend(backend_name):
                _, by_tensor = run(x, g, name, rule.scaled(scale).scaled(-2.0))
                _, by_number = run(x, g, name, rule.scaled(scale.item()).scaled(-2.0))
            assert same_bits(by_tensor, by_number)


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("name", FORMULAS)
def test_tensor_scale_is_read_when_backward_runs(name, backend_name):
    scale = torch.tensor(5.0)
    x, g = grid(torch.float32)
    with backend(backend_name):
        leaf = x.clone().requires_grad_()
        y = pyrevgrad.activation(leaf, name, reverse(scale))
        scale.fill_(0.25)
        (gx,) = torch.autograd.grad(y, leaf, g)
        assert same_bits(gx, run(x, g, name, reverse(0.25))[1])


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("rule_name", RULE_NAMES)
@pytest.mark.parametrize("name", FORMULAS)
def test_blocked_gradient_is_positive_zero(name, rule_name, backend_name):
    rule, spec = rule_and_spec(rule_name)
    rule = rule.scaled(-1.0)
    values = torch.tensor([-INF, -7.0, -0.6, -0.0, 0.0, 0.2, 0.6, 7.0])
    incoming = torch.tensor([INF, -INF, NAN, -1.0, 1.0, 0.0, -0.0])
    for dtype in DTYPES:
        x, g = torch.cartesian_prod(values, incoming).to(dtype).unbind(1)
        with backend(backend_name):
            y, gx = run(x, g, name, rule)
        wanted = expected_gradient(name, spec, dtype, array(x), array(g), array(y))
        blocked = torch.from_numpy(wanted.blocked & ~wanted.either)
        assert (gx[blocked] == 0).all()
        assert not gx[blocked].signbit().any()


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("rule_name", ("GUIDED", "DECONVNET", "guided_slope", "guided_product"))
def test_subnormal_numbers_pass_a_gate(rule_name, backend_name):
    for dtype in DTYPES:
        info = torch.finfo(dtype)
        least = torch.tensor(info.smallest_normal * info.eps, dtype=dtype)
        assert least > 0
        x = torch.stack([least, torch.tensor(1.0, dtype=dtype), least]).repeat(11)
        g = torch.stack([torch.tensor(1.0, dtype=dtype), least, least]).repeat(11)
        with backend(backend_name):
            y, gx = run(x, g, "relu", rules.RULES[rule_name])
        assert same_bits(y, x)
        assert same_bits(gx, g)


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_rectgrad_at_zero_equals_guided_on_relu(backend_name):
    generator = torch.Generator().manual_seed(3)
    for dtype in DTYPES:
        x, g = torch.randn(2, 4099, generator=generator).to(dtype)
        with backend(backend_name):
            assert same_bits(
                run(x, g, "relu", rules.rectgrad(0.0))[1], run(x, g, "relu", rules.GUIDED)[1]
            )


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_saturated_hardtanh_is_blocked_by_rectgrad_though_its_bound_rounds(backend_name):
    for dtype in DTYPES:
        x = torch.tensor([-5.0, 5.0, 0.5] * 7, dtype=dtype)
        with backend(backend_name):
            _, gx = run(x, x.sign(), "hardtanh", rules.rectgrad(0.0),
                        {"min_val": -0.7, "max_val": 0.7})  # fmt: skip
        assert gx.tolist() == [0.0, 0.0, 1.0] * 7


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("name", ("relu", "leaky_relu", "hardshrink"))
def test_a_number_beyond_the_range_of_the_dtype_acts_as_infinity(name, backend_name):
    x, g = grid(torch.float32)
    for rule, same in (
        (rules.DECONVNET.clipped(1e300), rules.DECONVNET),
        (rules.clipped_straight_through(-1e300, 1e300), rules.clipped_straight_through(-INF, INF)),
        (rules.DECONVNET.scaled(1e300), rules.DECONVNET.scaled(INF)),
    ):
        with backend(backend_name):
            assert same_bits(run(x, g, name, rule)[1], run(x, g, name, same)[1])


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@needs_native
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("rule_name", ("EXACT", "GUIDED", "rectgrad", "DECONVNET"))
@pytest.mark.parametrize("name", FORMULAS)
def test_threads_do_not_change_a_bit(name, rule_name):
    rule, _ = rule_and_spec(rule_name)
    for dtype in (torch.float32, torch.float16):
        x, g = cut(dtype, (2 * 65536 + 77,))
        with backend("native"):
            y, gx = run(x, g, name, rule)
            torch.set_num_threads(1)
            single_y, single_gx = run(x, g, name, rule)
            torch.set_num_threads(2)
        assert same_bits(y, single_y)
        assert same_bits(gx, single_gx)


RUN_EVERY_PAIR = """
import sys
import torch
from grids import (
    DTYPES,
    grid,
    run,
)
from oracle import (
    FORMULAS,
    rule_and_spec,
)
from test_kernels import RULE_NAMES
torch.set_num_threads(1)
made = {}
for name in FORMULAS:
    for rule_name in RULE_NAMES:
        for dtype in DTYPES:
            x, g = grid(dtype)
            made[name, rule_name, dtype] = run(x, g, name, rule_and_spec(rule_name)[0])
torch.save(made, sys.argv[1])
"""


@pytest.fixture(scope="module")
def by_capability(tmp_path_factory):
    """The results of every pair by each instruction set that this machine has."""
    made = {}
    for capability in CAPABILITIES:
        path = tmp_path_factory.mktemp(capability) / "results.pt"
        ended = in_subprocess(RUN_EVERY_PAIR, path, PYREVGRAD_CPU_CAPABILITY=capability)
        if ended.returncode == 0:
            made[capability] = torch.load(path, weights_only=True)
        else:
            assert "names no instruction set of this machine and build" in ended.stderr
    return made


@needs_native
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", FORMULAS)
def test_every_instruction_set_gives_the_same(name, capability, by_capability):
    if capability not in by_capability:
        pytest.skip(f"this machine has no {capability}")
    for rule_name in RULE_NAMES:
        _, spec = rule_and_spec(rule_name)
        for dtype in DTYPES:
            y, gx = by_capability[capability][name, rule_name, dtype]
            base_y, base_gx = by_capability["portable"][name, rule_name, dtype]
            if name in SELECTS:
                assert same_bits(y, base_y)
            if reproducible(name, spec):
                assert same_bits(gx, base_gx)
            else:
                x, g = grid(dtype)
                wanted = expected_gradient(name, spec, dtype, array(x), array(g), array(y))
                assert_gradient(gx, wanted, f"{name} {rule_name} {dtype} {capability}")
            assert_value(y, grid(dtype)[0], name)


@needs_native
@pytest.mark.parametrize("capability", VECTORISED)
def test_what_is_written_past_the_caches_is_the_same(capability, by_capability, tmp_path):
    if capability not in by_capability:
        pytest.skip(f"this machine has no {capability}")
    variables = {"PYREVGRAD_CPU_CAPABILITY": capability, "PYREVGRAD_STREAM_FROM": "1"}
    told = "from pyrevgrad import backends; assert backends.native().streams_from == 1"
    ended = in_subprocess(told + RUN_EVERY_PAIR, tmp_path / "results.pt", **variables)
    assert ended.returncode == 0, ended.stderr
    made = torch.load(tmp_path / "results.pt", weights_only=True)
    assert made.keys() == by_capability[capability].keys()
    for case, results in made.items():
        assert all(map(same_bits, results, by_capability[capability][case])), case


@needs_native
def test_from_which_size_results_pass_the_caches_is_told(by_capability):
    if len(by_capability) == 1:
        pytest.skip("the portable kernels write nothing past the caches")
    code = "import pyrevgrad; pyrevgrad.show_config()"
    told = {
        given: in_subprocess(code, PYREVGRAD_STREAM_FROM=given).stdout
        for given in ("0", "1000", str(64 << 20))
    }
    assert "past the caches" not in told["0"]
    assert "kernels" in told["1000"] and "; results from 1000 bytes past the caches" in told["1000"]
    assert "; results from 64 MiB past the caches" in told[str(64 << 20)]
    variables = {"PYREVGRAD_STREAM_FROM": "1000", "PYREVGRAD_CPU_CAPABILITY": "portable"}
    assert "past the caches" not in in_subprocess(code, **variables).stdout


@needs_native
@pytest.mark.parametrize("given", ("yes", "-1", "32 MiB"))
def test_no_number_of_bytes_is_refused(given):
    ended = in_subprocess("import pyrevgrad", PYREVGRAD_STREAM_FROM=given)
    assert ended.returncode != 0
    assert (
        f"PYREVGRAD_STREAM_FROM={given}: the bytes from which a result is written past the caches, "
        "or 0 for never"
    ) in ended.stderr


@needs_native
def test_an_instruction_set_that_is_not_there_is_refused():
    ended = in_subprocess("import pyrevgrad", PYREVGRAD_CPU_CAPABILITY="sse9")
    assert ended.returncode != 0
    assert (
        "PYREVGRAD_CPU_CAPABILITY=sse9 names no instruction set of this machine and build; "
        "choose avx512_bf16, avx512, avx2 or portable, or leave it unset"
    ) in ended.stderr


@needs_native
@pytest.mark.parametrize("name", [name for name in FORMULAS if name not in SELECTS])
def test_native_value_is_within_a_few_ulp_of_the_oracle(name):
    """Sharper than the tolerance wherever |y| is not small: 8 ulp, and 1e-7 about zero."""
    for dtype in FULL:
        x, _ = grid(dtype)
        x = x[x.isfinite()]
        with backend("native"):
            y = pyrevgrad.activation(x, name)
        rtol = 8 * torch.finfo(dtype).eps
        atol = min(TOLERANCES[dtype][1], 4 * torch.finfo(dtype).eps)
        wanted = torch.from_numpy(expected_value(name, array(x)))
        torch.testing.assert_close(y.double(), wanted.to(dtype).double(), rtol=rtol, atol=atol)


@needs_native
def test_native_tanh_is_within_three_ulp():
    x = torch.cat([torch.linspace(-10, 10, 400_001), torch.logspace(-6, 1, 100_000)])
    wanted = torch.tanh(x.double())
    with backend("native"):
        found = pyrevgrad.tanh(x)
    ulp = torch.nextafter(wanted.abs().float(), torch.tensor(2.0)) - wanted.abs().float()
    assert ((found - wanted).abs() / ulp).max() < 3
