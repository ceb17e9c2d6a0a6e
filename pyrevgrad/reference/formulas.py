"""The table of formulas: every activation in plain PyTorch, in its compute type.

Imports torch and the activation table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..activations import SELU_ALPHA, SELU_SCALE, Activation

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Formula:
    """One activation: f(x), and by kind f'(x), which slope holds, f' from y, where f' is flat."""

    value: Function
    slope: Function | None = None
    passes: Function | None = None
    from_output: Function | None = None
    flat: Function | None = None


def _hardtanh(x: Tensor, low: float, high: float) -> Tensor:
    return torch.where(x < low, low, torch.where(x > high, high, x))


def _inside(x: Tensor, low: float, high: float) -> Tensor:
    return ~(x <= low) & ~(x >= high)


def _elu(x: Tensor, alpha: float, divisor: float) -> Tensor:
    return torch.where(x > 0, x, alpha * torch.expm1(_negative(x) / divisor))


def _negative(x: Tensor) -> Tensor:
    """min(x, 0), so that the branch not taken neither overflows nor spoils a derivative."""
    return torch.where(x > 0, 0.0, x)


def _rectified(x: Tensor) -> Tensor:
    return torch.where(x <= 0, 0.0, x)


def _clamp6(x: Tensor) -> Tensor:
    return _hardtanh(x + 3, 0.0, 6.0)


def _softplus(x: Tensor, beta: float, threshold: float) -> Tensor:
    z = beta * x
    over = z > threshold
    return torch.where(over, x, torch.log1p(torch.exp(torch.where(over, 0.0, z))) / beta)


def _mish_tangent(x: Tensor) -> Tensor:
    return torch.tanh(_softplus(x, 1.0, 20.0))


# Numbers stand as literals, or as text: of a global one torch.compile makes an input of the graph
# (pairs.py, Texts).
def _gelu_distribution(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x * 0.5**0.5))


def _gelu_share(x: Tensor) -> Tensor:
    """(1 + tanh(z)) / 2 = 1 / (1 + e^(−2z)), which does not cancel where z < 0."""
    return torch.sigmoid((8 / 3.141592653589793) ** 0.5 * (x + 0.044715 * x * x * x))


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    s = _gelu_share(x)
    inner = (8 / 3.141592653589793) ** 0.5 * (1 + 3 * 0.044715 * x * x)
    return s + x * (s * (1 - s)) * inner


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _quick_gelu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(1.702 * x)
    return s + 1.702 * (x * s * (1 - s))


def _shrinks(x: Tensor, lambd: float) -> Tensor:
    return ~(x.abs() <= lambd)


_SELU = (repr(SELU_SCALE), repr(SELU_ALPHA))


def _selu(x: Tensor) -> Tensor:
    scale, alpha = map(float, _SELU)
    return scale * _elu(x, alpha, 1.0)


def _selu_slope(x: Tensor) -> Tensor:
    scale, alpha = map(float, _SELU)
    return torch.where(x > 0, scale, scale * alpha * torch.exp(_negative(x)))


def _selu_slope_of_output(y: Tensor) -> Tensor:
    scale, alpha = map(float, _SELU)
    return torch.where(y > 0, scale, y + scale * alpha)


