// What one thread moves at a time: a share of 16 bytes, its values in the compute type, and the
// way between them. For host and device; imports the stored types.
//
// A group is eight consecutive elements in memory order, one mask byte. In half types it is one
// share, in float32 two and in float64 four: neighbouring threads take neighbouring shares, so that
// every access of a warp is one stretch of memory.
#pragma once

#include <cstring>

#include "../cpu/storage.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <stdexcept>
#endif

namespace pyrevgrad::cuda {

template <class T>
struct Computed {
  using V = float;
};
template <>
struct Computed<double> {
  using V = double;
};

constexpr int kGroup = 8;
template <class T>
constexpr int kLanes = 16 / static_cast<int>(sizeof(T));
template <class T>
constexpr int kShares = kGroup / kLanes<T>;

struct alignas(16) Share {
  std::uint32_t word[4];
};

#if !defined(__CUDACC__)
// For a simulated launch: how many of its stores took 16 bytes.
inline std::int64_t wide_stores = 0;
#endif

// One 16-byte access. The host's copy refuses what would be a misaligned address on the device.
PYREVGRAD_HD Share load_share(const void* from) {
#if defined(__CUDA_ARCH__)
  const uint4 words = *static_cast<const uint4*>(from);
  return {{words.x, words.y, words.z, words.w}};
#else
  Share share;
#if !defined(__CUDACC__)
  if (reinterpret_cast<std::uintptr_t>(from) % 16) throw std::logic_error("misaligned load");
#endif
  std::memcpy(&share, from, 16);
  return share;
#endif
}

PYREVGRAD_HD void store_share(const Share& share, void* to) {
#if defined(__CUDA_ARCH__)
  *static_cast<uint4*>(to) = make_uint4(share.word[0], share.word[1], share.word[2], share.word[3]);
#else
#if !defined(__CUDACC__)
  if (reinterpret_cast<std::uintptr_t>(to) % 16) throw std::logic_error("misaligned store");
  ++wide_stores;
#endif
  std::memcpy(to, &share, 16);
#endif
}

// The first `count` elements one by one, where the share is not whole or not aligned.
template <class T>
PYREVGRAD_HD Share load_elements(const T* from, int count) {
  T lanes[kLanes<T>] = {};
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) {
    if (i < count) lanes[i] = from[i];
  }
  Share share;
  memcpy(&share, lanes, 16);
  return share;
}

template <class T>
PYREVGRAD_HD void store_elements(const Share& share, T* to, int count) {
  T lanes[kLanes<T>];
  memcpy(lanes, &share, 16);
#pragma unroll
  for (int i = 0; i < kLanes<T>; ++i) {
    if (i < count) to[i] = lanes[i];
  }
}

PYREVGRAD_HD void widen(const Share& share, const float*, float (&v)[4]) { memcpy(v, &share, 16); }
PYREVGRAD_HD void widen(const Share& share, const double*, double (&v)[2]) {
  memcpy(v, &share, 16);
}
PYREVGRAD_HD void narrow(const float (&v)[4], const float*, Share& share) { memcpy(&share, v, 16); }
PYREVGRAD_HD void narrow(const double (&v)[2], const double*, Share& share) {
  memcpy(&share, v, 16);
}

PYREVGRAD_HD float as_float(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Two half-width numbers in a word, the first in its low half.
PYREVGRAD_HD void widen_word(std::uint32_t word, const Bfloat16*, float& low, float& high) {
  low = as_float(word << 16);
  high = as_float(word & 0xffff0000u);
}

#if defined(__CUDACC__)
PYREVGRAD_HD std::uint32_t narrow_word(float low, float high, const Bfloat16*) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  std::uint32_t word;
  memcpy(&word, &pair, 4);
  return word;
}
PYREVGRAD_HD void widen_word(std::uint32_t word, const Half*, float& low, float& high) {
  __half2 pair;
  memcpy(&pair, &word, 4);
  const float2 wide = __half22float2(pair);
  low = wide.x;
  high = wide.y;
}
PYREVGRAD_HD std::uint32_t narrow_word(float low, float high, const Half*) {
  const __half2 pair = __floats2half2_rn(low, high);
  std::uint32_t word;
  memcpy(&word, &pair, 4);
  return word;
}
#else
inline std::uint32_t narrow_word(float low, float high, const Bfloat16*) {
  using torch::headeronly::detail::round_to_nearest_even;
  return round_to_nearest_even(low) | std::uint32_t{round_to_nearest_even(high)} << 16;
}
inline void widen_word(std::uint32_t word, const Half*, float& low, float& high) {
  using torch::headeronly::detail::fp16_ieee_to_fp32_value;
  low = fp16_ieee_to_fp32_value(static_cast<std::uint16_t>(word));
  high = fp16_ieee_to_fp32_value(static_cast<std::uint16_t>(word >> 16));
}
inline std::uint32_t narrow_word(float low, float high, const Half*) {
  using torch::headeronly::detail::fp16_ieee_from_fp32_value;
  return fp16_ieee_from_fp32_value(low) | std::uint32_t{fp16_ieee_from_fp32_value(high)} << 16;
}
#endif

template <class T>
PYREVGRAD_HD void widen(const Share& share, const T*, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    widen_word(share.word[i], static_cast<const T*>(nullptr), v[2 * i], v[2 * i + 1]);
  }
}
template <class T>
PYREVGRAD_HD void narrow(const float (&v)[8], const T*, Share& share) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    share.word[i] = narrow_word(v[2 * i], v[2 * i + 1], static_cast<const T*>(nullptr));
  }
}

// A value after one rounding to the stored type, as a reader of memory would see it.
PYREVGRAD_HD float as_stored(float x, const float*) { return x; }
PYREVGRAD_HD double as_stored(double x, const double*) { return x; }
template <class T>
PYREVGRAD_HD float as_stored(float x, const T* type) {
  float low, high;
  widen_word(narrow_word(x, 0.0f, type), type, low, high);
  return low;
}

}  // namespace pyrevgrad::cuda
