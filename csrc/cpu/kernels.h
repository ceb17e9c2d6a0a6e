// The loops, over whatever vector type the including file chose. The including file defines
// PYREVGRAD_ISA, the namespace of its vector type, and makes a table of them.
//
// Bytes per element, at least: forward 2·size (+ 1/8 with a mask); backward 2·size with nothing
// kept, 2·size + 1/8 with a mask, 3·size with the output or the input.
#pragma once

#include <type_traits>

#include "storage.h"

namespace pyrevgrad::PYREVGRAD_ISA {
namespace {

#define INLINE_LAMBDA __attribute__((always_inline))

template <class T>
struct Computed {
  using V = F32;
};
template <>
struct Computed<double> {
  using V = F64;
};

// What kernels that choose among x, constants and products run on: sixteen-bit numbers as they are
// stored, where the instruction set has a type for them.
template <class T>
struct Chosen : Computed<T> {};
#ifdef PYREVGRAD_SIXTEEN
template <>
struct Chosen<Bfloat16> {
  using V = Sixteen<Bfloat16>;
};
template <>
struct Chosen<Half> {
  using V = Sixteen<Half>;
};
#endif

enum class MaskUse { kNone, kRead, kWrite };

// Whether a block is taken as elements at even and at odd places.
template <class T>
constexpr bool alternates = false;
template <>
constexpr bool alternates<Bfloat16> = true;

// The bits at even places of a block's mask, and back. By shifts where BMI2 is not asked for: it is
// microcode on the first machines that have AVX2.
constexpr std::uint64_t kEvenPlaces = 0x5555555555555555;
INLINE std::uint64_t even_bits(std::uint64_t bits) {
#ifdef __BMI2__
  return _pext_u64(bits, kEvenPlaces);
#else
  bits &= kEvenPlaces;
  bits = (bits | bits >> 1) & 0x3333333333333333;
  bits = (bits | bits >> 2) & 0x0f0f0f0f0f0f0f0f;
  bits = (bits | bits >> 4) & 0x00ff00ff00ff00ff;
  bits = (bits | bits >> 8) & 0x0000ffff0000ffff;
  return (bits | bits >> 16) & 0xffffffff;
#endif
}
INLINE std::uint64_t to_even_places(std::uint64_t bits) {
#ifdef __BMI2__
  return _pdep_u64(bits, kEvenPlaces);
#else
  bits = (bits | bits << 16) & 0x0000ffff0000ffff;
  bits = (bits | bits << 8) & 0x00ff00ff00ff00ff;
  bits = (bits | bits << 4) & 0x0f0f0f0f0f0f0f0f;
  bits = (bits | bits << 2) & 0x3333333333333333;
  return (bits | bits << 1) & kEvenPlaces;
#endif
}

// Vectors of numbers as they are stored.
template <class V>
constexpr bool stays_stored = false;
#ifdef PYREVGRAD_SIXTEEN
template <class T>
constexpr bool stays_stored<Sixteen<T>> = true;
#endif

template <class V, class T>
INLINE V fetched(const T* p) {
  if constexpr (stays_stored<V>) {
    return V::from(p);
  } else {
    return load(p);
  }
}

// As store, past the caches, to a multiple of the vector's bytes.
template <class V, class T>
INLINE void stream(const V& x, T* p) {
  alignas(64) T one[V::width];
  store(x, one);
  past_caches<sizeof(one)>(one, p);
}

// out = body(input, kept, bits in, bits out) over whole vectors, a block of 64 elements at a time
// so that its mask is one load or store; what is left goes through a copy of one vector, so that
// every element takes the same path wherever it lies.
//
// A cheap body runs on the whole block at once: every load before the first store, since a load
// whose address agrees with an earlier store's in the last 12 bits waits for it, and fresh outputs
// lie like that beside their inputs. Eight copies of a dear body would only lengthen the build.
enum class Cost { kCheap, kDear };

// Where lines of the output are asked for, this many bytes ahead.
constexpr std::int64_t kAhead = 2048, kLine = 64;

template <class V, class T, bool reads_kept, MaskUse use, Cost cost, class Body>
INLINE void sweep(const Work& work, Writing how, std::int64_t first, std::int64_t last, Body body) {
  constexpr int width = V::width, count = kBlock / width;
  constexpr std::uint64_t lanes = (std::uint64_t(1) << width) - 1;
  const T* input = static_cast<const T*>(work.input);
  const T* kept = static_cast<const T*>(work.kept);
  T* output = static_cast<T*>(work.output);
  std::uint8_t* mask = work.mask;
  const auto run = [&](V x, V k, int j, std::uint64_t in, std::uint64_t& out) INLINE_LAMBDA {
    unsigned bits = 0;
    const V y = body(x, k, static_cast<unsigned>(in >> j & lanes), bits);
    out |= static_cast<std::uint64_t>(bits) << j;
    return y;
  };
  const auto put = [how](const auto& y, T* p)
                       INLINE_LAMBDA { how.streams ? stream(y, p) : store(y, p); };
  std::int64_t i = first;
  for (; i + kBlock <= last; i += kBlock) {
    std::uint64_t in = 0, out = 0;
    if constexpr (use == MaskUse::kRead) __builtin_memcpy(&in, mask + i / 8, 8);
    if (how.asks_ahead) {
      const char* line = reinterpret_cast<const char*>(output + i) + kAhead;
#pragma GCC unroll 8
      for (std::int64_t j = 0; j < kBlock * std::int64_t(sizeof(T)); j += kLine) {
        __builtin_prefetch(line + j, 1);
      }
    }
    if constexpr (cost == Cost::kDear && PYREVGRAD_UNROLLS && alternates<T>) {
      std::uint64_t ins[2] = {}, outs[2] = {};
      if constexpr (use == MaskUse::kRead) ins[0] = even_bits(in), ins[1] = even_bits(in >> 1);
#pragma GCC unroll 1
      for (int j = 0; j < kBlock; j += 2 * width) {
        auto a = load_alternate(input + i + j), b = reads_kept ? load_alternate(kept + i + j) : a;
        V x[2] = {a.even, a.odd}, k[2] = {b.even, b.odd};
#pragma GCC unroll 1
        for (int h = 0; h < 2; ++h) x[h] = run(x[h], k[h], j / 2, ins[h], outs[h]);
        a.even = x[0], a.odd = x[1];
        put(a, output + i + j);
      }
      if constexpr (use == MaskUse::kWrite) {
        out = to_even_places(outs[0]) | to_even_places(outs[1]) << 1;
      }
    } else if constexpr (cost == Cost::kCheap && PYREVGRAD_UNROLLS) {
      V x[count];
#pragma GCC unroll 8
      for (int j = 0; j < count; ++j) x[j] = fetched<V>(input + i + j * width);
#pragma GCC unroll 8
      for (int j = 0; j < count; ++j) x[j] = run(x[j], x[j], j * width, in, out);
      if (how.streams) {
#pragma GCC unroll 8
        for (int j = 0; j < count; ++j) stream(x[j], output + i + j * width);
      } else {
#pragma GCC unroll 8
        for (int j = 0; j < count; ++j) store(x[j], output + i + j * width);
      }
    } else {
#pragma GCC unroll 1
      for (int j = 0; j < kBlock; j += width) {
        const V x = fetched<V>(input + i + j), k = reads_kept ? fetched<V>(kept + i + j) : x;
        put(run(x, k, j, in, out), output + i + j);
      }
    }
    if constexpr (use == MaskUse::kWrite) __builtin_memcpy(mask + i / 8, &out, 8);
  }
  if (how.streams) end_of_stream();
  // A mask's byte at least.
  constexpr int step = width < 8 ? 8 : width;
  for (; i < last; i += step) {
    const int rest = last - i < step ? static_cast<int>(last - i) : step;
    const int bytes = (rest + 7) / 8;
    T inputs[step] = {}, keeps[step] = {};
    std::uint64_t in = 0, out = 0;
    __builtin_memcpy(inputs, input + i, rest * sizeof(T));
    if constexpr (reads_kept) __builtin_memcpy(keeps, kept + i, rest * sizeof(T));
    if constexpr (use == MaskUse::kRead) __builtin_memcpy(&in, mask + i / 8, bytes);
    for (int j = 0; j < step; j += width) {
      store(run(fetched<V>(inputs + j), fetched<V>(keeps + j), j, in, out), inputs + j);
    }
    out &= (std::uint64_t(1) << rest) - 1;
    if constexpr (use == MaskUse::kWrite) __builtin_memcpy(mask + i / 8, &out, bytes);
    __builtin_memcpy(output + i, inputs, rest * sizeof(T));
  }
}

template <class V>
INLINE Parameters<V> parameters(const Program& program) {
  return {V(program.a), V(program.b)};
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

// Not where float16 is multiplied: it is converted for that anyway.
template <class A, class T>
constexpr bool compares_stored = A::chooses && !(A::scales && std::is_same_v<T, Half>);

template <class A, class T, MaskBit bit>
void forward(const Work& work, Writing how, std::int64_t first, std::int64_t last) {
  using V = typename std::conditional_t<compares_stored<A, T>, Chosen<T>, Computed<T>>::V;
  const auto p = parameters<V>(work.program);
  [[maybe_unused]] const V low(work.program.low), high(work.program.high);
  constexpr MaskUse use = bit == MaskBit::kNone ? MaskUse::kNone : MaskUse::kWrite;
  constexpr bool selects = A::kind == Kind::kConstant || A::kind == Kind::kMask;
  constexpr Cost cost = selects && (A::chooses || !alternates<T>) ? Cost::kCheap : Cost::kDear;
  const auto body = [&](V x, V, unsigned, unsigned& bits) INLINE_LAMBDA {
    if constexpr (bit == MaskBit::kOwn) bits = bits_of(A::passes(x, p));
    if constexpr (bit == MaskBit::kPositive) bits = bits_of(positive(x));
    if constexpr (bit == MaskBit::kInterval) bits = bits_of(inside(x, low, high));
    return A::value(x, p);
  };
  sweep<V, T, false, use, cost>(work, how, first, last, body);
}

// The gates that a backward by g alone or by a mask may meet: any, none (its low slope aside), none
// and a low slope of 0, or g <= 0 alone beside that.
enum class Gates { kAny, kNone, kLowBlocks, kGradient };
template <class T, Gates gates>
using ForGates = typename std::conditional_t<gates == Gates::kAny, Computed<T>, Chosen<T>>::V;
template <Gates gates>
constexpr Cost cost_of = gates == Gates::kAny ? Cost::kDear : Cost::kCheap;

// The product of two numbers of the program, as a vector's arithmetic rounds it.
template <class V>
INLINE double product(double a, double b) {
  using S = typename V::Scalar;
  return static_cast<double>(static_cast<S>(a) * static_cast<S>(b));
}

// The whole rule. Its flags are branches here, taken alike by every vector.
template <class V, class M>
INLINE V gated(V g, V slope, V y, M pass, const Program& program, const Rule<V>& rule) {
  if (program.clipped) g = clamp_symmetric(g, rule.clip);
  switch (program.gradient_gate) {
    case GradientGate::kNone:
      break;
    case GradientGate::kGradient:
      pass = pass & gate(g, V(1), rule);
      break;
    case GradientGate::kProduct:
      pass = pass & gate(g, slope, rule);
      break;
    case GradientGate::kOutput:
      pass = pass & gate(g, y, rule);
      break;
  }
  return sent(g, slope, pass, rule);
}

// high·x where the mask holds, low·x elsewhere.
template <class M, class V>
INLINE V times(M mask, V high, V low, V x) {
  return select(mask, high, low) * x;
}

// run(what makes x of factor·x). A factor of 1 or -1 costs sixteen-bit numbers no product, which
// would have to be rounded again.
template <class V, class Run>
INLINE void with_factor(double scale, double slope, Run run) {
  const double factor = product<V>(scale, slope);
  if constexpr (stays_stored<V>) {
    if (factor == 1) return run([](V x) INLINE_LAMBDA { return x; });
    if (factor == -1) return run([](V x) INLINE_LAMBDA { return -x; });
  }
  const V factors(factor);
  run([factors](V x) INLINE_LAMBDA { return factors * x; });
}

template <class T, Gates gates>
void backward_nothing(const Work& work, Writing how, std::int64_t first, std::int64_t last) {
  using V = ForGates<T, gates>;
  const Program& program = work.program;
  const auto pass = program.slope_high == 0 ? !all<V>() : all<V>();
  const auto swept = [&](auto body) INLINE_LAMBDA {
    sweep<V, T, false, MaskUse::kNone, cost_of<gates>>(work, how, first, last, body);
  };
  if constexpr (gates == Gates::kAny) {
    const Rule<V> rule = rule_of<V>(program);
    const V slope(program.slope_high);
    swept([&](V g, V, unsigned, unsigned&)
              INLINE_LAMBDA { return gated(g, slope, V(0), pass, program, rule); });
  } else {
    with_factor<V>(program.scale, program.slope_high, [&](auto scaled) INLINE_LAMBDA {
      swept([&](V g, V, unsigned, unsigned&) INLINE_LAMBDA {
        if constexpr (gates == Gates::kGradient) {
          return select(pass & !(g <= V(0)), scaled(g), V(0));
        } else {
          return select(pass, scaled(g), V(0));
        }
      });
    });
  }
}

template <class T, Gates gates>
void backward_mask(const Work& work, Writing how, std::int64_t first, std::int64_t last) {
  using V = ForGates<T, gates>;
  const Program& program = work.program;
  // A slope of exactly 0 blocks: select, so that inf and NaN become +0 too.
  [[maybe_unused]] const bool low_blocks = program.slope_low == 0;
  const auto swept = [&](auto body) INLINE_LAMBDA {
    sweep<V, T, false, MaskUse::kRead, cost_of<gates>>(work, how, first, last, body);
  };
  if constexpr (gates == Gates::kAny) {
    const Rule<V> rule = rule_of<V>(program);
    const V high(program.slope_high), low(program.slope_low);
    swept([&](V g, V, unsigned bits, unsigned&) INLINE_LAMBDA {
      const auto pass = mask_of(bits, g);
      const V slope = select(pass, high, low);
      return gated(g, slope, V(0), low_blocks ? pass : all<V>(), program, rule);
    });
  } else if constexpr (gates == Gates::kNone) {
    const V high(product<V>(program.scale, program.slope_high));
    const V low(product<V>(program.scale, program.slope_low));
    swept([&](V g, V, unsigned bits, unsigned&)
              INLINE_LAMBDA { return times(mask_of(bits, g), high, low, g); });
  } else {
    with_factor<V>(program.scale, program.slope_high, [&](auto scaled) INLINE_LAMBDA {
      swept([&](V g, V, unsigned bits, unsigned&) INLINE_LAMBDA {
        auto pass = mask_of(bits, g);
        if constexpr (gates == Gates::kGradient) pass = pass & !(g <= V(0));
        return select(pass, scaled(g), V(0));
      });
    });
  }
}

// What kept output and kept input share once the slope is known.
template <bool plain, class V, class M>
INLINE V finished(V g, V slope, V y, M pass, const Program& program, const Rule<V>& rule) {
  if constexpr (plain) return sent(g, slope, pass, rule);
  return gated(g, program.identity_slope ? V(1) : slope, y, pass, program, rule);
}

template <class A, class T, bool plain>
void backward_output(const Work& work, Writing how, std::int64_t first, std::int64_t last) {
  using V = typename Computed<T>::V;
  const auto p = parameters<V>(work.program);
  const Rule<V> rule = rule_of<V>(work.program);
  const V high(work.program.slope_high), low(work.program.slope_low);
  const bool identity = work.program.identity_slope, low_blocks = work.program.slope_low == 0;
  const auto body = [&](V g, V y, unsigned, unsigned&) INLINE_LAMBDA {
    V slope = high;
    auto pass = all<V>();
    if constexpr (A::kind == Kind::kOutput) {
      slope = A::slope_of_output(y, p);
    } else if constexpr (A::kind == Kind::kMask && A::output_gives_slope) {
      const auto own = A::passes_output(y, p);
      slope = select(own, high, low);
      if (low_blocks && !identity) pass = own;
    }
    return finished<plain>(g, slope, y, pass, work.program, rule);
  };
  sweep<V, T, true, MaskUse::kNone, Cost::kDear>(work, how, first, last, body);
}

template <class A, class T, bool plain>
void backward_input(const Work& work, Writing how, std::int64_t first, std::int64_t last) {
  using V = typename Computed<T>::V;
  const auto p = parameters<V>(work.program);
  const Rule<V> rule = rule_of<V>(work.program);
  const V high(work.program.slope_high), low(work.program.slope_low);
  const bool identity = work.program.identity_slope, low_blocks = work.program.slope_low == 0;
  const MaskBit bit = work.program.mask_bit;
  const V from(work.program.low), to(work.program.high);
  const bool needs_value = work.program.gradient_gate == GradientGate::kOutput;
  const auto body = [&](V g, V x, unsigned, unsigned&) INLINE_LAMBDA {
    V slope = high, y(0);
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
    if constexpr (!plain) {
      if (bit == MaskBit::kPositive) pass = pass & positive(x);
      if (bit == MaskBit::kInterval) pass = pass & inside(x, from, to);
      if (needs_value) y = as_stored(A::value(x, p), static_cast<const T*>(nullptr));
    }
    return finished<plain>(g, slope, y, pass, work.program, rule);
  };
  sweep<V, T, true, MaskUse::kNone, Cost::kDear>(work, how, first, last, body);
}

template <class A, class T, MaskBit bit>
constexpr Kernel forward_or_none() {
  if constexpr (bit == MaskBit::kOwn && A::kind != Kind::kMask) {
    return nullptr;
  } else {
    return forward<A, T, bit>;
  }
}

#define FORWARD_ROW(A, NAME)                                                        \
  {forward_or_none<A, T, MaskBit::kNone>(), forward_or_none<A, T, MaskBit::kOwn>(), \
   forward_or_none<A, T, MaskBit::kPositive>(), forward_or_none<A, T, MaskBit::kInterval>()},
#define OUTPUT_ROW(A, NAME) {backward_output<A, T, false>, backward_output<A, T, true>},
#define INPUT_ROW(A, NAME) {backward_input<A, T, false>, backward_input<A, T, true>},
#define GATES_OF(KERNEL)                                                          \
  {KERNEL<T, Gates::kAny>, KERNEL<T, Gates::kNone>, KERNEL<T, Gates::kLowBlocks>, \
   KERNEL<T, Gates::kGradient>}

template <class T>
constexpr Kernels kernels_of = {
    {PYREVGRAD_ACTIVATIONS(FORWARD_ROW)},
    GATES_OF(backward_nothing),
    GATES_OF(backward_mask),
    {PYREVGRAD_ACTIVATIONS(OUTPUT_ROW)},
    {PYREVGRAD_ACTIVATIONS(INPUT_ROW)},
};

constexpr KernelTable table(const char* capability, bool streams) {
  return {capability,
          streams,
          {&kernels_of<float>, &kernels_of<double>, &kernels_of<Bfloat16>, &kernels_of<Half>}};
}

}  // namespace
}  // namespace pyrevgrad::PYREVGRAD_ISA