#: One line an activation: the same names, the same special values as the table's rows.
FORMULAS: dict[str, Formula] = {
    "identity": Formula(lambda x: x.clone()),
    "relu": Formula(
        lambda x: torch.where(x < 0, 0.0, x),
        passes=lambda x: ~(x <= 0),
        from_output=lambda y: ~(y <= 0),
    ),
    "leaky_relu": Formula(
        lambda x, a: torch.where(x > 0, x, a * x),
        passes=lambda x, a: x > 0,
        from_output=lambda y, a: y > 0,
    ),
    "relu6": Formula(
        lambda x: _hardtanh(x, 0.0, 6.0),
        passes=lambda x: _inside(x, 0.0, 6.0),
        from_output=lambda y: _inside(y, 0.0, 6.0),
    ),
    "hardtanh": Formula(_hardtanh, passes=_inside, from_output=_inside),
    "relu_squared": Formula(
        lambda x: _rectified(x) * _rectified(x),
        slope=lambda x: 2 * _rectified(x),
        flat=lambda x: x <= 0,
    ),
    "elu": Formula(
        lambda x, alpha: _elu(x, alpha, 1.0),
        slope=lambda x, alpha: torch.where(x > 0, 1.0, alpha * torch.exp(_negative(x))),
        from_output=lambda y, alpha: torch.where(y > 0, 1.0, y + alpha),
    ),
    "selu": Formula(_selu, slope=_selu_slope, from_output=_selu_slope_of_output),
    "celu": Formula(
        lambda x, alpha: _elu(x, alpha, alpha),
        slope=lambda x, alpha: torch.where(x > 0, 1.0, torch.exp(_negative(x) / alpha)),
        from_output=lambda y, alpha: torch.where(y > 0, 1.0, y / alpha + 1),
    ),
    "softplus": Formula(
        _softplus,
        slope=lambda x, beta, threshold: torch.where(
            beta * x > threshold, 1.0, torch.sigmoid(beta * x)
        ),
    ),
    "softsign": Formula(
        lambda x: x / (1 + x.abs()),
        slope=lambda x: 1 / ((1 + x.abs()) * (1 + x.abs())) + (x - x),
        from_output=lambda y: (1 - y.abs()) * (1 - y.abs()),
    ),
    "sigmoid": Formula(
        torch.sigmoid,
        slope=lambda x: torch.sigmoid(x) * (1 - torch.sigmoid(x)),
        from_output=lambda y: (1 - y) * y,
    ),
    "logsigmoid": Formula(
        lambda x: _negative(x) - torch.log1p(torch.exp(-x.abs())),
        slope=lambda x: torch.sigmoid(-x),
        from_output=lambda y: -torch.expm1(y),
    ),
    "tanh": Formula(
        torch.tanh,
        slope=lambda x: 1 - torch.tanh(x) * torch.tanh(x),
        from_output=lambda y: 1 - y * y,
    ),
    "tanhshrink": Formula(
        lambda x: x - torch.tanh(x), slope=lambda x: torch.tanh(x) * torch.tanh(x)
    ),
    "hardshrink": Formula(
        lambda x, lambd: torch.where(_shrinks(x, lambd), x, 0.0),
        passes=_shrinks,
        from_output=lambda y, lambd: y != 0,
    ),
    "softshrink": Formula(
        lambda x, lambd: torch.where(
            _shrinks(x, lambd), torch.where(x < 0, x + lambd, x - lambd), 0.0
        ),
        passes=_shrinks,
    ),
    "gelu": Formula(
        lambda x: x * _gelu_distribution(x),
        slope=lambda x: (
            _gelu_distribution(x) + x * (torch.exp(-0.5 * x * x) / (2 * 3.141592653589793) ** 0.5)
        ),
    ),
    "gelu_tanh": Formula(lambda x: x * _gelu_share(x), slope=_gelu_tanh_slope),
    "silu": Formula(lambda x: x / (1 + torch.exp(-x)), slope=_silu_slope),
    "quick_gelu": Formula(lambda x: x * torch.sigmoid(1.702 * x), slope=_quick_gelu_slope),
    "mish": Formula(
        lambda x: x * _mish_tangent(x),
        slope=lambda x: (
            _mish_tangent(x) + x * (torch.sigmoid(x) * (1 - _mish_tangent(x) * _mish_tangent(x)))
        ),
    ),
    "hardswish": Formula(
        lambda x: x * _clamp6(x) / 6,
        slope=lambda x: torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, x / 3 + 0.5)),
        flat=lambda x: x <= -3,
    ),
    "hardsigmoid": Formula(lambda x: _clamp6(x) / 6, passes=lambda x: (x > -3) & (x < 3)),
    "sign": Formula(lambda x: torch.sign(x)),
    "round": Formula(torch.round),
    "heaviside": Formula(
        lambda x, values: torch.where(x > 0, 1.0, torch.where(x == 0, values, torch.zeros_like(x)))
    ),
}


#: What `pyrevgrad.custom_rule` was given: sent(g, what it reads, *parameters).
RULES: dict[str, Function] = {}


#: What `pyrevgrad.custom` has replaced, by name. In pairs: torch.compile looks up no row in a dict.
REPLACED: dict[str, list[tuple[Activation, Formula]]] = {}


def formula_of(row: Activation) -> Formula:
    """The formula of `row`, which keeps its own where another stands under its name since."""
    if row.name in REPLACED:
        for old, formula in REPLACED[row.name]:
            if old is row:
                return formula
    return FORMULAS[row.name]
