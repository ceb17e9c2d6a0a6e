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


@pytest.mark.parametrize("rule", [EXACT, reverse(0.3), pyrevgrad.guided("slope")], ids=repr)
@pytest.mark.parametrize("name", CURVED)
def test_what_compiled_code_computes_slowly_is_a_kernel_of_ours_where_that_pays(name, rule):
    def operations(elements):
        seen = []

        def note(module, example_inputs):
            seen.extend(str(node.target) for node in module.graph.nodes)
            return module.forward

        def compile_both(module, example_inputs):
            return aot_module_simplified(module, example_inputs, fw_compiler=note)

        torch._dynamo.reset()
        x = torch.randn(elements, requires_grad=True)
        function = torch.compile(
            lambda x: pyrevgrad.activation(x, name, rule), fullgraph=True, backend=compile_both
        )
        function(x).sum().backward()
        return [name for name in seen if "pyrevgrad" in name]

    slow = name in ("tanh", "tanhshrink", "logsigmoid", "mish")
    assert bool(operations(1 << 14)) == slow
    assert not operations((1 << 14) - 1)
