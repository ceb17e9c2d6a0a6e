"""Instructions, dispatched operations and allocations keep to the budgets of bench/budgets.json.

It runs the suite's counters: valgrind over a driver of the kernels, and torch's profiler.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmark suite is in the repository only", allow_module_level=True)
# At the end of the path: the installed package is what is measured, never the checkout.
sys.path.append(str(ROOT))

from bench import answers, counts, dispatches, instructions  # noqa: E402
from pyrevgrad import backends  # noqa: E402

BUDGETS = counts.load()


def test_instructions_of_the_kernels_keep_to_their_budgets():
    reason = counts.why_not_instructions(BUDGETS)
    if reason:
        pytest.skip(reason)
    try:
        rows = instructions.measure()
    except instructions.UnavailableError as error:
        pytest.skip(str(error))
    found = counts.budgets_of([{"kind": "instruction", **row} for row in rows])
    problems = counts.instruction_problems(found["instructions"], BUDGETS["instructions"])
    assert problems == [], BUDGETS["how"]


@pytest.mark.parametrize("recorder", dispatches.RECORDERS)
def test_operations_and_allocations_of_a_call_are_exactly_their_budgets(recorder):
    reason = counts.why_not_dispatches(BUDGETS)
    if reason:
        pytest.skip(reason)
    rows = answers.of_recorder(recorder, "dispatches")
    if "skipped" in rows[0]:
        pytest.skip(rows[0]["skipped"])
    found = counts.budgets_of([{"kind": "dispatch", **row} for row in rows])["dispatches"]
    problems = counts.dispatch_problems(found[recorder], BUDGETS["dispatches"][recorder])
    assert problems == [], BUDGETS["how"]


def test_every_kernel_s_data_type_has_a_budget():
    names = {(one.name, one.dtype) for one in instructions.counted()}
    budgets = BUDGETS["instructions"]
    assert names == {(name, dtype) for name, found in budgets.items() for dtype in found}


def test_a_reversal_folded_into_a_linear_layer_launches_no_kernel():
    """And a layer of its own launches one, backward: the budgets must not drift from the claim."""
    reason = counts.why_not_dispatches(BUDGETS)
    if reason:
        pytest.skip(reason)
    plain = dispatches.step_row("plain", "no reversal")["kernels"]
    for recorder, budgets in BUDGETS["dispatches"].items():
        assert budgets["step of ReversedLinear"]["kernels"] == plain, recorder
        assert budgets["step of GradientReversal"]["kernels"] == plain + 1, recorder


@pytest.mark.parametrize("change", [1.05, 0.95])
def test_instructions_more_or_fewer_than_the_budget_are_named(change):
    """Fewer too: a gain that is not written down would be lost unseen."""
    counted = copy.deepcopy(BUDGETS["instructions"])
    element, call = counted["relu/reverse forward"]["bfloat16"]
    counted["relu/reverse forward"]["bfloat16"] = [element * change, call]
    (problem,) = counts.instruction_problems(counted, BUDGETS["instructions"])
    assert problem.startswith("relu/reverse forward bfloat16: ")
    assert problem.endswith(f"instructions an element, and its budget is {element}")


def test_instructions_within_the_tolerance_are_kept():
    counted = copy.deepcopy(BUDGETS["instructions"])
    element, call = counted["gelu/reverse forward"]["float32"]
    counted["gelu/reverse forward"]["float32"] = [element * 1.015, call + counts.SLACK]
    assert counts.instruction_problems(counted, BUDGETS["instructions"]) == []


def test_a_kernel_without_a_budget_and_a_budget_without_a_kernel_are_named():
    counted = {"new backward": {"float32": [1.0, 100]}}
    budgets = {"old backward": {"float32": [1.0, 100]}}
    assert counts.instruction_problems(counted, budgets) == [
        "new backward: counted, and it has no budget",
        "old backward: has a budget, and was not counted",
    ]


def test_one_allocation_more_is_named():
    budgets = BUDGETS["dispatches"]["python"]
    counted = copy.deepcopy(budgets)
    counted["relu/GUIDED"]["backward"]["allocations"] += 1
    assert counts.dispatch_problems(counted, budgets) == [
        "relu/GUIDED backward: allocations 2, and the budget is 1"
    ]


def test_another_compiler_or_torch_is_a_reason_and_no_failure(monkeypatch):
    monkeypatch.setattr(backends, "native", lambda: "something")
    monkeypatch.setattr(instructions, "compiler", lambda: "clang version 99")
    reason = counts.why_not_instructions(BUDGETS)
    theirs = "these kernels are by clang version 99"
    assert reason == f"the budgets are for {BUDGETS['compiler']}, and {theirs}"
    monkeypatch.setattr(torch, "__version__", "2.99.0+cpu")
    reason = counts.why_not_dispatches(BUDGETS)
    assert reason == f"the budgets are for torch {BUDGETS['torch']}, and this is 2.99.0"


def test_without_valgrind_nothing_is_counted_and_the_cure_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(instructions.UnavailableError, match=r"valgrind is not there; .*install"):
        instructions.instructions([])


def test_objects_of_another_build_are_refused(monkeypatch, tmp_path):
    if backends.native() is None:
        pytest.skip("the native library is not built here")
    (tmp_path / "kernels_avx2.o").write_bytes(b"GCC: (made up) 1.2.3")
    monkeypatch.setattr(instructions, "OBJECTS", tmp_path)
    monkeypatch.setattr(instructions, "_tool", lambda name, cure: name)
    instructions.compiler.cache_clear()
    try:
        with pytest.raises(instructions.UnavailableError, match="build again here"):
            instructions.instructions([])
    finally:
        instructions.compiler.cache_clear()


def test_kernels_are_counted_where_they_compute_or_copy():
    x, gate = torch.randn(8, 8), torch.ones(8, 8, dtype=torch.bool)
    # The booleans are cast to floats (a kernel), then multiplied; a view launches nothing.
    found = dispatches.profiled(lambda: (x * gate).t())
    assert (found["kernels"], found["allocations"]) == (2, 2)
    assert found["bytes"] == 2 * x.nbytes
    assert dispatches.profiled(lambda: x > 0)["kernels"] == 1
    assert dispatches.profiled(lambda: x.sum())["kernels"] == 2  # it fills with 0 first
