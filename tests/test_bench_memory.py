"""Bytes kept for backward: the suite measures what the plan says."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("bench", reason="the benchmark suite is in the repository only")

from bench import cases, memory, targets
from bench.cases import Case


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", list(cases.ACTIVATIONS))
def test_bytes_kept_are_the_plan_s(activation, dtype):
    if memory.pyrevgrad.backends._native is None:
        pytest.skip("the plan's bytes hold where the native library runs")
    every_rule = [Case(activation, rule) for rule in cases.RULES]
    for row in memory.hooked(every_rule, [dtype]):
        assert (row["fused"], row["idle"]) == (row["plan"], 0), row["case"]


def test_gradient_reversal_keeps_nothing():
    row = memory.view_row()
    assert (row["fused"], row["plan"], row["idle"]) == (0, 0, 0)


def test_resident_memory_is_the_plan_s():
    case, elements = Case("relu", "GUIDED"), 1 << 23
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    row = memory.in_own_process(case, "fused", "float32", elements, dict(environment))
    if "skipped" in row:
        pytest.skip(row["skipped"])
    assert abs(row["kept"] - elements // 8) <= targets.SLACK_BYTES
