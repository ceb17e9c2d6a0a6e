// AVX-512: thirty-two sixteen-bit numbers as they are stored.
#pragma once

#include "sixteen.h"
#include "vector_avx512.h"

namespace pyrevgrad::PYREVGRAD_ISA {

// A vector that was loaded, or a constant. Of two that are compared or multiplied one is a
// constant: the right one of a comparison, the left one of a product.
template <class T>
struct Sixteen {
  static constexpr int width = 32;
  using Scalar = float;
  using Mask = Bits<32>;
  __m512i v, least, most;
  F32 exact;
  bool zero = false;
  INLINE Sixteen() = default;
  static INLINE Sixteen from(const T* p) { return Sixteen(_mm512_loadu_si512(p)); }
  INLINE explicit Sixteen(__m512i x) : v(x) {
    const __m512i sign = _mm512_srai_epi16(x, 15);
    // x ^ (sign & 0x7fff)
    least = most = _mm512_ternarylogic_epi32(x, sign, _mm512_set1_epi16(0x7fff), 0x78);
  }
  INLINE explicit Sixteen(double x) : exact(x), zero(x == 0) {
    const Constant c = constant_of<T>(x);
    v = _mm512_set1_epi16(c.nearest);
    least = _mm512_set1_epi16(c.least);
    most = _mm512_set1_epi16(c.most);
  }
};

template <class T>
INLINE __mmask32 numbers(Sixteen<T> x) {
  const __m512i magnitude = _mm512_and_si512(x.v, _mm512_set1_epi16(0x7fff));
  return _mm512_cmple_epi16_mask(magnitude, _mm512_set1_epi16(kInfinity<T>));
}
// Compared with a zero that the compiler knows, what holds is a run of places or all but one and a
// run: two instructions for the five of any other constant.
template <class T>
INLINE Bits<32> in_run(Sixteen<T> x, int first) {
  const __m512i place = _mm512_sub_epi16(x.v, _mm512_set1_epi16(static_cast<short>(first)));
  return {_mm512_cmplt_epu16_mask(place, _mm512_set1_epi16(kInfinity<T>))};
}
template <class T>
INLINE Bits<32> above_zero_or_nan(Sixteen<T> x) {
  const __mmask32 above = _mm512_cmpgt_epi16_mask(x.v, _mm512_set1_epi16(kMinusInfinity<T>));
  return {_mm512_mask_test_epi16_mask(above, x.v, x.v)};
}
template <class T>
INLINE Bits<32> operator<(Sixteen<T> a, Sixteen<T> b) {
  if (is_known_zero(b)) return in_run(a, -0x7fff);
  return {_mm512_mask_cmplt_epi16_mask(numbers(a), a.most, b.least)};
}
template <class T>
INLINE Bits<32> operator<=(Sixteen<T> a, Sixteen<T> b) {
  if (is_known_zero(b)) return !above_zero_or_nan(a);
  return {_mm512_mask_cmple_epi16_mask(numbers(a), a.most, b.most)};
}
template <class T>
INLINE Bits<32> operator>(Sixteen<T> a, Sixteen<T> b) {
  if (is_known_zero(b)) return in_run(a, 1);
  return {_mm512_mask_cmpgt_epi16_mask(numbers(a), a.least, b.most)};
}
template <class T>
INLINE Bits<32> operator>=(Sixteen<T> a, Sixteen<T> b) {
  return {_mm512_mask_cmpge_epi16_mask(numbers(a), a.least, b.least)};
}
template <class T>
INLINE Bits<32> operator==(Sixteen<T> a, Sixteen<T> b) {
  return (a <= b) & (a >= b);
}

template <class T>
INLINE Sixteen<T> operator-(Sixteen<T> a) {
  return Sixteen<T>(_mm512_xor_si512(a.v, _mm512_set1_epi16(-0x8000)));
}
template <class T>
INLINE Sixteen<T> absolute(Sixteen<T> a) {
  return Sixteen<T>(_mm512_and_si512(a.v, _mm512_set1_epi16(0x7fff)));
}
template <class T>
INLINE Sixteen<T> select(Bits<32> m, Sixteen<T> a, Sixteen<T> b) {
  return Sixteen<T>(_mm512_mask_blend_epi16(m.bits, b.v, a.v));
}
template <class T>
INLINE Bits<32> mask_of(unsigned bits, Sixteen<T>) {
  return {bits};
}

// The products of a vector's two parts, each by floats of its own: even and odd places of bfloat16,
// lower and upper half of float16.
INLINE Sixteen<Bfloat16> times(F32 first, F32 second, Sixteen<Bfloat16> x) {
  const Alternate parts = alternate(x.v);
  return Sixteen<Bfloat16>(rounded({first * parts.even, second * parts.odd}));
}
INLINE Sixteen<Half> times(F32 first, F32 second, Sixteen<Half> x) {
  const F32 low(_mm512_cvtph_ps(_mm512_castsi512_si256(x.v)));
  const F32 high(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(x.v, 1)));
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  const __m512i lower = _mm512_castsi256_si512(_mm512_cvtps_ph((first * low).v, nearest));
  return Sixteen<Half>(_mm512_inserti64x4(lower, _mm512_cvtps_ph((second * high).v, nearest), 1));
}
template <class T>
INLINE Sixteen<T> operator*(Sixteen<T> constant, Sixteen<T> x) {
  return times(constant.exact, constant.exact, x);
}
INLINE Sixteen<Bfloat16> times(Bits<32> m, Sixteen<Bfloat16> high, Sixteen<Bfloat16> low,
                               Sixteen<Bfloat16> x) {
  constexpr unsigned even = 0x55555555;
  return times(select(Bits<16>{_pext_u32(m.bits, even)}, high.exact, low.exact),
               select(Bits<16>{_pext_u32(m.bits, ~even)}, high.exact, low.exact), x);
}
INLINE Sixteen<Half> times(Bits<32> m, Sixteen<Half> high, Sixteen<Half> low, Sixteen<Half> x) {
  return times(select(Bits<16>{m.bits & 0xffff}, high.exact, low.exact),
               select(Bits<16>{m.bits >> 16}, high.exact, low.exact), x);
}

template <class T>
INLINE void store(Sixteen<T> x, T* p) {
  _mm512_storeu_si512(p, x.v);
}

}  // namespace pyrevgrad::PYREVGRAD_ISA
