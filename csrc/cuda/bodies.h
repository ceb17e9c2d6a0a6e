// What happens to one share of 16 bytes, by direction and by what was kept. For host and device.
//
// A body takes the values of its share, the kept ones and the mask's bits, writes the results over
// the values and returns the bits of the mask. The rule is data: gates, clip and interval are the
// same for every thread, so a branch on them costs little where the memory sets the pace. Templates
// are spent on the activation, and on the rules that need no branch at all.
#pragma once

#include "brief.h"

namespace pyrevgrad::cuda {

enum class MaskUse { kNone, kRead, kWrite };
// The gates on the gradient that a body is compiled for: any, none, or g <= 0 alone.
enum class Gates { kAny, kNone, kGradient };

// λ as it stands when the kernel runs: the program's number, times the tensor's where there is one.
struct LiveScale {
  double number = 1;
  const void* tensor = nullptr;
  DType dtype = kFloat32;
};

PYREVGRAD_HD double number_at(const LiveScale& scale) {
  switch (scale.dtype) {
    case kFloat32:
      return *static_cast<const float*>(scale.tensor);
    case kFloat64:
      return *static_cast<const double*>(scale.tensor);
    default:
      break;
  }
  const std::uint32_t word = *static_cast<const std::uint16_t*>(scale.tensor);
  float low, high;
  if (scale.dtype == kBfloat16) {
    widen_word(word, static_cast<const Bfloat16*>(nullptr), low, high);
  } else {
    widen_word(word, static_cast<const Half*>(nullptr), low, high);
  }
  return low;
}

// A flag of the rule as a word of ones or zeros, and the choice by it: one bitwise instruction. A
// flag that all elements share would else be a branch in each, or a copy of the loop for every
// combination of flags.
template <class V>
using Word = std::conditional_t<sizeof(V) == 8, std::uint64_t, std::uint32_t>;

template <class V>
PYREVGRAD_HD V chosen(Word<V> ones, V a, V b) {
  Word<V> from[2], word;
  memcpy(&from[0], &a, sizeof(V));
  memcpy(&from[1], &b, sizeof(V));
  word = (from[0] & ones) | (from[1] & ~ones);
  V value;
  memcpy(&value, &word, sizeof(V));
  return value;
}

// The gate on the input, or the mask's bit that is not the activation's own, as an interval:
// everything where there is none, from the least positive number where x must be positive.
template <class V>
struct Interval {
  V low = -INFINITY, high = INFINITY;
  explicit Interval(const Program& p) {
    if (p.mask_bit == MaskBit::kPositive) low = std::numeric_limits<V>::denorm_min();
    if (p.mask_bit == MaskBit::kInterval) low = V(p.low), high = V(p.high);
  }
  PYREVGRAD_HD bool holds(V x) const { return inside(x, low, high); }
};

// Shares of 16 bytes that a thread takes: the loads of all are under way before the first is waited
// for. A dear body has more to do meanwhile, and many copies of it would only lengthen the build.
enum Steps : int { kGeneral = 1, kDear = 2, kCheap = 4 };

template <class T_, MaskUse use_, bool reads_kept_, Steps steps_>
struct Form {
  using T = T_;
  using V = typename Computed<T>::V;
  static constexpr int lanes = kLanes<T>;
  static constexpr MaskUse use = use_;
  static constexpr bool reads_kept = reads_kept_;
  static constexpr int steps = steps_;
  using Values = V[lanes];
  static PYREVGRAD_HD const T* type() { return nullptr; }
};

template <class A>
constexpr Steps kForwardSteps =
    A::kind == Kind::kConstant || A::kind == Kind::kMask ? kCheap : kDear;
template <Gates gates>
constexpr Steps kBackwardSteps = gates == Gates::kAny ? kGeneral : kCheap;
template <bool plain>
constexpr Steps kKeptSteps = plain ? kDear : kGeneral;

// Which bit of an element a forward writes: none, the activation's own, or what an interval says.
enum class Writes { kNone, kOwn, kInterval };
template <Writes writes>
constexpr MaskUse kUseOf = writes == Writes::kNone ? MaskUse::kNone : MaskUse::kWrite;

template <class A, class T, Writes writes>
struct Forward : Form<T, kUseOf<writes>, false, kForwardSteps<A>> {
  using Base = Form<T, kUseOf<writes>, false, kForwardSteps<A>>;
  using typename Base::V;
  using typename Base::Values;
  Constants<V> p;
  Interval<V> interval;

