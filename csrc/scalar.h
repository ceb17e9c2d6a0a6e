// Scalar arithmetic under the names that the formulas use, for host and device.
// The vector types of csrc/cpu offer the same names, so that one formula serves all.
#pragma once

#include <cmath>

// setup.py undoes fast math in flags; this is for a compiler that has it by other means.
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "pyrevgrad's values would be wrong under fast math: compile without it"
#endif

#if defined(__CUDACC__)
#define PYREVGRAD_HD __host__ __device__ __forceinline__
#else
#define PYREVGRAD_HD inline __attribute__((always_inline))
#endif

namespace pyrevgrad {

// The type of one element of a scalar or vector type.
template <class V>
struct ScalarOf {
  using type = typename V::Scalar;
};
template <>
struct ScalarOf<float> {
  using type = float;
};
template <>
struct ScalarOf<double> {
  using type = double;
};

PYREVGRAD_HD float select(bool pass, float a, float b) { return pass ? a : b; }
PYREVGRAD_HD double select(bool pass, double a, double b) { return pass ? a : b; }
PYREVGRAD_HD float absolute(float x) { return ::fabsf(x); }
PYREVGRAD_HD double absolute(double x) { return ::fabs(x); }
PYREVGRAD_HD float round_even(float x) { return ::rintf(x); }
PYREVGRAD_HD double round_even(double x) { return ::rint(x); }
PYREVGRAD_HD float exponential(float x) { return ::expf(x); }
PYREVGRAD_HD double exponential(double x) { return ::exp(x); }
PYREVGRAD_HD float exponential_minus_one(float x) { return ::expm1f(x); }
PYREVGRAD_HD double exponential_minus_one(double x) { return ::expm1(x); }
PYREVGRAD_HD double log_one_plus(double x) { return ::log1p(x); }
PYREVGRAD_HD float hyperbolic_tangent(float x) { return ::tanhf(x); }
PYREVGRAD_HD double hyperbolic_tangent(double x) { return ::tanh(x); }
PYREVGRAD_HD float error_function(float x) { return ::erff(x); }
PYREVGRAD_HD double error_function(double x) { return ::erf(x); }

// Types with a fused instruction give their own.
template <class V>
PYREVGRAD_HD V multiply_add(V a, V b, V c) {
  return a * b + c;
}
#if defined(__CUDA_ARCH__)
PYREVGRAD_HD float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
#endif

// 2·artanh(s) in float32's precision for s in [0, 1/3], by its series; log(1 + u) for u in [0, 1]
// is that of u / (2 + u).
template <class V>
PYREVGRAD_HD V twice_artanh(V s) {
  const V z = s * s;
  V q(1.0 / 15);
  q = multiply_add(q, z, V(1.0 / 13));
  q = multiply_add(q, z, V(1.0 / 11));
  q = multiply_add(q, z, V(1.0 / 9));
  q = multiply_add(q, z, V(1.0 / 7));
  q = multiply_add(q, z, V(1.0 / 5));
  q = multiply_add(q, z, V(1.0 / 3));
  const V twice = s + s;
  return multiply_add(twice * z, q, twice);
}

#if defined(__CUDA_ARCH__)
namespace quick {
// Off by 2 ulp at most for 2^-126 <= |b| <= 2^126.
PYREVGRAD_HD float quotient(float a, float b) { return __fdividef(a, b); }
}  // namespace quick
#elif defined(PYREVGRAD_APPROXIMATE)
namespace quick {
float quotient(float a, float b);
}
#endif

// For u in [0, 1], all that the formulas ask. The device's log1pf takes a dozen instructions more.
PYREVGRAD_HD float log_one_plus(float u) {
#if defined(__CUDA_ARCH__) || defined(PYREVGRAD_APPROXIMATE)
  return twice_artanh(quick::quotient(u, 2.0f + u));
#else
  return ::log1pf(u);
#endif
}

}  // namespace pyrevgrad
