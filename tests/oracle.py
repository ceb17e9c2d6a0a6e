"""The float64 oracle that the kernel tests share: f, f', the gates and what a plan must keep.

NumPy and math, written from the formulas of the design; it may read a Rule to hand it on, but
computes with nothing of ours and nothing of PyTorch's.
"""

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from pyrevgrad import Rule, rules

NAN, INF = math.nan, math.inf
SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717

_erf = np.vectorize(math.erf, otypes=[float])


@dataclass(frozen=True)
class Formula:
    """f, f' at x, and f' at y where the output tells it, in float64; parameters by position."""

    value: object
    slope: object
    at_output: object = None


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _elu(x, alpha, divisor=1.0):
    return np.where(x > 0, x, alpha * np.expm1(x / divisor))


def _normal_cdf(x):
    return 0.5 * (1 + _erf(x / math.sqrt(2)))


def _tangent(x):
    return np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def _gelu_tanh_slope(x):
    t, inner = _tangent(x), math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return (1 + t) / 2 + x * (1 - t**2) * inner / 2


def _mish_tangent(x):
    return np.tanh(np.log1p(np.exp(x)))


def _between(low, high):
    """f' of a clamp: 0 at the bounds and outside, 1 inside and at NaN."""
    return lambda x: np.where((x <= low) | (x >= high), 0.0, 1.0)


def _shrink_slope(x, lambd):
    return np.where(np.abs(x) <= lambd, 0.0, 1.0)


def _softplus(x, beta, threshold):
    return np.where(beta * x > threshold, x, np.log1p(np.exp(beta * x)) / beta)


def _step(x, at_zero):
    return np.where(x > 0, 1.0, np.where(x == 0, at_zero, 0.0))


FORMULAS = {
    "identity": Formula(lambda x: x, lambda x: np.ones_like(x)),
    "relu": Formula(lambda x: np.where(x < 0, 0.0, x), lambda x: np.where(x <= 0, 0.0, 1.0)),
    "leaky_relu": Formula(
        lambda x, a: np.where(x > 0, x, a * x), lambda x, a: np.where(x > 0, 1.0, a)
    ),
    "relu6": Formula(lambda x: np.clip(x, 0.0, 6.0), _between(0.0, 6.0)),
    "hardtanh": Formula(
        lambda x, low, high: np.clip(x, low, high), lambda x, low, high: _between(low, high)(x)
    ),
    "relu_squared": Formula(
        lambda x: np.where(x <= 0, 0.0, x) ** 2, lambda x: 2 * np.where(x <= 0, 0.0, x)
    ),
    "elu": Formula(
        _elu,
        lambda x, a: np.where(x > 0, 1.0, a * np.exp(x)),
        lambda y, a: np.where(y > 0, 1.0, y + a),
    ),
    "selu": Formula(
        lambda x: SELU_SCALE * _elu(x, SELU_ALPHA),
        lambda x: SELU_SCALE * np.where(x > 0, 1.0, SELU_ALPHA * np.exp(x)),
        lambda y: np.where(y > 0, SELU_SCALE, y + SELU_SCALE * SELU_ALPHA),
    ),
    "celu": Formula(
        lambda x, a: _elu(x, a, a),
        lambda x, a: np.where(x > 0, 1.0, np.exp(x / a)),
        lambda y, a: np.where(y > 0, 1.0, y / a + 1),
    ),
    "softplus": Formula(_softplus, lambda x, b, t: np.where(b * x > t, 1.0, _sigmoid(b * x))),
    "softsign": Formula(
        lambda x: x / (1 + np.abs(x)),
        lambda x: np.where(np.isinf(x), NAN, 1 / (1 + np.abs(x)) ** 2),
        lambda y: (1 - np.abs(y)) ** 2,
    ),
    "sigmoid": Formula(_sigmoid, lambda x: _sigmoid(x) * _sigmoid(-x), lambda y: y * (1 - y)),
    "logsigmoid": Formula(
        lambda x: -np.logaddexp(0.0, -x), lambda x: _sigmoid(-x), lambda y: -np.expm1(y)
    ),
    "tanh": Formula(np.tanh, lambda x: 1 - np.tanh(x) ** 2, lambda y: (1 - y) * (1 + y)),
    "tanhshrink": Formula(lambda x: x - np.tanh(x), lambda x: np.tanh(x) ** 2),
    "hardshrink": Formula(lambda x, d: np.where(np.abs(x) <= d, 0.0, x), _shrink_slope),
    "softshrink": Formula(
        lambda x, d: np.where(np.abs(x) <= d, 0.0, x - np.copysign(d, x)), _shrink_slope
    ),
    "gelu": Formula(
        lambda x: x * _normal_cdf(x),
        lambda x: _normal_cdf(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    ),
    "gelu_tanh": Formula(lambda x: x * (1 + _tangent(x)) / 2, _gelu_tanh_slope),
    "silu": Formula(lambda x: x * _sigmoid(x), lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x)))),
    "quick_gelu": Formula(
        lambda x: x * _sigmoid(1.702 * x),
        lambda x: _sigmoid(1.702 * x) + 1.702 * x * _sigmoid(1.702 * x) * _sigmoid(-1.702 * x),
    ),
    "mish": Formula(
        lambda x: x * _mish_tangent(x),
        lambda x: _mish_tangent(x) + x * (_sigmoid(x) * (1 - _mish_tangent(x) ** 2)),
    ),
    "hardswish": Formula(
        lambda x: x * np.clip(x + 3, 0.0, 6.0) / 6,
        lambda x: np.where(x <= -3, 0.0, np.where(x >= 3, 1.0, x / 3 + 0.5)),
    ),
    "hardsigmoid": Formula(
        lambda x: np.clip(x + 3, 0.0, 6.0) / 6,
        lambda x: np.where((x > -3) & (x < 3), 1 / 6, 0.0),
    ),
    "sign": Formula(lambda x: np.where(x > 0, 1.0, np.where(x < 0, -1.0, 0.0)), np.zeros_like),
    "round": Formula(np.rint, np.zeros_like),
    "heaviside": Formula(_step, lambda x, at_zero: np.zeros_like(x)),
}