  Forward(const Program& program, const LiveScale&) : p(program.a, program.b), interval(program) {}

  PYREVGRAD_HD void begin() {}

  PYREVGRAD_HD unsigned operator()(Values& x, const Values&, unsigned) const {
    unsigned bits = 0;
    if constexpr (writes != Writes::kNone) {
#pragma unroll
      for (int i = 0; i < Base::lanes; ++i) bits |= static_cast<unsigned>(bit(x[i])) << i;
    }
#pragma unroll
    for (int i = 0; i < Base::lanes; ++i) x[i] = value_of<A, T>(x[i], p);
    return bits;
  }

 private:
  PYREVGRAD_HD bool bit(V x) const {
    if constexpr (writes == Writes::kOwn) return A::passes(x, p);
    return interval.holds(x);
  }
};

// What every backward holds: the rule with the scale of the moment, and the program's slopes.
template <class V, Gates gates>
struct RuleNow {
  Rule<V> rule;
  V high, low;
  bool low_passes;
  LiveScale scale;

  RuleNow(const Program& program, const LiveScale& live)
      : rule(rule_of<V>(program)),
        high(program.slope_high),
        low(program.slope_low),
        low_passes(program.slope_low != 0),
        scale(live) {}

  PYREVGRAD_HD void begin() {
    if (scale.tensor) rule.scale = static_cast<V>(scale.number * number_at(scale));
    if constexpr (gates != Gates::kAny) {
      rule.clip = INFINITY;
      rule.limit = gates == Gates::kGradient ? V(0) : V(NAN);
    }
  }

  PYREVGRAD_HD V gated(V g, V slope, V tested, bool pass) const {
    g = clamp_symmetric(g, rule.clip);
    return sent(g, slope, pass & gate(g, tested, rule), rule);
  }
};

template <class T, Gates gates>
struct BackwardNothing : Form<T, MaskUse::kNone, false, kBackwardSteps<gates>>,
                         RuleNow<typename Computed<T>::V, gates> {
  using Base = Form<T, MaskUse::kNone, false, kBackwardSteps<gates>>;
  using typename Base::V;
  using typename Base::Values;
  V tested;
  bool pass;

  BackwardNothing(const Program& program, const LiveScale& live)
      : RuleNow<V, gates>(program, live),
        tested(program.gradient_gate == GradientGate::kProduct ? program.slope_high : 1),
        pass(program.slope_high != 0) {}

  PYREVGRAD_HD unsigned operator()(Values& g, const Values&, unsigned) const {
#pragma unroll
    for (int i = 0; i < Base::lanes; ++i) {
      g[i] = this->gated(g[i], this->high, gates == Gates::kAny ? tested : V(1), pass);
    }
    return 0;
  }
};

template <class T, Gates gates>
struct BackwardMask : Form<T, MaskUse::kRead, false, kBackwardSteps<gates>>,
                      RuleNow<typename Computed<T>::V, gates> {
  using Base = Form<T, MaskUse::kRead, false, kBackwardSteps<gates>>;
  using typename Base::V;
  using typename Base::Values;
  V tested_high = 1, tested_low = 1;

  BackwardMask(const Program& program, const LiveScale& live) : RuleNow<V, gates>(program, live) {
    if (program.gradient_gate == GradientGate::kProduct) {
      tested_high = this->high;
      tested_low = this->low;
    }
  }

  PYREVGRAD_HD unsigned operator()(Values& g, const Values&, unsigned bits) const {
#pragma unroll
    for (int i = 0; i < Base::lanes; ++i) {
      const bool own = bits >> i & 1;
      const V slope = select(own, this->high, this->low);
      const V tested = gates == Gates::kAny ? select(own, tested_high, tested_low) : V(1);
      g[i] = this->gated(g[i], slope, tested, own || this->low_passes);
    }
    return 0;
  }
};

// What a backward that keeps the output or the input chooses by the rule, element by element.
template <class T, bool plain>
struct Choices : RuleNow<typename Computed<T>::V, plain ? Gates::kNone : Gates::kAny> {
  using V = typename Computed<T>::V;
  Word<V> identity, tests_slope;
  bool tests_value;

