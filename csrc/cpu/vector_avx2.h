// AVX2: eight floats in one register or eight doubles in two, and masks of all ones or zeros.
#pragma once

#include <immintrin.h>
#include <sleef.h>

#include "storage.h"

namespace pyrevgrad::avx2 {

#define INLINE inline __attribute__((always_inline))

struct Mask32 {
  __m256 v;
};
struct Mask64 {
  __m256d lo, hi;
};

struct F32 {
  static constexpr int width = 8;
  using Scalar = float;
  using Mask = Mask32;
  __m256 v;
  INLINE F32() = default;
  INLINE explicit F32(__m256 x) : v(x) {}
  INLINE explicit F32(double x) : v(_mm256_set1_ps(static_cast<float>(x))) {}
};

struct Alternate {
  static constexpr int width = 2 * F32::width;
  F32 even, odd;
};

struct F64 {
  static constexpr int width = 8;
  using Scalar = double;
  using Mask = Mask64;
  __m256d lo, hi;
  INLINE F64() = default;
  INLINE F64(__m256d l, __m256d h) : lo(l), hi(h) {}
  INLINE explicit F64(double x) : lo(_mm256_set1_pd(x)), hi(lo) {}
};

INLINE Mask32 operator&(Mask32 a, Mask32 b) { return {_mm256_and_ps(a.v, b.v)}; }
INLINE Mask32 operator!(Mask32 a) {
  return {_mm256_xor_ps(a.v, _mm256_castsi256_ps(_mm256_set1_epi32(-1)))};
}
INLINE Mask64 operator&(Mask64 a, Mask64 b) {
  return {_mm256_and_pd(a.lo, b.lo), _mm256_and_pd(a.hi, b.hi)};
}
INLINE Mask64 operator!(Mask64 a) {
  const __m256d ones = _mm256_castsi256_pd(_mm256_set1_epi32(-1));
  return {_mm256_xor_pd(a.lo, ones), _mm256_xor_pd(a.hi, ones)};
}

#define PYREVGRAD_BINARY(OPERATOR, NAME)                                                   \
  INLINE F32 operator OPERATOR(F32 a, F32 b) { return F32(_mm256_##NAME##_ps(a.v, b.v)); } \
  INLINE F64 operator OPERATOR(F64 a, F64 b) {                                             \
    return F64(_mm256_##NAME##_pd(a.lo, b.lo), _mm256_##NAME##_pd(a.hi, b.hi));            \
  }
PYREVGRAD_BINARY(+, add)
PYREVGRAD_BINARY(-, sub)
PYREVGRAD_BINARY(*, mul)
PYREVGRAD_BINARY(/, div)
#undef PYREVGRAD_BINARY

#define PYREVGRAD_COMPARISON(OPERATOR, CODE)                                                \
  INLINE Mask32 operator OPERATOR(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, CODE)}; } \
  INLINE Mask64 operator OPERATOR(F64 a, F64 b) {                                           \
    return {_mm256_cmp_pd(a.lo, b.lo, CODE), _mm256_cmp_pd(a.hi, b.hi, CODE)};              \
  }
PYREVGRAD_COMPARISON(<, _CMP_LT_OQ)
PYREVGRAD_COMPARISON(<=, _CMP_LE_OQ)
PYREVGRAD_COMPARISON(>, _CMP_GT_OQ)
PYREVGRAD_COMPARISON(>=, _CMP_GE_OQ)
PYREVGRAD_COMPARISON(==, _CMP_EQ_OQ)
PYREVGRAD_COMPARISON(!=, _CMP_NEQ_UQ)
#undef PYREVGRAD_COMPARISON

INLINE F32 operator-(F32 a) { return F32(_mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f))); }
INLINE F64 operator-(F64 a) {
  const __m256d sign = _mm256_set1_pd(-0.0);
  return F64(_mm256_xor_pd(a.lo, sign), _mm256_xor_pd(a.hi, sign));
}
INLINE F32 absolute(F32 a) { return F32(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)); }
INLINE F64 absolute(F64 a) {
  const __m256d sign = _mm256_set1_pd(-0.0);
  return F64(_mm256_andnot_pd(sign, a.lo), _mm256_andnot_pd(sign, a.hi));
}
INLINE F32 round_even(F32 a) { return F32(_mm256_round_ps(a.v, 0)); }
INLINE F64 round_even(F64 a) { return F64(_mm256_round_pd(a.lo, 0), _mm256_round_pd(a.hi, 0)); }