#: Default parameters, from PyTorch's documentation.
DEFAULTS = {
    "leaky_relu": (0.01,), "hardtanh": (-1.0, 1.0), "elu": (1.0,), "celu": (1.0,),
    "softplus": (1.0, 20.0), "hardshrink": (0.5,), "softshrink": (0.5,), "heaviside": (0.0,),
}  # fmt: skip
TWO_SLOPES = ("relu", "leaky_relu", "relu6", "hardtanh", "hardshrink", "softshrink", "hardsigmoid")
ONE_SLOPE = ("identity", "sign", "round", "heaviside")
FROM_OUTPUT = ("elu", "selu", "celu", "softsign", "sigmoid", "logsigmoid", "tanh")
#: Rows that only select, scale and add: bit-reproducible.
SELECTS = TWO_SLOPES + ONE_SLOPE


@dataclass(frozen=True)
class Spec:
    """A rule in the columns of the design's table, for the oracle."""

    identity: bool = False
    gate: object = None
    gradient: str | None = None
    threshold: float = 0.0
    clip: float = INF
    scale: float = 1.0


_EXACT, _THROUGH = Spec(), Spec(identity=True)
_GUIDED = Spec(True, (0.0, None), "g")
#: The rules of rules.RULES as the design's table states them.
SPECS = {
    "EXACT": _EXACT,
    "reverse": Spec(scale=-0.3),
    "GUIDED": _GUIDED,
    "guided_slope": Spec(gradient="g"),
    "guided_product": Spec(gradient="slope"),
    "DECONVNET": Spec(True, gradient="g"),
    "STRAIGHT_THROUGH": _THROUGH,
    "clipped_straight_through": Spec(True, (-1.0, 1.0)),
    "rectgrad": Spec(gradient="y", threshold=0.1),
    "guided_scaled": replace(_GUIDED, scale=-0.5),
    "deconvnet_clipped": Spec(True, gradient="g", clip=1.0),
}
#: Compositions beyond the presets: every gate with every slope.
COMPOSED = {
    "exact clipped and scaled": (rules.EXACT.clipped(0.75).scaled(2.0), Spec(clip=0.75, scale=2.0)),
    "slope behind a positive gate": (
        Rule(input_gate="positive", gradient_gate="gradient"), Spec(False, (0.0, None), "g"),
    ),
    "product behind an interval": (
        Rule(input_gate=(-1.0, 2.5), gradient_gate="product", scale=-1.5),
        Spec(False, (-1.0, 2.5), "slope", scale=-1.5),
    ),
    "identity by output": (
        Rule(slope="identity", gradient_gate="output", threshold=0.25),
        Spec(True, None, "y", 0.25),
    ),
    "identity by output in an interval": (
        Rule(slope="identity", input_gate=(-1.0, 1.0), gradient_gate="output", threshold=-0.3),
        Spec(True, (-1.0, 1.0), "y", -0.3),
    ),
    "rectgrad clipped": (
        rules.rectgrad(0.2).clipped(0.5).scaled(-0.7), Spec(False, None, "y", 0.2, 0.5, -0.7),
    ),
    "rectgrad at zero": (rules.rectgrad(0.0), Spec(gradient="y")),
    "guided clipped": (rules.GUIDED.clipped(0.5), replace(_GUIDED, clip=0.5)),
}  # fmt: skip