  Choices(const Program& program, const LiveScale& live)
      : RuleNow<V, plain ? Gates::kNone : Gates::kAny>(program, live),
        identity(-Word<V>(program.identity_slope)),
        tests_slope(-Word<V>(program.gradient_gate == GradientGate::kProduct)),
        tests_value(program.gradient_gate == GradientGate::kOutput) {
    if (program.identity_slope) this->low_passes = true;
  }

  // `tested`: y where the gate tests it, else 1.
  PYREVGRAD_HD V finished(V g, V slope, V tested, bool pass) const {
    if constexpr (!plain) {
      slope = chosen<V>(identity, V(1), slope);
      tested = chosen<V>(tests_slope, slope, tested);
    }
    return this->gated(g, slope, tested, pass);
  }
};

template <class A, class T, bool plain>
struct BackwardOutput : Form<T, MaskUse::kNone, true, kKeptSteps<plain>>, Choices<T, plain> {
  using Base = Form<T, MaskUse::kNone, true, kKeptSteps<plain>>;
  using typename Base::V;
  using typename Base::Values;
  Constants<V> p;

  BackwardOutput(const Program& program, const LiveScale& live)
      : Choices<T, plain>(program, live), p(program.a, program.b) {}

  PYREVGRAD_HD unsigned operator()(Values& g, const Values& y, unsigned) const {
    const Word<V> value = -Word<V>(this->tests_value);
#pragma unroll
    for (int i = 0; i < Base::lanes; ++i) {
      V slope = this->high;
      bool pass = true;
      if constexpr (A::kind == Kind::kOutput) {
        slope = slope_at_output<A, T>(y[i], p);
      } else if constexpr (A::kind == Kind::kMask && A::output_gives_slope) {
        const bool own = A::passes_output(y[i], p);
        slope = select(own, this->high, this->low);
        pass = own | this->low_passes;
      }
      const V tested = plain ? V(1) : chosen<V>(value, y[i], V(1));
      g[i] = this->finished(g[i], slope, tested, pass);
    }
    return 0;
  }
};

template <class A, class T, bool plain>
struct BackwardInput : Form<T, MaskUse::kNone, true, kKeptSteps<plain>>, Choices<T, plain> {
  using Base = Form<T, MaskUse::kNone, true, kKeptSteps<plain>>;
  using typename Base::V;
  using typename Base::Values;
  Constants<V> p;
  Interval<V> interval;

  BackwardInput(const Program& program, const LiveScale& live)
      : Choices<T, plain>(program, live), p(program.a, program.b), interval(program) {}

  PYREVGRAD_HD unsigned operator()(Values& g, const Values& x, unsigned) const {
    Values tested;
#pragma unroll
    for (int i = 0; i < Base::lanes; ++i) tested[i] = V(1);
    if constexpr (!plain) {
      if (this->tests_value) {
#pragma unroll
        for (int i = 0; i < Base::lanes; ++i) {
          tested[i] = as_stored(value_of<A, T>(x[i], p), Base::type());
        }
      }
    }
#pragma unroll
    for (int i = 0; i < Base::lanes; ++i) g[i] = one(g[i], x[i], tested[i]);
    return 0;
  }

 private:
  PYREVGRAD_HD V one(V g, V x, V tested) const {
    V slope = this->high;
    bool pass = true;
    if constexpr (A::kind == Kind::kInput || A::kind == Kind::kOutput) {
      slope = slope_at<A, T>(x, p);
      if constexpr (A::has_flat) pass = this->identity | !A::flat(x, p);
    } else if constexpr (A::kind == Kind::kMask) {
      const bool own = A::passes(x, p);
      slope = select(own, this->high, this->low);
      pass = own | this->low_passes;
    }
    if constexpr (!plain) pass = pass & interval.holds(x);
    return this->finished(g, slope, tested, pass);
  }
};

}  // namespace pyrevgrad::cuda
