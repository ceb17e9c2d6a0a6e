"""What the tests expect of every activation and rule, in float64, from PyTorch's own functions.

Imports PyTorch and the tables' names and defaults; no formula, kernel or binding of ours.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pyrevgrad
from pyrevgrad.activations import ACTIVATIONS


def _native_is_built() -> bool:
    try:
        with pyrevgrad.backend("native"):
            return True
    except pyrevgrad.BackendError:
        return False


#: Triton under its interpreter, which `make triton-matrix` sets.
_INTERPRETED = ["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else []
BACKENDS = ["reference", *_INTERPRETED, *(["native"] if _native_is_built() else [])]


class Serving(TorchDispatchMode):
    """Which backend computes inside the block, by the operations that PyTorch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self._namespaces: set[str] = set()

    @property
    def backend(self) -> str | None:
        """The one that has computed since this was last asked."""
        seen, self._namespaces = self._namespaces, set()
        if not seen:
            return None
        return "native" if "pyrevgrad" in seen else "reference"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._namespaces.add(func.namespace)
        return func(*args, **(kwargs or {}))


#: One pair for each plan, and for each way to a double backward.
SAMPLE = [
    ("relu", "GUIDED"),
    ("leaky_relu", "reverse"),
    ("hardtanh", "rectgrad"),
    ("tanh", "EXACT"),
    ("tanh", "reverse"),
    ("elu", "guided_product"),
    ("gelu", "guided_slope"),
    ("silu", "clipped_straight_through"),
    ("identity", "reverse"),
    ("sigmoid", "deconvnet_clipped"),
    ("mish", "guided_scaled"),
]

_FUNCTIONS = {
    "identity": lambda x: x * 1.0,
    "relu_squared": lambda x: F.relu(x) * F.relu(x),
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "logsigmoid": lambda x: -F.softplus(-x),
    "hardsigmoid": lambda x: F.relu6(x + 3) / 6,
    "sign": torch.sign,
    "round": torch.round,
    "heaviside": lambda x: 0.0 * x + (x > 0),
}


def value(name: str, x: Tensor) -> Tensor:
    """f(x) with the table's default parameters, differentiable by PyTorch to any order."""
    function = _FUNCTIONS.get(name) or getattr(F, name)
    defaults = {p.name: p.default for p in ACTIVATIONS[name].parameters}
    return function(x) if name == "heaviside" else function(x, **defaults)


def slope(name: str, x: Tensor) -> Tensor:
    """f'(x), differentiable in x where x requires grad."""
    with torch.enable_grad():
        at = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(value(name, at).sum(), at, create_graph=True)[0]


#: For each rule of `pyrevgrad.rules.RULES`: slope(s), what passes(x, g, y, s), scale, clip of g.
_RULES = {
    "EXACT": (True, lambda x, g, y, s: g == g, 1.0, None),
    "reverse": (True, lambda x, g, y, s: g == g, -0.3, None),
    "GUIDED": (False, lambda x, g, y, s: (x > 0) & (g > 0), 1.0, None),
    "guided_slope": (True, lambda x, g, y, s: g > 0, 1.0, None),
    "guided_product": (True, lambda x, g, y, s: s * g > 0, 1.0, None),
    "DECONVNET": (False, lambda x, g, y, s: g > 0, 1.0, None),
    "STRAIGHT_THROUGH": (False, lambda x, g, y, s: g == g, 1.0, None),
    "clipped_straight_through": (False, lambda x, g, y, s: x.abs() <= 1, 1.0, None),
    "rectgrad": (True, lambda x, g, y, s: y * g > 0.1, 1.0, None),
    "guided_scaled": (False, lambda x, g, y, s: (x > 0) & (g > 0), -0.5, None),
    "deconvnet_clipped": (False, lambda x, g, y, s: g > 0, 1.0, 1.0),
}


def gradient(name: str, rule: str, x: Tensor, g: Tensor, scale: float = 1.0) -> Tensor:
    """gx of activation `name` under `rule`, differentiable in x and g with its gates held fixed."""
    s = slope(name, x) if _RULES[rule][0] else torch.ones_like(x)
    return ruled(rule, x, g, value(name, x.detach()), s, scale)


def ruled(rule: str, x: Tensor, g: Tensor, y: Tensor, s: Tensor, scale: float = 1.0) -> Tensor:
    """gx of any function of which y is the value and s the slope at x."""
    has_slope, passes, factor, clip = _RULES[rule]
    s = s if has_slope else torch.ones_like(x)
    g = g if clip is None else g.clamp(-clip, clip)
    gate = passes(x.detach(), g.detach(), y.detach(), s.detach())
    return torch.where(gate, scale * factor * s * g, 0.0)


@functools.cache
def example(name: str) -> ModuleType:
    """A program of examples/ as a module."""
    path = Path(__file__).resolve().parent.parent / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def points(name: str, rule: str) -> tuple[Tensor, Tensor]:
    """x and g in float64 on both sides of every kink and gate, and away from each."""
    xs = torch.tensor([-4.3, -2.6, -1.7, -0.7, -0.3, 0.2, 0.6, 1.4, 2.2, 4.4, 6.7])
    gs = torch.tensor([-1.7, -0.6, 0.4, 1.6])
    x, g = (part.flatten() for part in torch.meshgrid(xs.double(), gs.double(), indexing="ij"))
    away = torch.full_like(x, True, dtype=torch.bool)
    if rule == "rectgrad":
        away = (value(name, x) * g - 0.1).abs() > 0.02
    if rule == "guided_product":
        s = slope(name, x).detach()
        away = ((s * g).abs() > 1e-3) | (s == 0)
    return x[away], g[away]


def slopes(layer, x=(1.0, 2.0)):
    """The gradient that ones come back as."""
    at = torch.tensor(x, requires_grad=True)
    (gx,) = torch.autograd.grad(layer(at).sum(), at)
    return gx.tolist()
