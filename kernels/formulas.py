"""Every activation as scalar Triton functions, one each way; the table of them is `FORMULAS`.

By name and kind, as in csrc/formulas.h: `value`; `passes` and `passes_output` (two slopes); `slope`
and `slope_of_output`; `flat`, where a slope of exactly 0 blocks. Imports mathematics alone.
Comparisons are false at NaN, so `~(x <= 0)` lets NaN pass and `x > 0` does not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .mathematics import (
    absolute,
    exponential,
    exponential_minus_one,
    hyperbolic_tangent,
    log_one_plus,
    logistic,
    logistic_and_rest,
    negative,
    normal_distribution,
    quotient,
    round_even,
)


@triton.jit
def identity_value(x):
    return x


@triton.jit
def relu_value(x):
    return tl.where(x < 0, 0.0, x)


@triton.jit
def relu_passes(x):
    return ~(x <= 0)


@triton.jit
def leaky_relu_value(x, negative_slope):
    return tl.where(x > 0, x, negative_slope * x)


@triton.jit
def leaky_relu_passes(x, negative_slope):
    return x > 0


@triton.jit
def hardtanh_value(x, low, high):
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def hardtanh_passes(x, low, high):
    return ~((x <= low) | (x >= high))


@triton.jit
def relu6_value(x):
    return tl.where(x < 0, 0.0, tl.where(x > 6.0, 6.0, x))


@triton.jit
def relu6_passes(x):
    return ~((x <= 0) | (x >= 6.0))


@triton.jit
def relu_squared_value(x):
    r = tl.where(x <= 0, 0.0, x)
    return r * r


@triton.jit
def relu_squared_slope(x):
    return 2.0 * tl.where(x <= 0, 0.0, x)


@triton.jit
def relu_squared_flat(x):
    return x <= 0


@triton.jit
def elu_value(x, alpha):
    return tl.where(x > 0, x, alpha * exponential_minus_one(x))


@triton.jit
def elu_slope(x, alpha):
    return tl.where(x > 0, 1.0, alpha * exponential(x))


@triton.jit
def elu_slope_of_output(y, alpha):
    return tl.where(y > 0, 1.0, y + alpha)


@triton.jit
def selu_value(x):
    return 1.0507009873554805 * tl.where(x > 0, x, 1.6732632423543772 * exponential_minus_one(x))


@triton.jit
def selu_slope(x):
    return tl.where(x > 0, 1.0507009873554805, 1.7580993408473766 * exponential(x))


@triton.jit
def selu_slope_of_output(y):
    return tl.where(y > 0, 1.0507009873554805, y + 1.7580993408473766)


@triton.jit
def celu_value(x, alpha):
    return tl.where(x > 0, x, alpha * exponential_minus_one(x / alpha))


@triton.jit
def celu_slope(x, alpha):
    return tl.where(x > 0, 1.0, exponential(x / alpha))


@triton.jit
def celu_slope_of_output(y, alpha):
    return tl.where(y > 0, 1.0, y / alpha + 1.0)


@triton.jit
def softplus_value(x, beta, threshold):
    z = beta * x
    rest = log_one_plus(exponential(negative(absolute(z))))
    return tl.where(z > threshold, x, (tl.where(z > 0, z, 0.0) + rest) / beta)


@triton.jit
def softplus_slope(x, beta, threshold):
    z = beta * x
    return tl.where(z > threshold, 1.0, logistic(z))


@triton.jit
def softsign_value(x):
    return x / (1.0 + absolute(x))


@triton.jit
def softsign_slope(x):
    d = 1.0 + absolute(x)
    # x − x is 0, but NaN where x is infinite: there the value is NaN too.
    return 1.0 / (d * d) + (x - x)


@triton.jit
def softsign_slope_of_output(y):
    d = 1.0 - absolute(y)
    return d * d


@triton.jit
def sigmoid_slope(x):
    y, rest = logistic_and_rest(x)
    return rest * y


@triton.jit
def sigmoid_slope_of_output(y):
    return (1.0 - y) * y


@triton.jit
def logsigmoid_value(x):
    return tl.where(x > 0, 0.0, x) - log_one_plus(exponential(negative(absolute(x))))


@triton.jit
def logsigmoid_slope(x):
    return logistic(negative(x))


@triton.jit
def logsigmoid_slope_of_output(y):
    return negative(exponential_minus_one(y))


@triton.jit
def tanh_slope(x):
    y = hyperbolic_tangent(x)
    return 1.0 - y * y


@triton.jit
def tanh_slope_of_output(y):
    return 1.0 - y * y


@triton.jit
def tanhshrink_value(x):
    return x - hyperbolic_tangent(x)


@triton.jit
def tanhshrink_slope(x):
    t = hyperbolic_tangent(x)
    return t * t


@triton.jit
def hardshrink_value(x, lambd):
    return tl.where(absolute(x) <= lambd, 0.0, x)


@triton.jit
def hardshrink_passes(x, lambd):
    return ~(absolute(x) <= lambd)


@triton.jit
def hardshrink_passes_output(y, lambd):
    return y != 0


@triton.jit
def softshrink_value(x, lambd):
    return tl.where(absolute(x) <= lambd, 0.0, tl.where(x < 0, x + lambd, x - lambd))


@triton.jit
def bell(x):
    return exponential(-0.5 * x * x)


@triton.jit
def gelu_value(x):
    return x * normal_distribution(x, bell(x))


@triton.jit
def gelu_slope(x):
    e = bell(x)
    return normal_distribution(x, e) + x * (0.39894228040143267794 * e)


@triton.jit
def gelu_argument(x):
    """2z with z of the table, for (1 + tanh(z)) / 2 = σ(2z), which does not cancel where z < 0."""
    return 1.59576912160573071 * (x + 0.044715 * x * x * x)


@triton.jit
def gelu_tanh_value(x):
    return x * logistic(gelu_argument(x))


@triton.jit
def gelu_tanh_slope(x):
    s, rest = logistic_and_rest(gelu_argument(x))
    inner = 1.59576912160573071 * (1.0 + (3 * 0.044715) * x * x)
    return s + x * (s * rest) * inner


@triton.jit
def silu_value(x):
    return x / (1.0 + exponential(negative(x)))


@triton.jit
def silu_slope(x):
    s, rest = logistic_and_rest(x)
    return s * (1.0 + x * rest)


@triton.jit
def quick_gelu_value(x):
    return x * logistic(1.702 * x)


@triton.jit
def quick_gelu_slope(x):
    s, rest = logistic_and_rest(1.702 * x)
    return s + 1.702 * (x * s * rest)


@triton.jit
def mish_power(x):
    """n = eˣ·(eˣ + 2), for tanh(log(1 + eˣ)) = n / (n + 2); at x >= 20 that is 1 in both types."""
    e = exponential(tl.where(x > 20.0, 20.0, x))
    return e * (e + 2.0)


@triton.jit
def mish_value(x):
    n = mish_power(x)
    return x * (n / (n + 2.0))


@triton.jit
def mish_slope(x):
    n = mish_power(x)
    d = n + 2.0
    # 1 − t² = 4·(n + 1) / (n + 2)², without the cancellation.
    rest = tl.where(x > 20.0, 0.0, 4.0 * (n + 1.0) / (d * d))
    return n / d + x * (logistic(x) * rest)


@triton.jit
def clamp6(z):
    return tl.where(z < 0, 0.0, tl.where(z > 6.0, 6.0, z))


@triton.jit
def hardswish_value(x):
    return x * clamp6(x + 3.0) * (1.0 / 6)


@triton.jit
def hardswish_slope(x):
    return tl.where(x <= -3.0, 0.0, tl.where(x >= 3.0, 1.0, x * (1.0 / 3) + 0.5))


@triton.jit
def hardswish_flat(x):
    return x <= -3.0


@triton.jit
def hardsigmoid_value(x):
    return quotient(clamp6(x + 3.0), 6.0)


@triton.jit
def hardsigmoid_passes(x):
    return (x > -3.0) & (x < 3.0)


@triton.jit
def sign_value(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def heaviside_value(x, values):
    return tl.where(x > 0, 1.0, tl.where(x == 0, values, 0.0))


class Formula(NamedTuple):
    """One activation's functions of (x or y, *parameters); None where its kind has none."""

    value: Any
    slope: Any = None
    passes: Any = None
    from_output: Any = None
    flat: Any = None


