// Scalar arithmetic under the names that the formulas use, for host and device.
// The vector types of csrc/cpu offer the same names, so that one formula serves all.
#pragma once

#include <cmath>

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
PYREVGRAD_HD float log_one_plus(float x) { return ::log1pf(x); }
PYREVGRAD_HD double log_one_plus(double x) { return ::log1p(x); }
PYREVGRAD_HD float hyperbolic_tangent(float x) { return ::tanhf(x); }
PYREVGRAD_HD double hyperbolic_tangent(double x) { return ::tanh(x); }
PYREVGRAD_HD float error_function(float x) { return ::erff(x); }
PYREVGRAD_HD double error_function(double x) { return ::erf(x); }

}  // namespace pyrevgrad
