"""The library's operations as torch.library.opcheck holds them: what each writes, and its fake.

It may import the package and the grids.
"""

import pytest
import torch
from grids import DTYPES, needs_native
from test_layouts import LAYOUTS

from pyrevgrad import EXACT, GUIDED, backends, reverse

pytestmark = needs_native
CHECKS = ("test_schema", "test_faketensor")
SHAPE = (2, 3, 4, 5)


def program_of(name, rule, dtype):
    pairs = backends.Pairs(name, rule, {})
    return (pairs.half if dtype.itemsize == 2 else pairs.full).program


def checked(name, *arguments):
    torch.library.opcheck(getattr(torch.ops.pyrevgrad, name).default, arguments, test_utils=CHECKS)


def tensors(layout, dtype):
    """x and g of a layout, with numbers on both sides of 0."""
    for seed in (0, 1):
        filled = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
        yield LAYOUTS[layout](filled.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operations_are_as_their_schemas_and_fakes_say(layout, dtype):
    x, g = tensors(layout, dtype)
    guided, tanh = (program_of(*pair, dtype) for pair in (("relu", GUIDED), ("tanh", EXACT)))
    checked("value", x, tanh)
    checked("value_and_mask", x, guided)
    y, mask = torch.ops.pyrevgrad.value_and_mask(x, guided)
    checked("backward", g, mask, guided, None, list(y.stride()))
    checked("backward", g, mask, guided)
    scale = torch.tensor(0.3, dtype=torch.float64)
    checked("backward", g, torch.ops.pyrevgrad.value(x, tanh), tanh, scale)
    checked("backward", g, None, program_of("identity", reverse(0.3), dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operations_in_place_are_as_their_schemas_and_fakes_say(layout, dtype):
    x, _ = tensors(layout, dtype)
    checked("value_", x, program_of("tanh", EXACT, dtype))
    checked("value_and_mask_", x, program_of("relu", GUIDED, dtype))


def test_a_program_first_used_in_inference_mode_is_a_plain_tensor():
    # A scale of no other test, of which there is no program yet.
    with torch.inference_mode():
        program = program_of("relu", GUIDED.scaled(-0.0371), torch.float32)
    assert not program.is_inference()


@pytest.mark.parametrize("count", (0, 1, 7, 8, 9))
def test_a_mask_s_fake_has_as_many_bytes(count):
    x, program = torch.randn(count), program_of("relu", GUIDED, torch.float32)
    checked("value_and_mask", x, program)
    checked("value_and_mask_", x, program)
