// AVX2: sixteen sixteen-bit numbers as they are stored.
#pragma once

#include "sixteen.h"
#include "vector_avx2.h"

namespace pyrevgrad::avx2 {

struct Mask16 {
  __m256i v;
};
INLINE Mask16 operator&(Mask16 a, Mask16 b) { return {_mm256_and_si256(a.v, b.v)}; }
INLINE Mask16 operator!(Mask16 a) { return {_mm256_xor_si256(a.v, _mm256_set1_epi32(-1))}; }

// A vector that was loaded, or a constant. Of two that are compared or multiplied one is a
// constant: the right one of a comparison, the left one of a product.
template <class T>
struct Sixteen {
  static constexpr int width = 16;
  using Scalar = float;
  using Mask = Mask16;
  __m256i v, least, most;
  F32 exact;
  bool zero = false;
  INLINE Sixteen() = default;
  static INLINE Sixteen from(const T* p) {
    return Sixteen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  INLINE explicit Sixteen(__m256i x) : v(x) {
    least = most = _mm256_xor_si256(x, _mm256_srli_epi16(_mm256_srai_epi16(x, 15), 1));
  }
  INLINE explicit Sixteen(double x) : exact(x), zero(x == 0) {
    const Constant c = constant_of<T>(x);
    v = _mm256_set1_epi16(c.nearest);
    least = _mm256_set1_epi16(c.least);
    most = _mm256_set1_epi16(c.most);
  }
};

// Where a comparison holds, NaN aside.
template <class T>
INLINE Mask16 among_numbers(Sixteen<T> x, __m256i holds) {
  const __m256i magnitude = _mm256_and_si256(x.v, _mm256_set1_epi16(0x7fff));
  const __m256i nan = _mm256_cmpgt_epi16(magnitude, _mm256_set1_epi16(kInfinity<T>));
  return {_mm256_andnot_si256(nan, holds)};
}
// Those between two others as signed integers.
template <class T>
INLINE Mask16 between(Sixteen<T> x, int below, int above) {
  const __m256i low = _mm256_set1_epi16(static_cast<short>(below));
  const __m256i high = _mm256_set1_epi16(static_cast<short>(above));
  return {_mm256_and_si256(_mm256_cmpgt_epi16(x.v, low), _mm256_cmpgt_epi16(high, x.v))};
}
template <class T>
INLINE Mask16 above_zero_or_nan(Sixteen<T> x) {
  const __m256i above = _mm256_cmpgt_epi16(x.v, _mm256_set1_epi16(kMinusInfinity<T>));
  return {_mm256_andnot_si256(_mm256_cmpeq_epi16(x.v, _mm256_setzero_si256()), above)};
}
INLINE __m256i negated(__m256i holds) { return _mm256_xor_si256(holds, _mm256_set1_epi32(-1)); }
template <class T>
INLINE Mask16 operator<(Sixteen<T> a, Sixteen<T> b) {
  if (is_known_zero(b)) return between(a, -0x8000, kMinusInfinity<T> + 1);
  return among_numbers(a, _mm256_cmpgt_epi16(b.least, a.most));
}
template <class T>
INLINE Mask16 operator<=(Sixteen<T> a, Sixteen<T> b) {
  if (is_known_zero(b)) return !above_zero_or_nan(a);
  return among_numbers(a, negated(_mm256_cmpgt_epi16(a.most, b.most)));
}
template <class T>
INLINE Mask16 operator>(Sixteen<T> a, Sixteen<T> b) {
  if (is_known_zero(b)) return between(a, 0, kInfinity<T> + 1);
  return among_numbers(a, _mm256_cmpgt_epi16(a.least, b.most));
}
template <class T>
INLINE Mask16 operator>=(Sixteen<T> a, Sixteen<T> b) {
  return among_numbers(a, negated(_mm256_cmpgt_epi16(b.least, a.least)));
}
template <class T>
INLINE Mask16 operator==(Sixteen<T> a, Sixteen<T> b) {
  return (a <= b) & (a >= b);
}

template <class T>
INLINE Sixteen<T> operator-(Sixteen<T> a) {
  return Sixteen<T>(_mm256_xor_si256(a.v, _mm256_set1_epi16(-0x8000)));
}
template <class T>
INLINE Sixteen<T> absolute(Sixteen<T> a) {
  return Sixteen<T>(_mm256_and_si256(a.v, _mm256_set1_epi16(0x7fff)));
}
template <class T>
INLINE Sixteen<T> select(Mask16 m, Sixteen<T> a, Sixteen<T> b) {
  return Sixteen<T>(_mm256_blendv_epi8(b.v, a.v, m.v));
}
INLINE unsigned bits_of(Mask16 m) {
  const auto bits = static_cast<unsigned>(_mm256_movemask_epi8(_mm256_packs_epi16(m.v, m.v)));
  return (bits & 0xff) | (bits >> 8 & 0xff00);
}
template <class T>
INLINE Mask16 mask_of(unsigned bits, Sixteen<T>) {
  const __m256i lane = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096,
                                         8192, 16384, -32768);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi16(static_cast<short>(bits)), lane);
  return {_mm256_cmpeq_epi16(set, lane)};
}

// The products of a vector's two parts, each by floats of its own: even and odd places of bfloat16,
// lower and upper half of float16.
INLINE Sixteen<Bfloat16> times(F32 first, F32 second, Sixteen<Bfloat16> x) {
  const Alternate parts = alternate(x.v);
  return Sixteen<Bfloat16>(rounded({first * parts.even, second * parts.odd}));
}
INLINE Sixteen<Half> times(F32 first, F32 second, Sixteen<Half> x) {
  const F32 low(_mm256_cvtph_ps(_mm256_castsi256_si128(x.v)));
  const F32 high(_mm256_cvtph_ps(_mm256_extracti128_si256(x.v, 1)));
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return Sixteen<Half>(_mm256_setr_m128i(_mm256_cvtps_ph((first * low).v, nearest),
                                         _mm256_cvtps_ph((second * high).v, nearest)));
}
template <class T>
INLINE Sixteen<T> operator*(Sixteen<T> constant, Sixteen<T> x) {
  return times(constant.exact, constant.exact, x);
}
// blendv looks at signs alone.
INLINE Mask32 signs(__m256i lanes) { return {_mm256_castsi256_ps(lanes)}; }
INLINE Sixteen<Bfloat16> times(Mask16 m, Sixteen<Bfloat16> high, Sixteen<Bfloat16> low,
                               Sixteen<Bfloat16> x) {
  return times(select(signs(_mm256_slli_epi32(m.v, 16)), high.exact, low.exact),
               select(signs(m.v), high.exact, low.exact), x);
}
INLINE Sixteen<Half> times(Mask16 m, Sixteen<Half> high, Sixteen<Half> low, Sixteen<Half> x) {
  const __m256i lower = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(m.v));
  const __m256i upper = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(m.v, 1));
  return times(select(signs(lower), high.exact, low.exact),
               select(signs(upper), high.exact, low.exact), x);
}

template <class T>
INLINE void store(Sixteen<T> x, T* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.v);
}

}  // namespace pyrevgrad::avx2
