"""What the tests of both CUDA backends share: a pair run on a device, the oracle, a capture.

Imports grids.py, oracle.py and torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from grids import (
    DTYPES,
    array,
    assert_gradient,
    assert_value,
    grid,
    run,
)
from oracle import (
    SELECTS,
    expected_gradient,
    rule_and_spec,
)
from torch import Tensor


def run_on(
    device: torch.device, x: Tensor, g: Tensor, name: str, rule: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    """(y, gx) of a pair computed on the device, brought back."""
    y, gx = run(x.to(device), g.to(device), name, rule, **options)
    assert y.device.type == gx.device.type == device.type
    return y.cpu(), gx.cpu()


def assert_agrees_with_the_oracle(device: torch.device, name: str, rule_name: str) -> None:
    """Value and gradient of a pair in every dtype are those of the float64 formulas."""
    rule, spec = rule_and_spec(rule_name)
    for dtype in DTYPES:
        x, g = grid(dtype, name in SELECTS)
        y, gx = run_on(device, x, g, name, rule)
        assert_value(y, x, name)
        columns = {"x": array(x), "g": array(g), "y": array(y)}
        wanted = expected_gradient(name, spec, dtype, *columns.values())
        assert_gradient(gx, wanted, f"of {name} under {rule} in {dtype} are off", **columns)


def captured(step: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of `step` and what it returned, after three runs on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()
    return graph, made