def rule_and_spec(name):
    """A rule by the name of rules.RULES or COMPOSED, and what the design says that it does."""
    return COMPOSED[name] if name in COMPOSED else (rules.RULES[name], SPECS[name])


def numbers_of(name, params, dtype=torch.float64):
    """The parameters by position, in the compute type of `dtype`: PyTorch's order and defaults."""
    numbers = tuple(params.values()) if params else DEFAULTS.get(name, ())
    return numbers if dtype == torch.float64 else tuple(float(np.float32(n)) for n in numbers)


def quiet(function):
    """`function` without NumPy's warnings: overflow and NaN are part of the grids."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return wrapped


@quiet
def expected_value(name, x, params=None, dtype=torch.float64):
    return FORMULAS[name].value(x, *numbers_of(name, params, dtype))


def expected_keeps(name, spec, dtype, params=None):
    """What backward keeps, read off the design's rule table and its paragraph on plans."""
    numbers = numbers_of(name, params)
    half = dtype in (torch.bfloat16, torch.float16)
    if spec.identity and spec.gradient != "y":
        return "mask" if spec.gate else "nothing"
    if spec.identity:
        return "input" if spec.gate else "output"
    if name in ("sign", "round", "heaviside"):
        return "nothing"
    if spec.gate:
        return "mask" if name == "identity" and spec.gradient != "y" else "input"
    if name in FROM_OUTPUT:
        rounds_badly = half and name in ("elu", "selu", "celu", "softsign")
        loses_sign = name == "elu" and numbers[0] < 0
        return "input" if rounds_badly or loses_sign else "output"
    if spec.gradient == "y":
        tells = name in ("identity", "relu", "relu6", "hardshrink")
        # A bound that half types round inward would make a saturated output look unsaturated.
        tells |= name == "hardtanh" and not half
        return "output" if tells or (name == "leaky_relu" and numbers[0] > 0) else "input"
    if name == "identity":
        return "nothing"
    return "mask" if name in TWO_SLOPES else "input"


@dataclass(frozen=True)
class Expected:
    """gx, what an element is where it passes, which are blocked, and where the question is open:
    `either` may block or pass, `loose` may be 0, inf or NaN.
    """

    gradient: np.ndarray
    product: np.ndarray
    blocked: np.ndarray
    either: np.ndarray
    loose: np.ndarray


@quiet
def expected_gradient(name, spec, dtype, x, g, y, params=None):
    """``gate(x, g) ? (scale · slope) · g : +0`` in float64; y is the output as returned.

    The slope is taken at y where the plan keeps the output. A gate that compares a rounded
    product is open within rounding of its threshold, and so is what a slope that underflows makes
    of an infinite g.
    """
    numbers = numbers_of(name, params, dtype)
    formula = FORMULAS[name]
    at_output = name in FROM_OUTPUT and expected_keeps(name, spec, dtype, params) == "output"
    slope = formula.at_output(y, *numbers) if at_output else formula.slope(x, *numbers)
    g = np.where(np.isnan(g), NAN, np.clip(g, -spec.clip, spec.clip))
    blocked = np.zeros(x.shape, bool)
    either = np.zeros(x.shape, bool)
    if spec.identity:
        slope = np.ones_like(x)
    elif name in SELECTS or name == "relu_squared":
        blocked |= slope == 0
    elif name == "hardswish":
        blocked |= x <= -3
    if spec.gate is not None:
        low, high = spec.gate
        blocked |= (x < low) | (x > high) if high is not None else x <= low
    if spec.gradient == "g":
        blocked |= g <= 0
    elif spec.gradient is not None:
        tested = (slope if spec.gradient == "slope" else y) * g
        blocked |= tested <= spec.threshold
        either = np.abs(tested - spec.threshold) <= 1e-6 * abs(spec.threshold) + 1e-37
        if spec.gradient == "slope" and name not in SELECTS:
            either |= np.abs(slope) <= 1e-6
    smooth = not spec.identity and name not in SELECTS
    loose = smooth & np.isinf(g) & (np.abs(slope) <= 1e-6) & ~(blocked & ~either)
    product = (spec.scale * slope) * g
    return Expected(np.where(blocked, 0.0, product), product, blocked, either, loose)
