"""The machine code of the CUDA kernels, read without a GPU: widths, registers, no local memory.

Reads the objects that the build left in build/objects, through cuda_objects.py.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from cuda_objects import DTYPES, OBJECTS, cuda_architectures, disassembler, kernels

from pyrevgrad.activations import ACTIVATIONS

ROOT = Path(__file__).resolve().parent.parent
CUBINS = [name for name in cuda_architectures() if name.startswith("sm_")]
pytestmark = [
    pytest.mark.skipif(not CUBINS, reason="no CUDA library in this checkout"),
    pytest.mark.skipif(disassembler() is None, reason="no cuobjdump, of the toolkit or Triton"),
    pytest.mark.skipif(
        not (OBJECTS / "cuda_kernels_float32.ptxas").is_file(), reason="no objects of the build"
    ),
]
each = pytest.mark.parametrize(
    ("dtype", "architecture"), [(dtype, name) for dtype in DTYPES for name in CUBINS]
)
#: 16-byte accesses that a thread keeps under way for each tensor: csrc/cuda/bodies.h.
STEPS = {"any": 1, "plain": 2, "none": 4, "gradient": 4}
CHEAP = (
    "identity", "relu", "leaky_relu", "relu6", "hardtanh", "hardshrink", "softshrink",
    "hardsigmoid", "sign", "round", "heaviside",
)  # fmt: skip


def steps(kernel):
    if kernel.direction != "Forward":
        return STEPS[kernel.variant]
    return 4 if kernel.activation.lower() in {name.replace("_", "") for name in CHEAP} else 2


def tensors_read(kernel):
    return 2 if kernel.direction in ("BackwardOutput", "BackwardInput") else 1


@each
def test_every_activation_has_its_kernels(dtype, architecture):
    found = kernels(dtype, architecture)
    for direction, variant in (
        ("Forward", ""),
        ("Forward", "interval's mask"),
        ("BackwardInput", "any"),
    ):
        named = {k.activation.lower() for k in found
                 if k.direction == direction and k.variant == variant}  # fmt: skip
        assert named == {name.replace("_", "") for name in ACTIVATIONS}


@each
def test_whole_tiles_move_by_16_bytes_at_a_time(dtype, architecture):
    """As many wide loads and stores as a thread has steps: none was split or merged."""
    for kernel in kernels(dtype, architecture):
        wide_loads = [load for load in kernel.loads if load.endswith(".128")]
        wide_stores = [store for store in kernel.stores if store.endswith(".128")]
        assert len(wide_loads) == steps(kernel) * tensors_read(kernel), kernel.name
        assert len(wide_stores) == steps(kernel), kernel.name


@each
def test_nothing_is_spilled_or_kept_in_local_or_shared_memory(dtype, architecture):
    for kernel in kernels(dtype, architecture):
        assert kernel.stack == kernel.spills == 0, kernel.name
        local = [line for line in (*kernel.loads, *kernel.stores) if line[:3] not in ("LDG", "STG")]
        assert local == [], kernel.name


@each
def test_registers_leave_room_for_three_blocks_on_a_multiprocessor(dtype, architecture):
    """65536 registers, 256 threads a block; the dear kernels and the common rules leave more."""
    for kernel in kernels(dtype, architecture):
        assert kernel.registers <= 80, kernel.name
        if kernel.variant in ("none", "gradient") or steps(kernel) <= 2:
            assert kernel.registers <= 56, kernel.name


@each
def test_mask_is_written_by_the_byte_once_for_each_step(dtype, architecture):
    for kernel in kernels(dtype, architecture):
        if kernel.variant in ("own mask", "interval's mask"):
            assert sum(store == "STG.E.U8" for store in kernel.stores) == steps(kernel), kernel.name


#: Instructions that are started for each byte that is copied, by size of an element: 528 schedulers
#: of 32 lanes, on an H200 at 1.98 GHz and 4.3 TB/s, on an H100 at 1.755 GHz and 3.0 TB/s.
EACH_BYTE = {2: 7.8, 4: 9.8}


@each
def test_arithmetic_leaves_the_memory_the_pace(dtype, architecture):
    """Whole ways, from a thread's first instruction to its last. float64 has a unit of its own."""
    if dtype == "float64":
        pytest.skip("its instructions are not the ones that are counted")
    size = 4 if dtype == "float32" else 2
    for kernel in kernels(dtype, architecture):
        moved = (1 + tensors_read(kernel)) * size
        limit, special = EACH_BYTE[size] * moved, 3 if size == 4 else 2
        if (kernel.direction, kernel.variant) == ("BackwardInput", "any"):
            # The longest way of any rule is rectgrad's, which computes the value beside the slope.
            limit, special = 1.5 * limit, 2 * special
        assert kernel.path <= limit * kernel.elements, kernel.name
        assert kernel.special <= special * kernel.elements, kernel.name


def test_the_documented_table_is_up_to_date(monkeypatch):
    """Another toolkit may choose other registers, so the table names the one that it is of."""
    if not (ROOT / "docs").is_dir():
        pytest.skip("the documentation is in the repository only")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    page = importlib.import_module("machine_code")
    text = page.PAGE.read_text(encoding="utf-8")
    if page.ARCHITECTURE not in CUBINS or f"Built by CUDA {page.version()} for" not in text:
        pytest.skip("the table is of another toolkit or architecture")
    assert page.filled(text) == text, "run python docs/machine_code.py"
