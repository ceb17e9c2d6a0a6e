// Any machine: eight scalars in a compiler vector, which it maps to what the machine has.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "storage.h"

namespace pyrevgrad::portable {

#define INLINE inline __attribute__((always_inline))
#define EACH for (int i = 0; i < 8; ++i)

template <class T>
struct EightMask {
  typedef T Raw __attribute__((vector_size(8 * sizeof(T))));
  Raw m;
};

template <class T, class I>
struct Eight {
  static constexpr int width = 8;
  using Scalar = T;
  using Mask = EightMask<I>;
  typedef T Raw __attribute__((vector_size(8 * sizeof(T))));
  Raw v;
  INLINE Eight() = default;
  INLINE explicit Eight(Raw x) : v(x) {}
  // Not by a sum with 0, which would make 0 of -0.
  INLINE explicit Eight(double x) : v(static_cast<T>(x) - Raw{}) {}
};
using F32 = Eight<float, std::int32_t>;
using F64 = Eight<double, std::int64_t>;

template <class I>
INLINE EightMask<I> operator&(EightMask<I> a, EightMask<I> b) {
  return {a.m & b.m};
}
template <class I>
INLINE EightMask<I> operator!(EightMask<I> a) {
  return {~a.m};
}

#define PYREVGRAD_OPERATOR(OPERATOR, RESULT)                                    \
  template <class T, class I>                                                   \
  INLINE RESULT operator OPERATOR(const Eight<T, I>& a, const Eight<T, I>& b) { \
    return RESULT{a.v OPERATOR b.v};                                            \
  }
#define VECTOR Eight<T, I>
PYREVGRAD_OPERATOR(+, VECTOR)
PYREVGRAD_OPERATOR(-, VECTOR)
PYREVGRAD_OPERATOR(*, VECTOR)
PYREVGRAD_OPERATOR(/, VECTOR)
PYREVGRAD_OPERATOR(<, EightMask<I>)
PYREVGRAD_OPERATOR(<=, EightMask<I>)
PYREVGRAD_OPERATOR(>, EightMask<I>)
PYREVGRAD_OPERATOR(>=, EightMask<I>)
PYREVGRAD_OPERATOR(==, EightMask<I>)
PYREVGRAD_OPERATOR(!=, EightMask<I>)
#undef PYREVGRAD_OPERATOR
#undef VECTOR

template <class T, class I>
INLINE Eight<T, I> operator-(const Eight<T, I>& a) {
  return Eight<T, I>(-a.v);
}
template <class T, class I>
INLINE Eight<T, I> select(const EightMask<I>& m, const Eight<T, I>& a, const Eight<T, I>& b) {
  return Eight<T, I>(m.m ? a.v : b.v);
}
template <class T, class I>
INLINE Eight<T, I> absolute(const Eight<T, I>& a) {
  return Eight<T, I>((typename Eight<T, I>::Raw)(
      (typename EightMask<I>::Raw)a.v & (static_cast<I>(~I(0)) ^ (I(1) << (8 * sizeof(I) - 1)))));
}

// Kept out of line, here and in the conversions: the bodies are small, 27 activations of them not.
template <class T, class I>
[[gnu::noinline]] Eight<T, I> each(const Eight<T, I>& a, T (*function)(T)) {
  Eight<T, I> r;
  EACH r.v[i] = function(a.v[i]);
  return r;
}
#define PYREVGRAD_UNARY(NAME)                                     \
  template <class T, class I>                                     \
  INLINE Eight<T, I> NAME(const Eight<T, I>& a) {                 \
    return each(a, +[](T x) -> T { return pyrevgrad::NAME(x); }); \
  }
PYREVGRAD_UNARY(round_even)
PYREVGRAD_UNARY(exponential)
PYREVGRAD_UNARY(exponential_minus_one)
PYREVGRAD_UNARY(log_one_plus)
PYREVGRAD_UNARY(hyperbolic_tangent)
PYREVGRAD_UNARY(error_function)
#undef PYREVGRAD_UNARY

template <class I>
INLINE unsigned bits_of(const EightMask<I>& m) {
  unsigned bits = 0;
  EACH bits |= static_cast<unsigned>(m.m[i] & 1) << i;
  return bits;
}
template <class T, class I>
INLINE EightMask<I> mask_of(unsigned bits, const Eight<T, I>&) {
  constexpr typename EightMask<I>::Raw lane = {1, 2, 4, 8, 16, 32, 64, 128};
  return {(lane & static_cast<I>(bits)) != 0};
}

INLINE F32 load(const float* p) {
  F32 r;
  __builtin_memcpy(&r.v, p, sizeof(r.v));
  return r;
}
INLINE F64 load(const double* p) {
  F64 r;
  __builtin_memcpy(&r.v, p, sizeof(r.v));
  return r;
}
[[gnu::noinline]] static F32 load(const Bfloat16* p) {
  F32 r;
  EACH r.v[i] = torch::headeronly::detail::f32_from_bits(p[i].bits);
  return r;
}
[[gnu::noinline]] static F32 load(const Half* p) {
  F32 r;
  EACH r.v[i] = torch::headeronly::detail::fp16_ieee_to_fp32_value(p[i].bits);
  return r;
}

// Never called (its table says that it cannot): the loops name them.
template <int bytes>
INLINE void past_caches(const void* from, void* to) {
  __builtin_memcpy(to, from, bytes);
}
INLINE void end_of_stream() {}

INLINE void store(const F32& x, float* p) { __builtin_memcpy(p, &x.v, sizeof(x.v)); }
INLINE void store(const F64& x, double* p) { __builtin_memcpy(p, &x.v, sizeof(x.v)); }
[[gnu::noinline]] static void store(const F32& x, Bfloat16* p) {
  EACH p[i].bits = torch::headeronly::detail::round_to_nearest_even(x.v[i]);
}
[[gnu::noinline]] static void store(const F32& x, Half* p) {
  EACH p[i].bits = torch::headeronly::detail::fp16_ieee_from_fp32_value(x.v[i]);
}

#undef EACH

}  // namespace pyrevgrad::portable
