// exp and its kin for the F32 of an instruction set, inline: a call into Sleef spills every vector
// register. Largest errors seen over 4 million points against float64: elu .8 ulp, tanh 2.5,
// softplus and logsigmoid 2.8; where fused rounds twice, elu .9.
//
// The including file defines F32 with fused(a, b, c) = a·b + c, power_of_two_times(y, n) and
// minimum/maximum that return their second operand at NaN. Coefficients of exp: Cephes, expf.
#pragma once

namespace pyrevgrad::PYREVGRAD_ISA {

INLINE F32 multiply_add(F32 a, F32 b, F32 c) { return fused(a, b, c); }

struct Reduced {
  F32 rest;   // e^r − 1
  F32 power;  // n, where x = n·log(2) + r
};

INLINE Reduced reduced(F32 x, F32 low = F32(-106), F32 high = F32(89)) {
  x = maximum(low, minimum(high, x));
  const F32 n = round_even(x * F32(1.44269504088896341));
  F32 r = fused(n, F32(-0.693359375), x);
  r = fused(n, F32(2.12194440054690583e-4), r);
  F32 q(1.9875691500e-4);
  q = fused(q, r, F32(1.3981999507e-3));
  q = fused(q, r, F32(8.3334519073e-3));
  q = fused(q, r, F32(4.1665795894e-2));
  q = fused(q, r, F32(1.6666665459e-1));
  q = fused(q, r, F32(5.0000001201e-1));
  return {fused(r * r, q, r), n};
}

INLINE F32 exponential(F32 x) {
  const Reduced e = reduced(x);
  return power_of_two_times(e.rest + F32(1), e.power);
}

// Where x > 88 it is NaN or inf, which no formula reads.
INLINE F32 minus_one(const Reduced& e) {
  const F32 power = power_of_two_times(F32(1), e.power);
  return fused(power, e.rest, power - F32(1));
}

INLINE F32 exponential_minus_one(F32 x) { return select(x == F32(0), x, minus_one(reduced(x))); }

// For u in [0, 1], all that the formulas ask.
INLINE F32 log_one_plus(F32 u) { return twice_artanh(u / (F32(2) + u)); }

// (e²ˣ − 1) / (e²ˣ + 1), and x itself near 0; from |x| = 9.01 on the nearest float is ±1.
INLINE F32 hyperbolic_tangent(F32 x) {
  const F32 e = minus_one(reduced(x + x, F32(-20), F32(20)));
  return select(absolute(x) < F32(0.0004), x, e / (e + F32(2)));
}

}  // namespace pyrevgrad::PYREVGRAD_ISA
