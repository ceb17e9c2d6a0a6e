"""The native backend: the compiled library's operations, their shapes and the pair as numbers.

Importing this module loads the library; ImportError where it is not built. The CUDA kernels are a
library of their own, loaded beside it on a torch with CUDA. Imports pairs, masks and binding.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import masks
from .binding import CURE, NODES
from .pairs import Pair

importlib.import_module("pyrevgrad._native")

CUDA_BUILD_REPORT = Path(__file__).with_name("_build_report_cuda.txt")


def _load_cuda() -> str:
    """Load the CUDA kernels, or say why there are none."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA. Cure: install one that is built with it."
    try:
        importlib.import_module("pyrevgrad._native_cuda")
    except ImportError as error:
        report = CUDA_BUILD_REPORT.read_text().strip() if CUDA_BUILD_REPORT.exists() else ""
        return report or (
            f"the library of the CUDA kernels did not load ({error}). Cure: with nvcc, run {CURE}."
        )
    return ""


class Native:
    """The compiled library: one kernel each way, its masks packed in memory order."""

    name = "native"

    def __init__(self) -> None:
        operations = torch.ops.pyrevgrad
        self._value = operations.value.default
        self._value_and_mask = operations.value_and_mask.default
        self._value_ = operations.value_.default
        self._value_and_mask_ = operations.value_and_mask_.default
        self._backward = operations.backward.default
        *names, self.capability, huge_pages, streams = operations.describe.default().split(",")
        self.asks_for_huge_pages = huge_pages == "1"
        self.streams_from = int(streams)
        self.codes = {name: code for code, name in enumerate(names)}
        self.cuda_missing = _load_cuda()
        self._cuda_problems: dict[int, str] = {}

    def cuda_problem(self, index: int) -> str:
        """Why the CUDA kernels do not serve device `index`, or nothing; kept where it will stay."""
        if self.cuda_missing:
            return self.cuda_missing
        try:
            return self._cuda_problems[index]
        except KeyError:
            with _disable_current_modes():
                problem = torch.ops.pyrevgrad.cuda_problem.default(index)
            # What CUDA names an error of its own may pass, such as memory that is used up.
            if "(cudaError" not in problem:
                self._cuda_problems[index] = problem
            if NODES is not None and not problem:
                NODES.serve_cuda(index)
            return problem

    def cuda_build(self) -> str:
        """The CUDA version that the kernels are built with, and what they are compiled for."""
        version, *code = torch.ops.pyrevgrad.cuda_build.default().split(",")
        return f"CUDA {version} kernels for {', '.join(code)}"

    def value(self, x: Tensor, pair: Pair) -> Tensor:
        return self._value(x, pair.program)

    def value_and_mask(self, x: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
        return self._value_and_mask(x, pair.program)

    def value_(self, x: Tensor, pair: Pair) -> None:
        self._value_(x, pair.program)

    def value_and_mask_(self, x: Tensor, pair: Pair) -> Tensor:
        return self._value_and_mask_(x, pair.program)

    def backward(
        self, g: Tensor, kept: Tensor | None, pair: Pair, scale: Tensor | None, strides: Any = None
    ) -> Tensor:
        if scale is None and strides is None:
            return self._backward(g, kept, pair.program)
        return self._backward(g, kept, pair.program, scale, strides)

    unpacked = staticmethod(masks.unpacked)
    mask_strides = staticmethod(masks.mask_strides)

    def program(self, pair: Pair) -> Tensor | None:
        """The pair as csrc/rule.h lays it out; None where the library lacks it."""
        code = self.codes.get(pair.row.name)
        if code is None or pair.rule.custom:
            return None
        rule = pair.rule
        a, b = (*pair.numbers, 0.0, 0.0)[:2]
        numbers = (
            code,
            ("nothing", "mask", "output", "input").index(pair.keeps),
            ("none", "own", "positive", "interval").index(pair.bit),
            (None, "gradient", "product", "output").index(rule.gradient_gate),
            rule.slope == "identity",
            a,
            b,
            *pair.interval,
            pair.slope_high,
            pair.slope_low,
            rule.threshold,
            rule.clip,
            rule.scale,
        )
        # A real tensor for every later call, whatever mode or transform the first one runs in.
        with torch._C._DisableFuncTorch(), _disable_current_modes(), torch.inference_mode(False):
            return torch.tensor(numbers, dtype=torch.float64, device="cpu")


def _fake_value(x: Tensor, program: Tensor) -> Tensor:
    return torch.empty_like(x)


def _fake_value_and_mask(x: Tensor, program: Tensor) -> tuple[Tensor, Tensor]:
    mask = torch.empty((x.numel() + 7) // 8, dtype=torch.uint8, device=x.device)
    return torch.empty_like(x), mask


def _fake_value_(x: Tensor, program: Tensor) -> None:
    return None


def _fake_value_and_mask_(x: Tensor, program: Tensor) -> Tensor:
    return torch.empty((x.numel() + 7) // 8, dtype=torch.uint8, device=x.device)


def _fake_backward(
    gradient: Tensor,
    kept: Tensor | None,
    program: Tensor,
    scale: Tensor | None = None,
    strides: Any = None,
) -> Tensor:
    if kept is None:
        return torch.empty_like(gradient)
    if kept.dtype != torch.uint8:
        return torch.empty_like(kept)
    if strides is None:
        return torch.empty_like(gradient, memory_format=torch.contiguous_format)
    return torch.empty_strided(
        gradient.shape, strides, dtype=gradient.dtype, device=gradient.device
    )


# Shapes and strides for torch.compile, as csrc/library.cpp returns them.
for _name, _fake in {
    "value": _fake_value,
    "value_and_mask": _fake_value_and_mask,
    "value_": _fake_value_,
    "value_and_mask_": _fake_value_and_mask_,
    "backward": _fake_backward,
}.items():
    torch.library.register_fake(f"pyrevgrad::{_name}")(_fake)
