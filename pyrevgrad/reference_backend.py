"""The reference as the choice of backends sees it: what is kept is the eager formulas' own.

Imports the activation table, pairs and the eager formulas.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .activations import MASK
from .pairs import Pair
from .reference import eager


def _tested_in_backward(kept: Tensor, g: Tensor) -> Tensor:
    """`kept`, bound to `g` where torch.compile compiles for the CPU.

    It would else test what is kept in the forward already and keep the answers, a byte each, which
    its code for the CPU writes and reads slowly: docs/design.md has figures.
    """
    if not (torch.compiler.is_compiling() and g.is_cpu):
        return kept
    return kept + (g != g) * kept.new_zeros(())


class Reference:
    """Plain PyTorch on any device, its masks unpacked booleans."""

    name = "reference"

    @staticmethod
    def value(x: Tensor, pair: Pair) -> Tensor:
        return eager.value(x, pair)

    @staticmethod
    def value_and_mask(x: Tensor, pair: Pair) -> tuple[Tensor, Tensor]:
        return eager.value(x, pair), eager.bit(x, pair)

    @staticmethod
    def value_(x: Tensor, pair: Pair) -> None:
        x.copy_(eager.value(x, pair))

    @staticmethod
    def value_and_mask_(x: Tensor, pair: Pair) -> Tensor:
        mask = eager.bit(x, pair)
        x.copy_(eager.value(x, pair))
        return mask

    @staticmethod
    def backward(
        g: Tensor, kept: Tensor | None, pair: Pair, scale: Tensor | None, strides: Any = None
    ) -> Tensor:
        if kept is None:
            return eager.gradient_of_nothing(g, pair, scale)
        if pair.keeps == "mask":
            return eager.gradient_of_mask(g, kept, pair, scale)
        if pair.keeps == "output":
            if pair.row.slope_from == MASK:
                kept = _tested_in_backward(kept, g)
            return eager.gradient_of_output(g, kept, pair, scale)
        return eager.gradient_of_input(g, kept, pair, scale)

    @staticmethod
    def unpacked(mask: Tensor, shape: torch.Size, strides: Any) -> Tensor:
        return mask

    @staticmethod
    def mask_strides(x: Tensor) -> None:
        return None


REFERENCE = Reference()
