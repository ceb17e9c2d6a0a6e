"""Scalar mathematics for the formulas, in float32 and float64. Imports triton alone.

In float32 from plain arithmetic and one approximate exp2 of a small argument: the same on a GPU and
under Triton's interpreter, which has no libdevice. float64 takes Triton's own exp and log.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction


@triton.jit
def widened(x):
    """`x` in its compute type: float32 for half types."""
    if x.dtype == tl.float64:
        return x
    elif INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


#: Whether TRITON_INTERPRET was set when triton was imported, so that CPU tensors are served too.
INTERPRETED = tl.constexpr(isinstance(widened, InterpretedFunction))


@triton.jit
def narrowed(x, dtype: tl.constexpr):
    """`x` rounded once, to nearest even, to the stored type."""
    if INTERPRETED and dtype == tl.bfloat16:
        # Triton's interpreter cuts off what bfloat16 cannot hold, where a GPU rounds.
        bits = x.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(x != x, 0x7FC0, rounded).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def number(value, like):
    """A float64 argument of the kernel in the compute type of `like`."""
    return tl.full((), value, like.dtype)


@triton.jit
def absolute(x):
    return tl.abs(x)


@triton.jit
def negative(x):
    """−x; Triton's own minus is 0 − x, which loses the sign of a zero."""
    return x * -1.0


@triton.jit
def quotient(x, y):
    """x / y, correctly rounded; the operator is approximate in float32."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def round_even(x):
    """x to the nearest integer, ties to even: adding 2^(mantissa bits) leaves no fraction."""
    size = tl.abs(x)
    if x.dtype == tl.float64:
        near = (size + 4503599627370496.0) - 4503599627370496.0
        whole = size >= 4503599627370496.0
    else:
        near = (size + 8388608.0) - 8388608.0
        whole = size >= 8388608.0
    signed = tl.where(x < 0, negative(near), near)
    return tl.where(whole | (x == 0) | (x != x), x, signed)


@triton.jit
def exponential(x):
    """eˣ. In float32 2^n·e^r with n whole and |r| <= ln 2 / 2, since exp2 of a large argument has
    the rounding of that argument as a relative error."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        n = tl.floor(x * 1.44269504088896 + 0.5)
        # A NaN takes 127 and stays in r; the bounds keep 2^n a normal number.
        n = tl.where(n < 127.0, n, 127.0)
        n = tl.where(n > -126.0, n, -126.0)
        # ln 2 in two parts, the first short enough that its product with n is exact.
        r = (x - n * 0.693359375) + n * 2.12194440054691e-4
        power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
        return tl.exp2(r * 1.44269504088896) * power


@triton.jit
def exponential_minus_one(x):
    """eˣ − 1 without cancellation about 0: there, Taylor's series in float32."""
    if x.dtype == tl.float64:
        # Kahan's: what rounding does to eˣ it does to its logarithm too.
        e = tl.exp(x)
        near = tl.where(e == 1.0, x, (e - 1.0) * (x / tl.log(e)))
        return tl.where(tl.abs(x) < 1.0, near, e - 1.0)
    else:
        series = 1.0 / 5040 + x * (1.0 / 40320)
        series = 1.0 / 720 + x * series
        series = 1.0 / 120 + x * series
        series = 1.0 / 24 + x * series
        series = 1.0 / 6 + x * series
        series = 0.5 + x * series
        return tl.where(tl.abs(x) < 0.5, x + (x * x) * series, exponential(x) - 1.0)


@triton.jit
def log_one_plus(x):
    """log(1 + x) for x in [0, 1]: 2·artanh(x / (2 + x)), by its series in float32."""
    if x.dtype == tl.float64:
        u = 1.0 + x
        return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))
    else:
        s = x / (2.0 + x)
        z = s * s
        series = 1.0 / 13 + z * (1.0 / 15)
        series = 1.0 / 11 + z * series
        series = 1.0 / 9 + z * series
        series = 1.0 / 7 + z * series
        series = 1.0 / 5 + z * series
        series = 1.0 / 3 + z * series
        return 2.0 * s + (2.0 * s) * (z * series)


@triton.jit
def hyperbolic_tangent(x):
    """tanh(x). In float32 about 0 by the polynomial of Cephes' tanhf (Moshier 1989)."""
    size = tl.abs(x)
    if x.dtype == tl.float64:
        m = exponential_minus_one(-2.0 * size)
        t = negative(m) / (2.0 + m)
        return tl.where(x == 0, x, tl.where(x < 0, negative(t), t))
    else:
        z = x * x
        series = 2.06390887954e-2 + z * -5.70498872745e-3
        series = -5.37397155531e-2 + z * series
        series = 1.33314422036e-1 + z * series
        series = -3.33332819422e-1 + z * series
        t = 1.0 - 2.0 / (exponential(2.0 * size) + 1.0)
        return tl.where(size < 0.625, x + x * (z * series), tl.where(x < 0, negative(t), t))


@triton.jit
def logistic(x):
    """1 / (1 + e⁻ˣ)."""
    return 1.0 / (1.0 + exponential(-x))


@triton.jit
def logistic_and_rest(x):
    """σ(x) and 1 − σ(x), without the subtraction: a GPU's approximate division may leave 1/1 a unit
    off, which x would magnify."""
    e = exponential(negative(tl.abs(x)))
    larger = 1.0 / (1.0 + e)
    smaller = e * larger
    return tl.where(x < 0, smaller, larger), tl.where(x < 0, larger, smaller)


@triton.jit
def normal_distribution(x, bell):
    """Φ(x), given e^(−x²/2). In float32 by formula 7.1.26 of Abramowitz & Stegun (1964), as csrc:
    an error of 1.5e-7, and without cancellation where x < 0."""
    if x.dtype == tl.float64:
        return 0.5 * (1.0 + tl.erf(x * 0.70710678118654752440))
    else:
        t = 1.0 / (1.0 + (0.3275911 * 0.70710678118654752440) * tl.abs(x))
        q = -1.453152027 / 2 + t * (1.061405429 / 2)
        q = 1.421413741 / 2 + t * q
        q = -0.284496736 / 2 + t * q
        q = 0.254829592 / 2 + t * q
        tail = (q * t) * bell
        return tl.where(x < 0, tail, 1.0 - tail)
