// Arithmetic for results of 8 or 11 bits: float with the quick functions of the device.
//
// A half type's kernels evaluate the formulas over Brief<T>. On the device eˣ, 1/x, log and tanh
// are then one approximate instruction each and a step or two around it, where those of float32
// take twenty; bfloat16 rounds away all but 2^-11 of it. On the host they are the C library's, so
// that a simulated launch has the CPU's bits; with PYREVGRAD_APPROXIMATE they are what the device
// does, the instructions off by as much as PTX allows, which tests/brief_on_host.cpp tries on every
// number.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "../formulas.h"
#include "share.h"

namespace pyrevgrad {

template <class T>
struct Brief {
  float v;
  Brief() = default;
  PYREVGRAD_HD Brief(float x) : v(x) {}
  PYREVGRAD_HD explicit Brief(double x) : v(static_cast<float>(x)) {}
  PYREVGRAD_HD explicit Brief(int x) : v(static_cast<float>(x)) {}
  PYREVGRAD_HD Brief operator-() const { return -v; }
};
template <class T>
struct ScalarOf<Brief<T>> {
  using type = float;
};

#define PYREVGRAD_BRIEF(RESULT, OPERATOR)                         \
  template <class T>                                              \
  PYREVGRAD_HD RESULT operator OPERATOR(Brief<T> a, Brief<T> b) { \
    return a.v OPERATOR b.v;                                      \
  }
PYREVGRAD_BRIEF(Brief<T>, +)
PYREVGRAD_BRIEF(Brief<T>, -)
PYREVGRAD_BRIEF(Brief<T>, *)
PYREVGRAD_BRIEF(Brief<T>, /)
PYREVGRAD_BRIEF(bool, <)
PYREVGRAD_BRIEF(bool, >)
PYREVGRAD_BRIEF(bool, <=)
PYREVGRAD_BRIEF(bool, >=)
PYREVGRAD_BRIEF(bool, ==)
PYREVGRAD_BRIEF(bool, !=)
#undef PYREVGRAD_BRIEF

// The inverse is the host's, made once a launch: a division takes ten instructions.
template <class T>
struct Parameters<Brief<T>> {
  Brief<T> a, b, inverse;
};

template <class T>
PYREVGRAD_HD Brief<T> select(bool pass, Brief<T> a, Brief<T> b) {
  return pass ? a.v : b.v;
}
template <class T>
PYREVGRAD_HD Brief<T> absolute(Brief<T> x) {
  return absolute(x.v);
}
template <class T>
PYREVGRAD_HD Brief<T> round_even(Brief<T> x) {
  return round_even(x.v);
}

#if defined(__CUDA_ARCH__)
namespace quick {
// Errors by PTX's documentation: 2^-22.5 for ex2, 2^-23 for rcp, 2^-22 (absolute, about 1) for lg2,
// 2^-11 for tanh.
PYREVGRAD_HD float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
PYREVGRAD_HD float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
PYREVGRAD_HD float logarithm(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
PYREVGRAD_HD float tangent(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
PYREVGRAD_HD float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
}  // namespace quick
#elif defined(PYREVGRAD_APPROXIMATE)
namespace quick {
float power_of_two(float x);
float reciprocal(float x);
float logarithm(float x);
float tangent(float x);
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
}  // namespace quick
#endif

#if defined(__CUDA_ARCH__) || defined(PYREVGRAD_APPROXIMATE)
template <class T>
PYREVGRAD_HD Brief<T> multiply_add(Brief<T> a, Brief<T> b, Brief<T> c) {
  return quick::fused(a.v, b.v, c.v);
}
template <class T>
PYREVGRAD_HD Brief<T> reciprocal_from_one(Brief<T> x) {
  // Exact at 1: 1 − σ(x) must be 0 where x is so large that a formula multiplies it by x.
  return x.v == 1.0f ? 1.0f : quick::reciprocal(x.v);
}
template <class T>
PYREVGRAD_HD Brief<T> quotient_from_one(Brief<T> a, Brief<T> b) {
  // By way of b/4, since the instruction gives 0 for a b above 2^126.
  return a.v * 0.25f * quick::reciprocal(b.v * 0.25f);
}
template <class T>
PYREVGRAD_HD Brief<T> divided_by_a(Brief<T> x, const Parameters<Brief<T>>& p) {
  return x.v * p.inverse.v;
}
template <class T>
PYREVGRAD_HD Brief<T> exponential(Brief<T> x) {
  return quick::power_of_two(x.v * 1.44269504088896f);
}
// By Taylor's series where a difference would cancel: off by x⁴/120 of itself.
template <class T>
PYREVGRAD_HD Brief<T> exponential_minus_one(Brief<T> x) {
  float near = quick::fused(x.v, 1.0f / 24, 1.0f / 6);
  near = quick::fused(near, x.v, 0.5f);
  near = quick::fused(near, x.v, 1.0f);
  const float far = exponential(x).v - 1.0f;
  return ::fabsf(x.v) < 0.25f ? x.v * near : far;
}
// For x in [0, 1]; the series is off by x⁴/5 of itself.
template <class T>
PYREVGRAD_HD Brief<T> log_one_plus(Brief<T> x) {
  float near = quick::fused(x.v, -0.25f, 1.0f / 3);
  near = quick::fused(near, x.v, -0.5f);
  near = quick::fused(near, x.v, 1.0f);
  const float far = quick::logarithm(1.0f + x.v) * 0.693147180559945f;
  return x.v < 0.09375f ? x.v * near : far;
}
PYREVGRAD_HD Brief<Bfloat16> hyperbolic_tangent(Brief<Bfloat16> x) { return quick::tangent(x.v); }
// tanh.approx has as many bits as float16; the series is off by 0.022·x⁸ of itself.
PYREVGRAD_HD Brief<Half> hyperbolic_tangent(Brief<Half> x) {
  const float z = x.v * x.v, size = ::fabsf(x.v);
  float near = quick::fused(z, -17.0f / 315, 2.0f / 15);
  near = quick::fused(near, z, -1.0f / 3);
  near = quick::fused(near, z, 1.0f);
  const float e = quick::power_of_two(size * 2.88539008177793f);
  const float far = quick::fused(quick::reciprocal(e + 1.0f), -2.0f, 1.0f);
  return size < 0.3125f ? x.v * near : ::copysignf(far, x.v);
}
#else
template <class T>
PYREVGRAD_HD Brief<T> exponential(Brief<T> x) {
  return exponential(x.v);
}
template <class T>
PYREVGRAD_HD Brief<T> exponential_minus_one(Brief<T> x) {
  return exponential_minus_one(x.v);
}
template <class T>
PYREVGRAD_HD Brief<T> log_one_plus(Brief<T> x) {
  return log_one_plus(x.v);
}
template <class T>
PYREVGRAD_HD Brief<T> hyperbolic_tangent(Brief<T> x) {
  return hyperbolic_tangent(x.v);
}
#endif

namespace cuda {

// What a formula is evaluated over. Where numbers of like size are subtracted the float32 functions
// stay: tanhshrink, and 1 − tanh² from the input.
template <class T>
struct Evaluated {
  using V = Brief<T>;
};
template <>
struct Evaluated<float> {
  using V = float;
};
template <>
struct Evaluated<double> {
  using V = double;
};
template <class A>
constexpr bool kSmooth = A::kind == Kind::kOutput || A::kind == Kind::kInput;
template <class A, class T>
using ValueOver = std::conditional_t<kSmooth<A> && !std::is_same_v<A, Tanhshrink>,
                                     typename Evaluated<T>::V, typename Computed<T>::V>;
template <class A, class T>
using SlopeOver =
    std::conditional_t<kSmooth<A> && !std::is_same_v<A, Tanhshrink> && !std::is_same_v<A, Tanh>,
                       typename Evaluated<T>::V, typename Computed<T>::V>;

PYREVGRAD_HD float plain(float x) { return x; }
PYREVGRAD_HD double plain(double x) { return x; }
template <class T>
PYREVGRAD_HD float plain(Brief<T> x) {
  return x.v;
}

// An activation's parameters, and what a half type's formula multiplies by where others divide.
template <class V>
struct Constants : Parameters<V> {
  V inverse;

  explicit Constants(double a, double b) : Parameters<V>{V(a), V(b)}, inverse(V(1) / V(a)) {
    // A number all the same where a is next to nothing, so that nothing times it is nothing.
    const V largest = std::numeric_limits<V>::max();
    inverse = std::min(std::max(inverse, -largest), largest);
  }
};
template <class F, class V>
PYREVGRAD_HD Parameters<F> parameters_of(const Constants<V>& p) {
  if constexpr (std::is_same_v<F, V>) {
    return p;
  } else {
    return {F(p.a), F(p.b), F(p.inverse)};
  }
}

template <class A, class T, class V>
PYREVGRAD_HD V value_of(V x, const Constants<V>& p) {
  using F = ValueOver<A, T>;
  return plain(A::value(F(x), parameters_of<F>(p)));
}
template <class A, class T, class V>
PYREVGRAD_HD V slope_at(V x, const Constants<V>& p) {
  using F = SlopeOver<A, T>;
  return plain(A::slope(F(x), parameters_of<F>(p)));
}
template <class A, class T, class V>
PYREVGRAD_HD V slope_at_output(V y, const Constants<V>& p) {
  using F = SlopeOver<A, T>;
  return plain(A::slope_of_output(F(y), parameters_of<F>(p)));
}

}  // namespace cuda
}  // namespace pyrevgrad