#: One line an activation, under the names of the activation table.
FORMULAS: dict[str, Formula] = {
    "identity": Formula(identity_value),
    "relu": Formula(relu_value, passes=relu_passes, from_output=relu_passes),
    "leaky_relu": Formula(
        leaky_relu_value, passes=leaky_relu_passes, from_output=leaky_relu_passes
    ),
    "relu6": Formula(relu6_value, passes=relu6_passes, from_output=relu6_passes),
    "hardtanh": Formula(hardtanh_value, passes=hardtanh_passes, from_output=hardtanh_passes),
    "relu_squared": Formula(relu_squared_value, relu_squared_slope, flat=relu_squared_flat),
    "elu": Formula(elu_value, elu_slope, from_output=elu_slope_of_output),
    "selu": Formula(selu_value, selu_slope, from_output=selu_slope_of_output),
    "celu": Formula(celu_value, celu_slope, from_output=celu_slope_of_output),
    "softplus": Formula(softplus_value, softplus_slope),
    "softsign": Formula(softsign_value, softsign_slope, from_output=softsign_slope_of_output),
    "sigmoid": Formula(logistic, sigmoid_slope, from_output=sigmoid_slope_of_output),
    "logsigmoid": Formula(
        logsigmoid_value, logsigmoid_slope, from_output=logsigmoid_slope_of_output
    ),
    "tanh": Formula(hyperbolic_tangent, tanh_slope, from_output=tanh_slope_of_output),
    "tanhshrink": Formula(tanhshrink_value, tanhshrink_slope),
    "hardshrink": Formula(
        hardshrink_value, passes=hardshrink_passes, from_output=hardshrink_passes_output
    ),
    "softshrink": Formula(softshrink_value, passes=hardshrink_passes),
    "gelu": Formula(gelu_value, gelu_slope),
    "gelu_tanh": Formula(gelu_tanh_value, gelu_tanh_slope),
    "silu": Formula(silu_value, silu_slope),
    "quick_gelu": Formula(quick_gelu_value, quick_gelu_slope),
    "mish": Formula(mish_value, mish_slope),
    "hardswish": Formula(hardswish_value, hardswish_slope, flat=hardswish_flat),
    "hardsigmoid": Formula(hardsigmoid_value, passes=hardsigmoid_passes),
    "sign": Formula(sign_value),
    "round": Formula(round_even),
    "heaviside": Formula(heaviside_value),
}

#: Those of activations that `pyrevgrad.custom` has replaced, by their rows of the table.
REPLACED: dict[Any, Formula] = {}

#: What `pyrevgrad.custom_rule` was given: functions of (g, what the rule reads, *parameters).
RULES: dict[str, Any] = {}
