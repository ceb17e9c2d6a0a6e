"""Custom rules in PyTorch and Triton, for the tests that run and compile them.

Imports triton and the package.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from expected import example

import pyrevgrad


def everything(g, slope, x, y, a, b):
    return torch.where(x * y > a, slope * g, b * g)


@triton.jit
def fused_everything(g, slope, x, y, a, b):
    return tl.where(x * y > a, slope * g, b * g)


def by_output(g, y):
    return torch.where(y <= 0, 0.0, g * y)


@triton.jit
def fused_by_output(g, y):
    return tl.where(y <= 0, 0.0, g * y)


def squared(g):
    return g * g


@triton.jit
def fused_squared(g):
    return g * g


_SQUARED = pyrevgrad.custom_rule("custom_squared", squared, triton=fused_squared)
CUSTOM_RULES = {
    "floored": example("custom_rule").floored,
    "custom_all": pyrevgrad.custom_rule(
        "custom_all", everything, triton=fused_everything, parameters={"a": 0.3, "b": 0.125}
    ),
    "custom_output": pyrevgrad.custom_rule("custom_output", by_output, triton=fused_by_output),
    "custom_gated": replace(_SQUARED, input_gate="positive", gradient_gate="gradient"),
}


@triton.jit
def doubled(x):
    return x * 2.0


@triton.jit
def two(x):
    return x * 0.0 + 2.0


@triton.jit
def tripled(x):
    return x * 3.0


@triton.jit
def three(x):
    return x * 0.0 + 3.0


#: By its factor, (value, slope) in PyTorch and in Triton.
MULTIPLIED = {
    2.0: (lambda x: x * 2, lambda x: x * 0 + 2, (doubled, two)),
    3.0: (lambda x: x * 3, lambda x: x * 0 + 3, (tripled, three)),
}


@triton.jit
def sent_doubled(g):
    return g * 2.0


@triton.jit
def sent_tripled(g):
    return g * 3.0


#: A rule's function by its factor, in PyTorch and in Triton.
SENT = {2.0: (lambda g: g * 2, sent_doubled), 3.0: (lambda g: g * 3, sent_tripled)}
