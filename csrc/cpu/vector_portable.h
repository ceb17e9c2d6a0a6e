// Any machine: the compiler's own vectors of 16 bytes, which SSE2, NEON and their like have.
// Numbers have the same bits everywhere, but where the C library computes them, as of doubles.
#pragma once

#include "storage.h"

namespace pyrevgrad::portable {

#define INLINE inline __attribute__((always_inline))

// A vector as the compiler has it; `I` is the integer of T's size.
template <class T>
struct Raw {
  typedef T type __attribute__((vector_size(16)));
};
template <class T>
using RawOf = typename Raw<T>::type;

// All ones or zeros for each number.
template <class I>
struct Mask {
  RawOf<I> v;
};

template <class T, class I>
struct Vector {
  static constexpr int width = 16 / sizeof(T);
  using Scalar = T;
  using Mask = portable::Mask<I>;
  RawOf<T> v;
  INLINE Vector() = default;
  INLINE explicit Vector(RawOf<T> x) : v(x) {}
  // Not by a sum with 0, which would make 0 of -0.
  INLINE explicit Vector(double x) : v(static_cast<T>(x) - RawOf<T>{}) {}
};
using F32 = Vector<float, std::int32_t>;
using F64 = Vector<double, std::int64_t>;

template <class I>
INLINE Mask<I> operator&(Mask<I> a, Mask<I> b) {
  return {a.v & b.v};
}
template <class I>
INLINE Mask<I> operator!(Mask<I> a) {
  return {~a.v};
}

#define PYREVGRAD_OPERATOR(OPERATOR, RESULT)                        \
  template <class T, class I>                                       \
  INLINE RESULT operator OPERATOR(Vector<T, I> a, Vector<T, I> b) { \
    return RESULT{a.v OPERATOR b.v};                                \
  }
#define VECTOR Vector<T, I>
PYREVGRAD_OPERATOR(+, VECTOR)
PYREVGRAD_OPERATOR(-, VECTOR)
PYREVGRAD_OPERATOR(*, VECTOR)
PYREVGRAD_OPERATOR(/, VECTOR)
PYREVGRAD_OPERATOR(<, Mask<I>)
PYREVGRAD_OPERATOR(<=, Mask<I>)
PYREVGRAD_OPERATOR(>, Mask<I>)
PYREVGRAD_OPERATOR(>=, Mask<I>)
PYREVGRAD_OPERATOR(==, Mask<I>)
PYREVGRAD_OPERATOR(!=, Mask<I>)
#undef PYREVGRAD_OPERATOR
#undef VECTOR

template <class T, class I>
INLINE Vector<T, I> operator-(Vector<T, I> a) {
  return Vector<T, I>(-a.v);
}
template <class T, class I>
INLINE Vector<T, I> select(Mask<I> m, Vector<T, I> a, Vector<T, I> b) {
  return Vector<T, I>(m.v ? a.v : b.v);
}
template <class T, class I>
INLINE Vector<T, I> minimum(Vector<T, I> a, Vector<T, I> b) {
  return select(a < b, a, b);
}
template <class T, class I>
INLINE Vector<T, I> maximum(Vector<T, I> a, Vector<T, I> b) {
  return select(a > b, a, b);
}
template <class T, class I>
INLINE Vector<T, I> with_sign_of(Vector<T, I> a, Vector<T, I> b) {
  using Bits = RawOf<I>;
  constexpr I others = ~(I(1) << (8 * sizeof(I) - 1));
  return Vector<T, I>((RawOf<T>)(((Bits)a.v & others) | ((Bits)b.v & ~others)));
}
template <class T, class I>
INLINE Vector<T, I> absolute(Vector<T, I> a) {
  return with_sign_of(a, Vector<T, I>(0));
}
// Numbers of this size and over are whole, and a sum with it is rounded to such a one.
template <class T>
constexpr double kWhole = sizeof(T) == 4 ? 0x1p23 : 0x1p52;
template <class T, class I>
INLINE Vector<T, I> round_even(Vector<T, I> a) {
  const Vector<T, I> size = absolute(a), whole(kWhole<T>);
  return select(size < whole, with_sign_of((size + whole) - whole, a), a);
}

// The C library's, a number at a time. Kept out of line: the bodies are small, 27 activations not.
template <class T, class I>
[[gnu::noinline]] Vector<T, I> each(Vector<T, I> a, T (*function)(T)) {
  for (int i = 0; i < Vector<T, I>::width; ++i) a.v[i] = function(a.v[i]);
  return a;
}
#define PYREVGRAD_EACH(NAME, V)                                      \
  INLINE V NAME(V a) {                                               \
    return each(a, +[](V::Scalar x) { return pyrevgrad::NAME(x); }); \
  }
PYREVGRAD_EACH(exponential, F64)
PYREVGRAD_EACH(exponential_minus_one, F64)
PYREVGRAD_EACH(log_one_plus, F64)
PYREVGRAD_EACH(hyperbolic_tangent, F64)
PYREVGRAD_EACH(error_function, F64)
#ifdef PYREVGRAD_C_LIBRARY
PYREVGRAD_EACH(exponential, F32)
PYREVGRAD_EACH(exponential_minus_one, F32)
PYREVGRAD_EACH(log_one_plus, F32)
PYREVGRAD_EACH(hyperbolic_tangent, F32)
#endif
#undef PYREVGRAD_EACH

INLINE F32 fused(F32 a, F32 b, F32 c) { return a * b + c; }
// In two steps, so that neither power leaves the range of normal numbers.
INLINE F32 power_of_two_times(F32 y, F32 n) {
  const auto whole = __builtin_convertvector(n.v, RawOf<std::int32_t>), half = whole >> 1;
  const auto power = [](auto e) { return F32((RawOf<float>)((e + 127) << 23)); };
  return (y * power(half)) * power(whole - half);
}

template <class I>
constexpr RawOf<I> kLanes = {1, 2};
template <>
constexpr RawOf<std::int32_t> kLanes<std::int32_t> = {1, 2, 4, 8};
template <class I>
INLINE unsigned bits_of(Mask<I> m) {
  const auto two = (RawOf<std::uint64_t>)(m.v & kLanes<I>);
  const std::uint64_t bits = two[0] | two[1];
  return static_cast<unsigned>(sizeof(I) == 8 ? bits : (bits | bits >> 32) & 15);
}
template <class T, class I>
INLINE Mask<I> mask_of(unsigned bits, Vector<T, I>) {
  return {(kLanes<I> & static_cast<I>(bits)) != 0};
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
INLINE void store(F32 x, float* p) { __builtin_memcpy(p, &x.v, sizeof(x.v)); }
INLINE void store(F64 x, double* p) { __builtin_memcpy(p, &x.v, sizeof(x.v)); }

// Sixteen-bit numbers, by their bits.
using Floats = RawOf<float>;
using Bits = RawOf<std::uint32_t>;
INLINE Floats widened(Bits h, const Bfloat16*) { return (Floats)(h << 16); }
INLINE Bits narrowed(Floats x, const Bfloat16*) {
  const Bits bits = (Bits)x, nan = (Bits)(x != x);
  const Bits sum = (bits + (bits >> 16 & 1) + 0x7fff) >> 16;
  return (sum & ~nan) | (nan & 0x7fc0);
}
// The exponent is 112 less, and is moved up by a product, which keeps what is no number; a
// subnormal one is what it and 0.5 together have over 0.5.
INLINE Floats widened(Bits h, const Half*) {
  const Bits sign = (h & 0x8000) << 16, size = h & 0x7fff, small = (Bits)(size < 0x400);
  const Bits normal = (Bits)((Floats)((size << 13) + (0xe0u << 23)) * 0x1p-112f);
  const Bits subnormal = (Bits)((Floats)(size | (126u << 23)) - 0.5f);
  return (Floats)(sign | (small & subnormal) | (~small & normal));
}
// Rounded by a sum with a power of two whose last place is the type's last place at this size.
INLINE Bits narrowed(Floats x, const Half*) {
  constexpr std::uint32_t least = 0x71u << 23;
  const Bits bits = (Bits)x, size = bits & 0x7fffffff, exponent = size & 0x7f800000;
  const Bits small = (Bits)(exponent < least), nan = (Bits)(size > 0x7f800000);
  const Bits place = (small & least) | (~small & exponent);
  // Four times the size, and infinity where the type has it.
  const Floats four_times = ((Floats)size * 0x1p112f) * 0x1p-110f;
  const Bits sum = (Bits)((Floats)(place + (15u << 23)) + four_times);
  const Bits made = (sum >> 13 & 0x7c00) + (sum & 0xfff);
  return (bits >> 16 & 0x8000) | (made & ~nan) | (nan & 0x7e00);
}

typedef std::uint16_t Stored __attribute__((vector_size(8)));
// Four of them with zeros above. Not by a conversion, which GCC 12 makes number by number.
INLINE Bits extended(const void* p) {
  using Shorts = RawOf<std::uint16_t>;
  std::uint64_t four;
  __builtin_memcpy(&four, p, sizeof(four));
  const Shorts numbers = (Shorts)RawOf<std::uint64_t>{four, 0}, zeros = {};
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  const Shorts first = zeros, second = numbers;
#else
  const Shorts first = numbers, second = zeros;
#endif
#ifdef __clang__
  return (Bits)__builtin_shufflevector(first, second, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return (Bits)__builtin_shuffle(first, second, Shorts{0, 8, 1, 9, 2, 10, 3, 11});
#endif
}
template <class T>
INLINE F32 load(const T* p) {
  return F32(widened(extended(p), p));
}
template <class T>
INLINE void store(F32 x, T* p) {
  const Stored raw = __builtin_convertvector(narrowed(x.v, p), Stored);
  __builtin_memcpy(p, &raw, sizeof(raw));
}

// Never called (its table says that it cannot): the loops name them.
template <int bytes>
INLINE void past_caches(const void* from, void* to) {
  __builtin_memcpy(to, from, bytes);
}
INLINE void end_of_stream() {}

}  // namespace pyrevgrad::portable
