"""Which curved activations compiled code for the CPU calls as kernels of ours, from which size."""

import pytest
import torch
from compiling import fresh_compiler  # noqa: F401
from torch._functorch.aot_autograd import aot_module_simplified

import pyrevgrad
from pyrevgrad import EXACT, reverse
from pyrevgrad.activations import ACTIVATIONS

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(pyrevgrad.backends._native is None, reason="the reference is all there is"),
]
CURVED = [name for name, row in ACTIVATIONS.items() if not row.selects]


def noting(function):
    """`function` compiled, and the list of what its graphs call."""
    seen = []

    def note(module, example_inputs):
        seen.extend(str(node.target) for node in module.graph.nodes)
        return module.forward

    def compile_both(module, example_inputs):
        return aot_module_simplified(module, example_inputs, fw_compiler=note)

    return torch.compile(function, fullgraph=True, backend=compile_both), seen


@pytest.mark.parametrize("rule", [EXACT, reverse(0.3), pyrevgrad.guided("slope")], ids=repr)
@pytest.mark.parametrize("name", CURVED)
def test_what_compiled_code_computes_slowly_is_a_kernel_of_ours_where_that_pays(name, rule):
    def operations(elements):
        torch._dynamo.reset()
        compiled, seen = noting(lambda x: pyrevgrad.activation(x, name, rule))
        compiled(torch.randn(elements, requires_grad=True)).sum().backward()
        return [name for name in seen if "pyrevgrad" in name]

    slow = name in ("tanh", "tanhshrink", "logsigmoid", "mish")
    assert bool(operations(1 << 14)) == slow
    assert not operations((1 << 14) - 1)


@pytest.mark.parametrize("first", [4, 1 << 14])
@pytest.mark.parametrize("name", ["tanh", "tanhshrink", "logsigmoid", "mish"])
def test_one_graph_with_a_kernel_of_ours_serves_every_dynamic_size(name, first):
    compiled, seen = noting(lambda x: pyrevgrad.activation(x, name, reverse(0.3)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (first, 50, 1 << 15, 7):
            x = torch.randn(size, requires_grad=True)
            torch._dynamo.mark_dynamic(x, 0)
            (gx,) = torch.autograd.grad(compiled(x).sum(), x)
            y = getattr(torch.nn.functional, name)(x)
            torch.testing.assert_close(gx, -0.3 * torch.autograd.grad(y.sum(), x)[0])
    assert any("pyrevgrad" in name for name in seen)