#define PYREVGRAD_SLEEF(NAME, SLEEF) \
  INLINE F64 NAME(F64 a) { return F64(Sleef_##SLEEF##d4_u10(a.lo), Sleef_##SLEEF##d4_u10(a.hi)); }
PYREVGRAD_SLEEF(exponential, exp)
PYREVGRAD_SLEEF(exponential_minus_one, expm1)
PYREVGRAD_SLEEF(log_one_plus, log1p)
PYREVGRAD_SLEEF(hyperbolic_tangent, tanh)
PYREVGRAD_SLEEF(error_function, erf)
#undef PYREVGRAD_SLEEF

INLINE F32 fused(F32 a, F32 b, F32 c) { return F32(_mm256_fmadd_ps(a.v, b.v, c.v)); }
INLINE F32 minimum(F32 a, F32 b) { return F32(_mm256_min_ps(a.v, b.v)); }
INLINE F32 maximum(F32 a, F32 b) { return F32(_mm256_max_ps(a.v, b.v)); }
// In two steps, so that neither power leaves the range of normal numbers.
INLINE F32 power_of_two_times(F32 y, F32 n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(whole, 1);
  const __m256i rest = _mm256_sub_epi32(whole, half), bias = _mm256_set1_epi32(127);
  const auto power = [bias](__m256i e) {
    return F32(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, bias), 23)));
  };
  return (y * power(half)) * power(rest);
}

INLINE F32 select(Mask32 m, F32 a, F32 b) { return F32(_mm256_blendv_ps(b.v, a.v, m.v)); }
INLINE F64 select(Mask64 m, F64 a, F64 b) {
  return F64(_mm256_blendv_pd(b.lo, a.lo, m.lo), _mm256_blendv_pd(b.hi, a.hi, m.hi));
}

INLINE unsigned bits_of(Mask32 m) { return static_cast<unsigned>(_mm256_movemask_ps(m.v)); }
INLINE unsigned bits_of(Mask64 m) {
  return static_cast<unsigned>(_mm256_movemask_pd(m.lo) | _mm256_movemask_pd(m.hi) << 4);
}
INLINE Mask32 mask_of(unsigned bits, F32) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane))};
}
INLINE Mask64 mask_of(unsigned bits, F64) {
  const __m256i all = _mm256_set1_epi64x(bits);
  const __m256i low = _mm256_setr_epi64x(1, 2, 4, 8);
  const __m256i high = _mm256_slli_epi64(low, 4);
  return {_mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(all, low), low)),
          _mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(all, high), high))};
}

INLINE F32 load(const float* p) { return F32(_mm256_loadu_ps(p)); }
INLINE F64 load(const double* p) { return F64(_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)); }
INLINE F32 load(const Bfloat16* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return F32(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16)));
}
INLINE F32 load(const Half* p) {
  return F32(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

template <int bytes>
INLINE void past_caches(const void* from, void* to) {
  if constexpr (bytes == 16) {
    _mm_stream_si128(static_cast<__m128i*>(to), *static_cast<const __m128i*>(from));
  }
  for (int i = 0; i < bytes / 32; ++i) {
    _mm256_stream_si256(static_cast<__m256i*>(to) + i, static_cast<const __m256i*>(from)[i]);
  }
}
INLINE void end_of_stream() { _mm_sfence(); }

INLINE void store(F32 x, float* p) { _mm256_storeu_ps(p, x.v); }
INLINE void store(F64 x, double* p) {
  _mm256_storeu_pd(p, x.lo);
  _mm256_storeu_pd(p + 4, x.hi);
}
INLINE __m256i rounded_to_bfloat16(F32 x) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(sum, _mm256_set1_epi32(0x7fc00000), nan);
}
INLINE void store(F32 x, Bfloat16* p) {
  const __m256i high = _mm256_srli_epi32(rounded_to_bfloat16(x), 16);
  const __m128i packed =
      _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}
INLINE void store(F32 x, Half* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Sixteen bfloat16 as those at even and those at odd places: a shift and a mask each way, where
// neighbours would have to be moved between lanes.
INLINE Alternate alternate(__m256i raw) {
  return {F32(_mm256_castsi256_ps(_mm256_slli_epi32(raw, 16))),
          F32(_mm256_castsi256_ps(_mm256_and_si256(raw, _mm256_set1_epi32(-65536))))};
}
// Rounded as sixteen-bit numbers, all at once: up where the low half, one more beside an odd high
// half, is over the middle. A NaN's low half is 0 here, as its source's was.
INLINE __m256i rounded(Alternate x) {
  const __m256i even = _mm256_castps_si256(x.even.v), odd = _mm256_castps_si256(x.odd.v);
  const __m256i high = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
  const __m256i low = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
  const __m256i one = _mm256_set1_epi16(1);
  const __m256i sum = _mm256_adds_epu16(low, _mm256_and_si256(high, one));
  const __m256i up = _mm256_min_epu16(_mm256_subs_epu16(sum, _mm256_set1_epi16(-0x8000)), one);
  return _mm256_add_epi16(high, up);
}
INLINE Alternate load_alternate(const Bfloat16* p) {
  return alternate(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
INLINE void store(Alternate x, Bfloat16* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded(x));
}

}  // namespace pyrevgrad::avx2
