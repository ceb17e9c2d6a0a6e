// The stored types and the interface between the per-instruction-set kernels and the library.
// Plain data and pointers only: nothing here may be emitted as a shared inline function.
#pragma once

#include <cstdint>

#include "../rule.h"

namespace pyrevgrad {

struct Bfloat16 {
  std::uint16_t bits;
};
struct Half {
  std::uint16_t bits;
};

enum DType : int { kFloat32, kFloat64, kBfloat16, kFloat16, kDTypes };

// One elementwise call. `input` is x forward and g backward; `output` is y or gx.
struct Work {
  Program program;
  const void* input;
  const void* kept;
  void* output;
  std::uint8_t* mask;
  std::int64_t size;
};

// How a call's output is written: whether its lines are asked for ahead, and whether they are
// written past the caches, which takes an output of whole lines.
struct Writing {
  bool asks_ahead, streams;
};

// Elements [first, last) of a call; `first` is a multiple of kBlock.
using Kernel = void (*)(const Work&, Writing, std::int64_t first, std::int64_t last);
constexpr std::int64_t kBlock = 64;

#define PYREVGRAD_COUNT(functor, name) +1
constexpr int kActivations = 0 PYREVGRAD_ACTIVATIONS(PYREVGRAD_COUNT);
#undef PYREVGRAD_COUNT

// The kernels for one dtype.
struct Kernels {
  Kernel forward[kActivations][4];  // by MaskBit
  Kernel backward_nothing[4];       // any gates, none, low slope 0, g <= 0 too
  Kernel backward_mask[4];
  Kernel backward_output[kActivations][2];  // general, plain
  Kernel backward_input[kActivations][2];
};

// Those of one instruction set.
struct KernelTable {
  const char* capability;
  bool streams;  // whether it can write past the caches
  const Kernels* of[kDTypes];
};

extern const KernelTable kernels_portable;
#if defined(__x86_64__)
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx512;
extern const Kernels kernels_avx512_bf16;  // for bfloat16
#endif

}  // namespace pyrevgrad
