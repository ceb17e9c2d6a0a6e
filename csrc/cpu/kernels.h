// The loops, over whatever vector type the including file chose; one table of them per instruction
// set. The including file defines PYREVGRAD_ISA, the namespace of its vector type.
//
// Bytes per element, at least: forward 2·size (+ 1/8 with a mask); backward 2·size with nothing
// kept, 2·size + 1/8 with a mask, 3·size with the output or the input.
#pragma once

#include "storage.h"

namespace pyrevgrad::PYREVGRAD_ISA {
namespace {

template <class T>
struct Computed {
  using V = F32;
};
template <>
struct Computed<double> {
  using V = F64;
};

enum class MaskUse { kNone, kRead, kWrite };

// out = body(input, kept, output, bits in) over whole vectors, a block of 64 elements at a time so
// that its mask is one load or store; what is left goes through a copy of one vector, so that every
// element takes the same path wherever it lies.
//
// Eight copies of a cheap body hide its latency; of a dear one they only lengthen the build.
enum class Cost { kCheap, kDear };

template <class T, MaskUse use, Cost cost, class Body>
INLINE void sweep(const Work& work, std::int64_t first, std::int64_t last, Body body) {
  constexpr int width = Computed<T>::V::width;
  constexpr std::uint64_t lanes = (std::uint64_t(1) << width) - 1;
  const T* input = static_cast<const T*>(work.input);
  const T* kept = static_cast<const T*>(work.kept);
  T* output = static_cast<T*>(work.output);
  std::uint8_t* mask = work.mask;
  std::int64_t i = first;
  for (; i + kBlock <= last; i += kBlock) {
    std::uint64_t in = 0, out = 0;
    if constexpr (use == MaskUse::kRead) __builtin_memcpy(&in, mask + i / 8, 8);
    const auto one = [&](int j) __attribute__((always_inline)) {
      const unsigned bits = static_cast<unsigned>(in >> j & lanes);
      const T* kept_here = kept == nullptr ? nullptr : kept + i + j;
      out |= static_cast<std::uint64_t>(body(input + i + j, kept_here, output + i + j, bits)) << j;
    };
    if constexpr (cost == Cost::kCheap && PYREVGRAD_UNROLLS) {
#pragma GCC unroll 8
      for (int j = 0; j < kBlock; j += width) one(j);
    } else {
#pragma GCC unroll 1
      for (int j = 0; j < kBlock; j += width) one(j);
    }
    if constexpr (use == MaskUse::kWrite) __builtin_memcpy(mask + i / 8, &out, 8);
  }
  for (; i < last; i += width) {
    const int rest = last - i < width ? static_cast<int>(last - i) : width;
    const int bytes = (rest + 7) / 8;
    T inputs[width] = {}, keeps[width] = {}, outputs[width];
    unsigned bits = 0;
    __builtin_memcpy(inputs, input + i, rest * sizeof(T));
    if (kept) __builtin_memcpy(keeps, kept + i, rest * sizeof(T));
    if constexpr (use == MaskUse::kRead) __builtin_memcpy(&bits, mask + i / 8, bytes);
    bits = body(inputs, keeps, outputs, bits) & ((1u << rest) - 1);
    if constexpr (use == MaskUse::kWrite) __builtin_memcpy(mask + i / 8, &bits, bytes);
    __builtin_memcpy(output + i, outputs, rest * sizeof(T));
  }
}

template <class V>
INLINE Parameters<V> parameters(const Program& program) {
  return {V(program.a), V(program.b)};
}

template <class V>
INLINE Rule<V> rule_of(const Program& p) {
  return {V(p.scale), V(p.low),        V(p.high), V(p.threshold),
          V(p.clip),  p.gradient_gate, p.clipped};
}

// The vector after one rounding to the stored type, as a reader of memory would see it.
INLINE F64 as_stored(F64 x, const double*) { return x; }
INLINE F32 as_stored(F32 x, const float*) { return x; }
template <class T>
INLINE F32 as_stored(F32 x, const T*) {
  T stored[F32::width];
  store(x, stored);
  return load(stored);
}

template <class V>
INLINE typename V::Mask all() {
  return V(0) == V(0);
}

template <class A, class T, MaskBit bit>
void forward(const Work& work, std::int64_t first, std::int64_t last) {
  using V = typename Computed<T>::V;
  const auto p = parameters<V>(work.program);
  [[maybe_unused]] const V low(work.program.low), high(work.program.high);
  constexpr MaskUse use = bit == MaskBit::kNone ? MaskUse::kNone : MaskUse::kWrite;
  constexpr Cost cost =
      A::kind == Kind::kConstant || A::kind == Kind::kMask ? Cost::kCheap : Cost::kDear;
  sweep<T, use, cost>(work, first, last, [&](const T* x_, const T*, T* y_, unsigned) __attribute__((always_inline)) {
    const V x = load(x_);
    store(A::value(x, p), y_);
    if constexpr (bit == MaskBit::kOwn) return bits_of(A::passes(x, p));
    if constexpr (bit == MaskBit::kPositive) return bits_of(positive(x));
    if constexpr (bit == MaskBit::kInterval) return bits_of(inside(x, low, high));
    return 0u;
  });
}

template <class T, bool plain>
void backward_nothing(const Work& work, std::int64_t first, std::int64_t last) {
  using V = typename Computed<T>::V;
  const Rule<V> rule = rule_of<V>(work.program);
  const V slope(work.program.slope_high), factor = rule.scale * slope;
  const bool blocked = work.program.slope_high == 0;
  sweep<T, MaskUse::kNone, plain ? Cost::kCheap : Cost::kDear>(work, first, last, [&](const T* g_, const T*, T* gx_, unsigned) __attribute__((always_inline)) {
    if constexpr (plain) {
      store(blocked ? V(0) : factor * load(g_), gx_);
    } else {
      const auto pass = blocked ? !all<V>() : all<V>();
      store(gated(load(g_), slope, V(0), pass, rule), gx_);
    }
    return 0u;
  });
}

enum class MaskVariant { kGeneral, kPlain, kGuided };

template <class T, MaskVariant variant>
void backward_mask(const Work& work, std::int64_t first, std::int64_t last) {
  using V = typename Computed<T>::V;
  const Rule<V> rule = rule_of<V>(work.program);
  const V high(work.program.slope_high), low(work.program.slope_low);
  const V scaled_high = rule.scale * high, scaled_low = rule.scale * low;
  // A slope of exactly 0 blocks: select, so that inf and NaN become +0 too.
  const bool low_blocks = work.program.slope_low == 0;
  constexpr Cost cost = variant == MaskVariant::kGeneral ? Cost::kDear : Cost::kCheap;
  sweep<T, MaskUse::kRead, cost>(work, first, last, [&](const T* g_, const T*, T* gx_, unsigned bits) __attribute__((always_inline)) {
    const V g = load(g_);
    const auto pass = mask_of(bits, g);
    if constexpr (variant == MaskVariant::kGuided) {
      store(select(pass & !(g <= V(0)), scaled_high * g, V(0)), gx_);
    } else if constexpr (variant == MaskVariant::kPlain) {
      const V product = select(pass, scaled_high, scaled_low) * g;
      store(low_blocks ? select(pass, product, V(0)) : product, gx_);
    } else {
      store(gated(g, select(pass, high, low), V(0), low_blocks ? pass : all<V>(), rule), gx_);
    }
    return 0u;
  });
}

template <class A, class T, bool plain>
void backward_output(const Work& work, std::int64_t first, std::int64_t last) {
  using V = typename Computed<T>::V;
  const auto p = parameters<V>(work.program);
  const Rule<V> rule = rule_of<V>(work.program);
  const V high(work.program.slope_high), low(work.program.slope_low);
  const bool identity = work.program.identity_slope, low_blocks = work.program.slope_low == 0;
  sweep<T, MaskUse::kNone, Cost::kDear>(work, first, last, [&](const T* g_, const T* y_, T* gx_, unsigned) __attribute__((always_inline)) {
    const V g = load(g_), y = load(y_);
    V slope = high;
    auto pass = all<V>();
    if constexpr (A::kind == Kind::kOutput) {
      slope = A::slope_of_output(y, p);
    } else if constexpr (A::kind == Kind::kMask && A::output_gives_slope) {
      const auto own = A::passes_output(y, p);
      slope = select(own, high, low);
      if (low_blocks && !identity) pass = own;
    }
    if constexpr (plain) {
      store(select(pass, (rule.scale * slope) * g, V(0)), gx_);
    } else {
      store(gated(g, identity ? V(1) : slope, y, pass, rule), gx_);
    }
    return 0u;
  });
}

template <class A, class T, bool plain>
void backward_input(const Work& work, std::int64_t first, std::int64_t last) {
  using V = typename Computed<T>::V;
  const auto p = parameters<V>(work.program);
  const Rule<V> rule = rule_of<V>(work.program);
  const V high(work.program.slope_high), low(work.program.slope_low);
  const bool identity = work.program.identity_slope, low_blocks = work.program.slope_low == 0;
  const MaskBit bit = work.program.mask_bit;
  const bool needs_value = rule.gradient_gate == GradientGate::kOutput;
  sweep<T, MaskUse::kNone, Cost::kDear>(work, first, last, [&](const T* g_, const T* x_, T* gx_, unsigned) __attribute__((always_inline)) {
    const V g = load(g_), x = load(x_);
    V slope = high;
    auto pass = all<V>();
    if constexpr (A::kind == Kind::kInput || A::kind == Kind::kOutput) {
      slope = A::slope(x, p);
      if constexpr (A::has_flat) {
        if (!identity) pass = !A::flat(x, p);
      }
    } else if constexpr (A::kind == Kind::kMask) {
      const auto own = A::passes(x, p);
      slope = select(own, high, low);
      if (low_blocks && !identity) pass = own;
    }
    if constexpr (plain) {
      store(select(pass, (rule.scale * slope) * g, V(0)), gx_);
    } else {
      if (bit == MaskBit::kPositive) pass = pass & positive(x);
      if (bit == MaskBit::kInterval) pass = pass & inside(x, rule.low, rule.high);
      const V y = needs_value ? as_stored(A::value(x, p), g_) : V(0);
      store(gated(g, identity ? V(1) : slope, y, pass, rule), gx_);
    }
    return 0u;
  });
}

template <class A, class T, MaskBit bit>
constexpr Kernel forward_or_none() {
  if constexpr (bit == MaskBit::kOwn && A::kind != Kind::kMask) {
    return nullptr;
  } else {
    return forward<A, T, bit>;
  }
}

#define PYREVGRAD_BY_DTYPE(ROW) {ROW(float), ROW(double), ROW(Bfloat16), ROW(Half)}

}  // namespace
}  // namespace pyrevgrad::PYREVGRAD_ISA

