"""torch.compile keeps every rule: one graph, right gradients, no recompilation for a live scale."""

from __future__ import annotations

import itertools

import pytest
import torch
from compiling import both, fresh_compiler, inputs  # noqa: F401
from grids import DTYPES, grid, same_bits

import pyrevgrad
from pyrevgrad import DECONVNET, EXACT, GUIDED, autograd, backends, reverse
from pyrevgrad.nn import Activation, ReversedLinear
from pyrevgrad.reference import eager
from pyrevgrad.rules import RULES

pytestmark = pytest.mark.filterwarnings("ignore")

ACTIVATIONS = ("relu", "leaky_relu", "tanh", "elu", "gelu", "identity", "sign")
CURVED = ("tanh", "elu", "gelu")
NATIVE = pyrevgrad.backends._native is not None


def check_same(name, eager, compiled):
    """Bit for bit where numbers are chosen and scaled; compiled code has its own exponentials."""
    if name in CURVED:
        torch.testing.assert_close(compiled, eager)
    else:
        assert all(map(torch.equal, eager, compiled))


class Graphs:
    """A compiler backend that counts its calls (Dynamo may trace the first call twice)."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, module, example_inputs):
        from torch._dynamo.backends.debugging import aot_eager

        self.count += 1
        return aot_eager(module, example_inputs)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_one_graph_gives_the_eager_value_and_gradient(name, rule):
    x, g = inputs(33, 7)

    def function(x):
        return pyrevgrad.activation(x, name, rule)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    check_same(name, both(function, x, g), both(compiled, x, g))


@pytest.mark.parametrize("rule", (EXACT, GUIDED, RULES["rectgrad"]), ids=repr)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_one_graph_of_the_reference_which_cuda_tensors_get(name, rule):
    """No output may be what an operation was given: torch 2.11 would send its gradient astray."""
    graphs = []

    def keeps(module, example_inputs):
        graphs.append(module)
        return module

    x, g = inputs(33, 7)
    with pyrevgrad.backend("reference"):
        wanted = both(lambda x: pyrevgrad.activation(x, name, rule), x, g)
        compiled = torch.compile(
            lambda x: pyrevgrad.activation(x, name, rule), fullgraph=True, backend=keeps
        )
        assert all(map(torch.equal, wanted, both(compiled, x, g)))
    operations = [
        node.target
        for graph in graphs
        for module in graph.modules()
        for node in getattr(module, "graph", torch.fx.Graph()).nodes
    ]
    assert torch.where in operations or name in ("tanh", "gelu", "identity", "sign")
    assert "to" not in operations


@pytest.mark.parametrize(
    "layer",
    [
        pyrevgrad.nn.Activation("relu", GUIDED),
        pyrevgrad.nn.Activation("tanh", reverse(torch.tensor(0.3))),
        pyrevgrad.nn.Activation("gelu", reverse(0.3), inplace=False),
        pyrevgrad.nn.GradientReversal(0.3),
    ],
    ids=repr,
)
def test_inductor_compiles_the_layers(layer):
    x, g = inputs(16, 33)
    compiled = torch.compile(layer, fullgraph=True)
    name = getattr(layer, "name", "identity")
    check_same(name, both(layer, x, g), both(compiled, x, g))


def test_inductor_compiles_between_other_operations():
    x, g = inputs(16, 33)

    def function(x):
        return pyrevgrad.relu(x * 2 + 1, GUIDED).sin()

    compiled = torch.compile(function, fullgraph=True)
    torch.testing.assert_close(both(compiled, x, g), both(function, x, g))


def test_in_place_is_honoured():
    x, g = inputs(8, 9)
    layer = pyrevgrad.nn.Activation("relu", GUIDED, inplace=True)

    def function(x):
        z = x + 1
        y = layer(z)
        return y + z

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, both(function, x, g), both(compiled, x, g)))


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_dynamic_shapes_compile_once(name):
    graphs = Graphs()
    layer = pyrevgrad.nn.Activation(name, reverse(0.3))
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=graphs)
    first = 0
    for shape in ((4, 6), (5, 7), (9, 33)):
        x, g = inputs(*shape)
        check_same(name, both(layer, x, g), both(compiled, x, g))
        first = first or graphs.count
    assert graphs.count == first


@pytest.mark.parametrize("rule", (EXACT, reverse(0.3), GUIDED.clipped(0.5)), ids=repr)
@pytest.mark.parametrize("name", pyrevgrad.activations.ACTIVATIONS)
def test_two_activations_of_one_kind_compile_with_dynamic_shapes(name, rule):
    """A float that two Functions read would be an input of the graph, which they cannot share."""
    first, second = (pyrevgrad.nn.Activation(name, rule) for _ in range(2))

    def function(x):
        return pyrevgrad.activation(second(first(x) * 3), name, rule)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((5, 6), (7, 6)):
        x, g = inputs(*shape)
        torch.testing.assert_close(both(compiled, x, g), both(function, x, g))


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_channels_last_keeps_its_strides(name, dynamic):
    x, g = inputs(2, 3, 5, 7)
    x = x.contiguous(memory_format=torch.channels_last)
    layer = pyrevgrad.nn.Activation(name, GUIDED if name == "relu" else reverse(0.3))
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    found = both(layer, x, g), both(compiled, x, g)
    check_same(name, *found)
    for one, other in zip(*found, strict=True):
        assert one.stride() == other.stride()


def hundred_values(make, set_value):
    graphs = Graphs()
    layer = make()
    compiled = torch.compile(layer, fullgraph=True, backend=graphs)
    x, g = inputs(8)
    first = 0
    for step in range(100):
        set_value(layer, step / 10)
        y = compiled(x)
        gx = torch.autograd.grad(y, x, g)[0]
        slope = (x > 0).float() if isinstance(layer, pyrevgrad.nn.Activation) else 1.0
        torch.testing.assert_close(gx, -step / 10 * slope * g)
        first = first or graphs.count
    assert graphs.count == first


def test_a_hundred_scales_of_a_reversal_compile_once():
    hundred_values(pyrevgrad.nn.GradientReversal, lambda layer, value: layer.set_scale(value))


def test_a_hundred_scales_of_an_activation_compile_once():
    hundred_values(
        lambda: pyrevgrad.nn.Activation("relu", reverse(torch.tensor(0.0))),
        lambda layer, value: layer.set_scale(value),
    )


def test_a_hundred_tensor_scales_of_the_function_compile_once():
    scale = torch.tensor(0.0, dtype=torch.float64)
    graphs = Graphs()
    compiled = torch.compile(
        lambda x: pyrevgrad.reverse_gradient(x, scale), fullgraph=True, backend=graphs
    )
    x, g = inputs(8)
    first = 0
    for step in range(100):
        scale.fill_(step / 10)
        torch.testing.assert_close(torch.autograd.grad(compiled(x), x, g)[0], -step / 10 * g)
        first = first or graphs.count
    assert graphs.count == first


def test_the_rule_is_guarded():
    compiled = torch.compile(
        lambda x, rule: pyrevgrad.relu(x, rule), fullgraph=True, backend="aot_eager"
    )
    x, g = inputs(8, 9)
    for rule in (GUIDED, DECONVNET, EXACT, reverse(0.5), GUIDED):
        expected = torch.autograd.grad(pyrevgrad.relu(x, rule), x, g)[0]
        assert torch.equal(torch.autograd.grad(compiled(x, rule), x, g)[0], expected)


def test_setting_a_layers_rule_recompiles_it():
    layer = pyrevgrad.nn.Activation("relu", GUIDED)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, g = inputs(8, 9)
    for rule in (GUIDED, DECONVNET, reverse(2.0)):
        layer.rule = rule
        expected = torch.autograd.grad(pyrevgrad.relu(x, rule), x, g)[0]
        assert torch.equal(torch.autograd.grad(compiled(x), x, g)[0], expected)


def test_the_reference_compiles_to_plain_operations():
    """What CUDA takes: no opaque operation stands between Inductor and its neighbours."""
    seen = []

    def backend(module, example_inputs):
        from torch._dynamo.backends.common import aot_autograd
        from torch._functorch.aot_autograd import make_boxed_func

        def keep(graph, inputs):
            seen.extend(str(node.target) for node in graph.graph.nodes)
            return make_boxed_func(graph.forward)

        return aot_autograd(fw_compiler=keep, bw_compiler=keep)(module, example_inputs)

    x, g = inputs(8, 9)
    with pyrevgrad.backend("reference"):
        compiled = torch.compile(
            lambda x: pyrevgrad.relu(x, GUIDED), fullgraph=True, backend=backend
        )
        y, gx = both(compiled, x, g)
    assert torch.equal(y, x.detach().relu())
    assert torch.equal(gx, torch.where((x > 0) & (g > 0), g, 0.0))
    assert seen and not any("pyrevgrad" in target for target in seen)


@pytest.mark.skipif(not NATIVE, reason="the native library is not built")
def test_changing_the_backend_recompiles():
    compiled = torch.compile(
        lambda x: pyrevgrad.gelu(x, GUIDED), fullgraph=True, backend="aot_eager"
    )
    x, g = inputs(64)
    native = both(compiled, x, g)[0]
    with pyrevgrad.backend("reference"):
        reference = both(compiled, x, g)[0]
    assert torch.equal(native, pyrevgrad.gelu(x, GUIDED))
    with pyrevgrad.backend("reference"):
        assert torch.equal(reference, pyrevgrad.gelu(x, GUIDED))


@pytest.mark.parametrize("compiled_outside", [True, False])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_with_func_grad_is_modified_or_refused(compiled_outside, backend):
    x = torch.linspace(-2, 2, 9)
    weight = torch.tensor([1.0, -1.0, 2.0, -2.0, 1.0, -1.0, 3.0, -3.0, 1.0])

    def loss(x):
        return (pyrevgrad.relu(x, GUIDED) * weight).sum()

    expected = torch.where((x > 0) & (weight > 0), weight, 0.0)
    if compiled_outside:
        function = torch.compile(torch.func.grad(loss), backend=backend)
    else:
        function = torch.func.grad(torch.compile(loss, backend=backend))
    try:
        found = function(x)
    except Exception as error:  # a refusal is right, a plain gradient is not
        assert torch.__version__ < (2, 13)
        assert "functorch" in str(error) or "torch.func" in str(error)
    else:
        assert torch.equal(found, expected)


def test_compile_with_func_grad_of_a_layer_is_modified_or_refused():
    x = torch.linspace(-2, 2, 9)
    layer = pyrevgrad.nn.GradientReversal(2.0)
    function = torch.compile(torch.func.grad(lambda x: (layer(x) * x.detach()).sum()))
    try:
        found = function(x)
    except Exception as error:
        assert torch.__version__ < (2, 13)
        assert "functorch" in str(error) or "torch.func" in str(error)
    else:
        assert torch.equal(found, -2 * x)


def test_no_gradient_compiles_to_the_value_alone():
    x, _ = inputs(8, 9)
    compiled = torch.compile(lambda x: pyrevgrad.relu(x, GUIDED), fullgraph=True)
    with torch.no_grad():
        y = compiled(x)
    assert torch.equal(y, x.relu()) and y.grad_fn is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_compile(dtype):
    x, g = inputs(40, dtype=dtype)

    def function(x):
        return pyrevgrad.elu(x, reverse(0.3))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(both(compiled, x, g), both(function, x, g))


# What torch 2.10 and 2.11 do otherwise.


def test_a_rule_is_kept_where_every_trace_says_that_it_exports(monkeypatch):
    """As before torch 2.12: True where Dynamo traces the question, false where Python asks it."""
    monkeypatch.setattr(
        torch.compiler, "is_exporting", lambda: torch.compiler.is_dynamo_compiling()
    )
    x, g = inputs(8, 9)
    compiled = torch.compile(
        lambda x: pyrevgrad.relu(x, GUIDED), fullgraph=True, backend="aot_eager"
    )
    assert all(
        map(torch.equal, both(lambda x: pyrevgrad.relu(x, GUIDED), x, g), both(compiled, x, g))
    )


def test_a_rule_is_made_inside_of_a_graph_without_hashing_a_tuple():
    """Which Dynamo cannot do before torch 2.12."""
    scale = torch.tensor(0.5)
    made = reverse(scale)
    assert "_hash" not in vars(made) and hash(made) == hash(made.text)
    compiled = torch.compile(
        lambda x: pyrevgrad.relu(x, GUIDED.scaled(scale)), fullgraph=True, backend="aot_eager"
    )
    x, g = inputs(8, 9)
    assert torch.equal(both(compiled, x, g)[1], torch.where((x > 0) & (g > 0), g * 0.5, 0.0))


def test_what_a_compiled_function_is_given_is_no_frozen_dataclass():
    """Before torch 2.11 Dynamo makes one anew from all of its fields, and cannot make a Rule so."""
    pair = pyrevgrad.backends.pairs_of("relu", GUIDED, {}).full
    given = (pair, pyrevgrad.backends.choose(torch.ones(1), pair))
    assert not any(torch._dynamo.utils.is_frozen_dataclass(argument) for argument in given)


# What a compiler sees of a mask.


def pair_of(name, rule_name, dtype):
    pairs = backends.pairs_of(name, RULES[rule_name], {})
    return pairs.half if dtype in backends.HALF_TYPES else pairs.full


#: Of all pairs and dtypes, those of which a compiler is given y in place of a mask.
BY_OUTPUT = [
    case
    for case in itertools.product(pyrevgrad.activations.ACTIVATIONS, RULES, DTYPES)
    if pair_of(*case).by_output is not None
]


def test_the_output_stands_in_for_the_mask_of_these():
    names = {name for name, _, _ in BY_OUTPUT}
    assert names == {"relu", "leaky_relu", "relu6", "hardtanh", "hardshrink"}
    assert ("relu", "GUIDED", torch.bfloat16) in BY_OUTPUT
    assert ("hardtanh", "EXACT", torch.bfloat16) not in BY_OUTPUT, "a bound is rounded in y"


@pytest.mark.parametrize(("name", "rule_name", "dtype"), BY_OUTPUT, ids=str)
def test_what_keeps_the_output_for_a_compiler_sends_what_the_mask_does(name, rule_name, dtype):
    """Kinks, their neighbours, subnormals, NaN."""
    pair = pair_of(name, rule_name, dtype)
    x, g = grid(dtype)
    wanted = eager.gradient_of_mask(g, eager.bit(x, pair), pair, None)
    found = eager.gradient_of_output(g, eager.value(x, pair), pair.by_output, None)
    assert same_bits(found, wanted)


def kept_dtypes(function, x, g):
    """The dtypes of what Inductor's partition keeps for backward, and all operations."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    kept, operations = [], set()

    def forward(graph, inputs):
        output = next(node for node in graph.graph.nodes if node.op == "output")
        kept.extend(node.meta["val"].dtype for node in output.args[0][1:])
        operations.update(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    compiler = aot_autograd(
        fw_compiler=forward,
        bw_compiler=lambda graph, inputs: make_boxed_func(graph.forward),
        partition_fn=min_cut_rematerialization_partition,
    )
    both(torch.compile(function, fullgraph=True, backend=compiler), x, g)
    return kept, operations


@pytest.mark.parametrize(
    ("name", "rule_name"),
    [(name, rule) for name, rule, dtype in BY_OUTPUT if dtype == torch.float32],
)
def test_no_mask_is_kept_where_the_next_layer_keeps_the_output(name, rule_name):
    rule = RULES[rule_name]
    x, g = inputs(8, 9)
    weight = torch.randn(9, 9, generator=torch.Generator().manual_seed(1), requires_grad=True)
    kept, operations = kept_dtypes(lambda x: pyrevgrad.activation(x, name, rule) @ weight, x, g)
    assert torch.bool not in kept
    assert not any("pyrevgrad" in operation for operation in operations)
    alone, _ = kept_dtypes(lambda x: pyrevgrad.activation(x, name, rule), x, g)
    assert torch.bool not in alone, "code for the CPU writes and reads bytes slowly"


@pytest.mark.skipif(not NATIVE, reason="the native library is not built")
def test_a_mask_that_x_alone_tells_stays_packed():
    x, g = inputs(8, 9)
    kept, operations = kept_dtypes(lambda x: pyrevgrad.gelu(x, GUIDED), x, g)
    assert torch.uint8 in kept and torch.bool not in kept
    assert any("pyrevgrad" in operation for operation in operations)


@pytest.mark.skipif(autograd.NODES is None, reason="the C++ nodes are not built")
@pytest.mark.parametrize("layer", [Activation("relu", GUIDED), ReversedLinear(2, 2)], ids=repr)
def test_compiled_autograd_is_told_how_to_read_the_nodes(layer):
    y = layer(torch.ones(2, requires_grad=True)).sum()
    with torch._dynamo.config.patch(compiled_autograd=True):
        step = torch.compile(torch.Tensor.backward, backend="eager")
        with pytest.raises(NotImplementedError, match="set PYREVGRAD_AUTOGRAD=python"):
            step(y)
