// AVX-512: sixteen floats or eight doubles, and masks that are bits already.
#pragma once

#include <immintrin.h>
#include <sleef.h>

#include <cmath>

#include "storage.h"

namespace pyrevgrad::PYREVGRAD_ISA {

#define INLINE inline __attribute__((always_inline))

template <int width>
struct Bits {
  unsigned bits;
};
template <int w>
INLINE Bits<w> operator&(Bits<w> a, Bits<w> b) {
  return {a.bits & b.bits};
}
template <int w>
INLINE Bits<w> operator!(Bits<w> a) {
  return {a.bits ^ static_cast<unsigned>((std::uint64_t(1) << w) - 1)};
}

struct F32 {
  static constexpr int width = 16;
  using Scalar = float;
  using Mask = Bits<16>;
  __m512 v;
  INLINE F32() = default;
  INLINE explicit F32(__m512 x) : v(x) {}
  INLINE explicit F32(double x) : v(_mm512_set1_ps(static_cast<float>(x))) {}
};

struct Alternate {
  static constexpr int width = 2 * F32::width;
  F32 even, odd;
};

struct F64 {
  static constexpr int width = 8;
  using Scalar = double;
  using Mask = Bits<8>;
  __m512d v;
  INLINE F64() = default;
  INLINE explicit F64(__m512d x) : v(x) {}
  INLINE explicit F64(double x) : v(_mm512_set1_pd(x)) {}
};

#define PYREVGRAD_VECTOR(V, S, T)                                                                \
  INLINE V operator+(V a, V b) { return V(_mm512_add_##S(a.v, b.v)); }                           \
  INLINE V operator-(V a, V b) { return V(_mm512_sub_##S(a.v, b.v)); }                           \
  INLINE V operator*(V a, V b) { return V(_mm512_mul_##S(a.v, b.v)); }                           \
  INLINE V operator/(V a, V b) { return V(_mm512_div_##S(a.v, b.v)); }                           \
  INLINE V operator-(V a) { return V(_mm512_xor_##S(a.v, _mm512_set1_##S(T(-0.0)))); }           \
  INLINE V::Mask operator<(V a, V b) { return {_mm512_cmp_##S##_mask(a.v, b.v, _CMP_LT_OQ)}; }   \
  INLINE V::Mask operator<=(V a, V b) { return {_mm512_cmp_##S##_mask(a.v, b.v, _CMP_LE_OQ)}; }  \
  INLINE V::Mask operator>(V a, V b) { return {_mm512_cmp_##S##_mask(a.v, b.v, _CMP_GT_OQ)}; }   \
  INLINE V::Mask operator>=(V a, V b) { return {_mm512_cmp_##S##_mask(a.v, b.v, _CMP_GE_OQ)}; }  \
  INLINE V::Mask operator==(V a, V b) { return {_mm512_cmp_##S##_mask(a.v, b.v, _CMP_EQ_OQ)}; }  \
  INLINE V::Mask operator!=(V a, V b) { return {_mm512_cmp_##S##_mask(a.v, b.v, _CMP_NEQ_UQ)}; } \
  INLINE V absolute(V a) { return V(_mm512_abs_##S(a.v)); }                                      \
  INLINE V round_even(V a) { return V(_mm512_roundscale_##S(a.v, 0)); }

PYREVGRAD_VECTOR(F32, ps, float)
PYREVGRAD_VECTOR(F64, pd, double)
#undef PYREVGRAD_VECTOR

INLINE F64 exponential(F64 a) { return F64(Sleef_expd8_u10(a.v)); }
INLINE F64 exponential_minus_one(F64 a) { return F64(Sleef_expm1d8_u10(a.v)); }
INLINE F64 log_one_plus(F64 a) { return F64(Sleef_log1pd8_u10(a.v)); }
INLINE F64 hyperbolic_tangent(F64 a) { return F64(Sleef_tanhd8_u10(a.v)); }
INLINE F64 error_function(F64 a) { return F64(Sleef_erfd8_u10(a.v)); }

INLINE F32 fused(F32 a, F32 b, F32 c) { return F32(_mm512_fmadd_ps(a.v, b.v, c.v)); }
INLINE F32 minimum(F32 a, F32 b) { return F32(_mm512_min_ps(a.v, b.v)); }
INLINE F32 maximum(F32 a, F32 b) { return F32(_mm512_max_ps(a.v, b.v)); }
INLINE F32 power_of_two_times(F32 y, F32 n) { return F32(_mm512_scalef_ps(y.v, n.v)); }

// One Newton step from 14 bits, a third of a division's time. The step would make NaN of inf.
INLINE F32 reciprocal_from_one(F32 x) {
  const __m512 r = _mm512_rcp14_ps(x.v);
  const __mmask16 finite = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(INFINITY), _CMP_NEQ_UQ);
  return F32(_mm512_maskz_mul_ps(finite, r, _mm512_fnmadd_ps(x.v, r, _mm512_set1_ps(2))));
}

INLINE F32 select(F32::Mask m, F32 a, F32 b) {
  return F32(_mm512_mask_blend_ps(static_cast<__mmask16>(m.bits), b.v, a.v));
}
INLINE F64 select(F64::Mask m, F64 a, F64 b) {
  return F64(_mm512_mask_blend_pd(static_cast<__mmask8>(m.bits), b.v, a.v));
}

template <int w>
INLINE unsigned bits_of(Bits<w> m) {
  return m.bits;
}
template <class V>
INLINE typename V::Mask mask_of(unsigned bits, V) {
  return {bits};
}

INLINE F32 load(const float* p) { return F32(_mm512_loadu_ps(p)); }
INLINE F64 load(const double* p) { return F64(_mm512_loadu_pd(p)); }
INLINE F32 load(const Bfloat16* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return F32(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16)));
}
INLINE F32 load(const Half* p) {
  return F32(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}

template <int bytes>
INLINE void past_caches(const void* from, void* to) {
  if constexpr (bytes == 64) {
    _mm512_stream_si512(static_cast<__m512i*>(to), *static_cast<const __m512i*>(from));
  } else {
    static_assert(bytes == 32);
    _mm256_stream_si256(static_cast<__m256i*>(to), *static_cast<const __m256i*>(from));
  }
}
INLINE void end_of_stream() { _mm_sfence(); }

INLINE void store(F32 x, float* p) { _mm512_storeu_ps(p, x.v); }
INLINE void store(F64 x, double* p) { _mm512_storeu_pd(p, x.v); }
INLINE __m512i rounded_to_bfloat16(F32 x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __mmask16 number = _mm512_cmp_ps_mask(x.v, x.v, _CMP_ORD_Q);
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  return _mm512_mask_add_epi32(_mm512_set1_epi32(0x7fc00000), number, bits, bias);
}
INLINE void store(F32 x, Bfloat16* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_to_bfloat16(x), 16)));
}
INLINE void store(F32 x, Half* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Thirty-two bfloat16 as those at even and those at odd places: a shift and a mask each way, where
// neighbours would have to be moved between lanes.
INLINE Alternate alternate(__m512i raw) {
  return {F32(_mm512_castsi512_ps(_mm512_slli_epi32(raw, 16))),
          F32(_mm512_castsi512_ps(_mm512_and_si512(raw, _mm512_set1_epi32(-65536))))};
}
// Rounded as sixteen-bit numbers, all at once: up where the low half, one more beside an odd high
// half, is over the middle. A NaN's low half is 0 here, as its source's was.
INLINE __m512i rounded_by_halves(Alternate x) {
  const __m512i even = _mm512_castps_si512(x.even.v), odd = _mm512_castps_si512(x.odd.v);
  const __m512i high = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(even, 16), odd);
  const __m512i low = _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
  const __m512i one = _mm512_set1_epi16(1);
  const __m512i sum = _mm512_adds_epu16(low, _mm512_and_si512(high, one));
  const __mmask32 up = _mm512_cmpgt_epu16_mask(sum, _mm512_set1_epi16(-0x8000));
  return _mm512_mask_add_epi16(high, up, high, one);
}
#ifdef __AVX512BF16__
// By AVX512-BF16, which rounds as above but makes zeros of subnormal numbers (where the user has
// the processor flush them, these are not seen and become zeros too).
INLINE __m512i rounded(Alternate x) {
  // Of the numbers at even places, then those at odd ones, each in its place.
  alignas(64) constexpr std::int16_t places[] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                 21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  constexpr int subnormal = 0x20;
  const __mmask16 subnormals =
      _mm512_fpclass_ps_mask(x.even.v, subnormal) | _mm512_fpclass_ps_mask(x.odd.v, subnormal);
  if (__builtin_expect(subnormals != 0, 0)) return rounded_by_halves(x);
  const __m512bh made = _mm512_cvtne2ps_pbh(x.odd.v, x.even.v);
  return _mm512_permutexvar_epi16(_mm512_load_si512(places), reinterpret_cast<__m512i>(made));
}
#else
INLINE __m512i rounded(Alternate x) { return rounded_by_halves(x); }
#endif
INLINE Alternate load_alternate(const Bfloat16* p) { return alternate(_mm512_loadu_si512(p)); }
INLINE void store(Alternate x, Bfloat16* p) { _mm512_storeu_si512(p, rounded(x)); }

}  // namespace pyrevgrad::PYREVGRAD_ISA