namespace pyrevgrad {

#define FORWARD_OF(A, T)                                                                  \
  {PYREVGRAD_ISA::forward_or_none<A, T, MaskBit::kNone>(),                                \
   PYREVGRAD_ISA::forward_or_none<A, T, MaskBit::kOwn>(),                                 \
   PYREVGRAD_ISA::forward_or_none<A, T, MaskBit::kPositive>(),                            \
   PYREVGRAD_ISA::forward_or_none<A, T, MaskBit::kInterval>()}
#define FORWARD_ROW(A, NAME) \
  {FORWARD_OF(A, float), FORWARD_OF(A, double), FORWARD_OF(A, Bfloat16), FORWARD_OF(A, Half)},
#define PAIR_OF(KERNEL, A, T) \
  {PYREVGRAD_ISA::KERNEL<A, T, false>, PYREVGRAD_ISA::KERNEL<A, T, true>}
#define PAIR_ROW(KERNEL, A)                                                       \
  {PAIR_OF(KERNEL, A, float), PAIR_OF(KERNEL, A, double), PAIR_OF(KERNEL, A, Bfloat16), \
   PAIR_OF(KERNEL, A, Half)},
#define OUTPUT_ROW(A, NAME) PAIR_ROW(backward_output, A)
#define INPUT_ROW(A, NAME) PAIR_ROW(backward_input, A)
#define NOTHING_OF(T) \
  {PYREVGRAD_ISA::backward_nothing<T, false>, PYREVGRAD_ISA::backward_nothing<T, true>}
#define MASK_OF(T)                                                                     \
  {PYREVGRAD_ISA::backward_mask<T, PYREVGRAD_ISA::MaskVariant::kGeneral>,              \
   PYREVGRAD_ISA::backward_mask<T, PYREVGRAD_ISA::MaskVariant::kPlain>,                \
   PYREVGRAD_ISA::backward_mask<T, PYREVGRAD_ISA::MaskVariant::kGuided>}

#define PYREVGRAD_STRING_(x) #x
#define PYREVGRAD_STRING(x) PYREVGRAD_STRING_(x)

extern const KernelTable PYREVGRAD_TABLE;
const KernelTable PYREVGRAD_TABLE = {
    PYREVGRAD_STRING(PYREVGRAD_ISA),
    {PYREVGRAD_ACTIVATIONS(FORWARD_ROW)},
    PYREVGRAD_BY_DTYPE(NOTHING_OF),
    PYREVGRAD_BY_DTYPE(MASK_OF),
    {PYREVGRAD_ACTIVATIONS(OUTPUT_ROW)},
    {PYREVGRAD_ACTIVATIONS(INPUT_ROW)},
};

}  // namespace pyrevgrad
