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

// Run body(input, kept, output, mask) on whole vectors, and the rest through a copy of one vector:
// every element takes the same path wherever it lies.
template <class T, class Body>
INLINE void sweep(const Work& work, std::int64_t first, std::int64_t last, Body body) {
  constexpr int width = Computed<T>::V::width;
  const T* input = static_cast<const T*>(work.input);
  const T* kept = static_cast<const T*>(work.kept);
  T* output = static_cast<T*>(work.output);
  std::uint8_t* mask = work.mask;
  std::int64_t i = first;
  for (; i + width <= last; i += width) body(input + i, kept + i, output + i, mask + i / 8);
  const int rest = static_cast<int>(last - i);
  if (rest == 0) return;
  T inputs[width] = {}, keeps[width] = {}, outputs[width];
  std::uint8_t masks[width / 8] = {};
  const int bytes = (rest + 7) / 8;
  __builtin_memcpy(inputs, input + i, rest * sizeof(T));
  if (kept) __builtin_memcpy(keeps, kept + i, rest * sizeof(T));
  if (mask) __builtin_memcpy(masks, mask + i / 8, bytes);
  body(inputs, keeps, outputs, masks);
  __builtin_memcpy(output + i, outputs, rest * sizeof(T));
  if (mask) {
    if (rest % 8) masks[bytes - 1] &= static_cast<std::uint8_t>((1u << rest % 8) - 1);
    __builtin_memcpy(mask + i / 8, masks, bytes);
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
  sweep<T>(work, first, last, [&](const T* x_, const T*, T* y_, std::uint8_t* mask) __attribute__((always_inline)) {
    const V x = load(x_);
    if constexpr (bit == MaskBit::kOwn) store_mask(A::passes(x, p), mask);
    if constexpr (bit == MaskBit::kPositive) store_mask(positive(x), mask);
    if constexpr (bit == MaskBit::kInterval) store_mask(inside(x, low, high), mask);
    store(A::value(x, p), y_);
  });
}

template <class T, bool plain>
void backward_nothing(const Work& work, std::int64_t first, std::int64_t last) {
  using V = typename Computed<T>::V;
  const Rule<V> rule = rule_of<V>(work.program);
  const V slope(work.program.slope_high), factor = rule.scale * slope;
  const bool blocked = work.program.slope_high == 0;
  sweep<T>(work, first, last, [&](const T* g_, const T*, T* gx_, std::uint8_t*) __attribute__((always_inline)) {
    if constexpr (plain) {
      store(blocked ? V(0) : factor * load(g_), gx_);
    } else {
      const auto pass = blocked ? !all<V>() : all<V>();
      store(gated(load(g_), slope, V(0), pass, rule), gx_);
    }
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
  sweep<T>(work, first, last, [&](const T* g_, const T*, T* gx_, std::uint8_t* mask) __attribute__((always_inline)) {
    const V g = load(g_);
    typename V::Mask pass;
    load_mask(mask, pass);
    if constexpr (variant == MaskVariant::kGuided) {
      store(select(pass & !(g <= V(0)), scaled_high * g, V(0)), gx_);
    } else if constexpr (variant == MaskVariant::kPlain) {
      const V product = select(pass, scaled_high, scaled_low) * g;
      store(low_blocks ? select(pass, product, V(0)) : product, gx_);
    } else {
      store(gated(g, select(pass, high, low), V(0), low_blocks ? pass : all<V>(), rule), gx_);
    }
  });
}

template <class A, class T, bool plain>
void backward_output(const Work& work, std::int64_t first, std::int64_t last) {
  using V = typename Computed<T>::V;
  const auto p = parameters<V>(work.program);
  const Rule<V> rule = rule_of<V>(work.program);
  const V high(work.program.slope_high), low(work.program.slope_low);
  const bool identity = work.program.identity_slope, low_blocks = work.program.slope_low == 0;
  sweep<T>(work, first, last, [&](const T* g_, const T* y_, T* gx_, std::uint8_t*) __attribute__((always_inline)) {
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
  sweep<T>(work, first, last, [&](const T* g_, const T* x_, T* gx_, std::uint8_t*) __attribute__((always_inline)) {
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
