// Sixteen-bit numbers compared and chosen as they are stored, never widened: what kernels that only
// choose need. This room knows constants; the vector types add the instructions.
//
// A number's key is its bits as a signed integer, those below the sign turned where it is set: keys
// ascend as the numbers do, -0 before +0.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "storage.h"

namespace pyrevgrad::PYREVGRAD_ISA {
namespace {

// The largest magnitude that is a number: infinity.
template <class T>
constexpr std::int16_t kInfinity = 0x7f80;
template <>
constexpr std::int16_t kInfinity<Half> = 0x7c00;

// As signed integers the negative numbers come first, from -0 to minus infinity, then their NaN.
template <class T>
constexpr std::int16_t kMinusInfinity = kInfinity<T> - 0x8000;

// Whether a comparison is with zero in every program, not in this one.
template <class V>
inline __attribute__((always_inline)) bool is_known_zero(const V& constant) {
  return __builtin_constant_p(constant.zero) && constant.zero;
}

inline std::int16_t key_of(std::uint16_t bits) {
  return static_cast<std::int16_t>(bits >> 15 ? bits ^ 0x7fff : bits);
}

// A number as the type nearest to it, and where it stands among those of the type.
struct Constant {
  std::int16_t nearest;
  std::int16_t least;  // the key of the least number of the type that is not below it
  std::int16_t most;   // the key of the greatest that is not above it
};

inline std::uint16_t nearest_of(float x, const Bfloat16*) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline std::uint16_t nearest_of(float x, const Half*) {
  return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
}
inline std::uint16_t toward_zero(float x, const Bfloat16*) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<std::uint16_t>(bits >> 16);
}
inline std::uint16_t toward_zero(float x, const Half*) { return _cvtss_sh(x, _MM_FROUND_TO_ZERO); }
inline float widened(std::uint16_t bits, const Bfloat16*) {
  const std::uint32_t wide = std::uint32_t(bits) << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}
inline float widened(std::uint16_t bits, const Half*) { return _cvtsh_ss(bits); }

// `number` is not NaN.
template <class T>
Constant constant_of(double number) {
  constexpr const T* type = nullptr;
  const float x = static_cast<float>(number);
  const auto nearest = static_cast<std::int16_t>(nearest_of(x, type));
  if (x == 0) return {nearest, -1, 0};
  const std::uint16_t inner = toward_zero(x, type);
  const std::uint16_t outer = inner + (widened(inner, type) != x);
  if (x < 0) return {nearest, key_of(inner), key_of(outer)};
  return {nearest, key_of(outer), key_of(inner)};
}

}  // namespace
}  // namespace pyrevgrad::PYREVGRAD_ISA
