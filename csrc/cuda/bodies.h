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

// The value itself, of which the compiler may assume nothing. A flag that all elements share would
// otherwise be tested once, with a copy of the loop for every combination of flags: seven seconds
// of compilation for one kernel, for rules that are not the fast ones.
template <class E>
PYREVGRAD_HD E opaque(E flag) {
  int number = static_cast<int>(flag);
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(number));
#endif
  return static_cast<E>(number);
}

template <class V>
Rule<V> rule_of(const Program& p) {
  return {V(p.scale), V(p.low), V(p.high), V(p.threshold), V(p.clip), p.gradient_gate, p.clipped};
}

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

template <class A, class T, bool writes>
struct Forward : Form<T, writes ? MaskUse::kWrite : MaskUse::kNone, false, kForwardSteps<A>> {
  using Base = Form<T, writes ? MaskUse::kWrite : MaskUse::kNone, false, kForwardSteps<A>>;
  using typename Base::V;
  using typename Base::Values;
  Constants<V> p;
  V low, high;
  MaskBit bit;

  Forward(const Program& program, const LiveScale&)
      : p(program.a, program.b), low(program.low), high(program.high), bit(program.mask_bit) {}

  PYREVGRAD_HD void begin() {}

  PYREVGRAD_HD unsigned operator()(Values& x, const Values&, unsigned) const {
    unsigned bits = 0;
    if constexpr (writes) {
#pragma unroll
      for (int i = 0; i < Base::lanes; ++i) {
        bool is = true;
        const MaskBit asked = opaque(bit);
        if (asked == MaskBit::kPositive) {
          is = positive(x[i]);
        } else if (asked == MaskBit::kInterval) {
          is = inside(x[i], low, high);
        } else if constexpr (A::kind == Kind::kMask) {
          is = A::passes(x[i], p);
        }
        bits |= static_cast<unsigned>(is) << i;
      }
    }
#pragma unroll
    for (int i = 0; i < Base::lanes; ++i) x[i] = value_of<A, T>(x[i], p);
    return bits;
  }
};

// What every backward holds: the rule with the scale of the moment, and the program's slopes.
template <class V, Gates gates>
struct RuleNow {
  Rule<V> rule;
  V high, low;
  bool low_blocks, identity;
  LiveScale scale;

  RuleNow(const Program& program, const LiveScale& live)
      : rule(rule_of<V>(program)),
        high(program.slope_high),
        low(program.slope_low),
        low_blocks(program.slope_low == 0),
        identity(program.identity_slope),
        scale(live) {}

  PYREVGRAD_HD void begin() {
    if (scale.tensor) rule.scale = static_cast<V>(scale.number * number_at(scale));
  }

  // The rule as one element meets it.
  PYREVGRAD_HD Rule<V> of_element() const {
    Rule<V> r = rule;
    if constexpr (gates == Gates::kAny) {
      r.clipped = opaque(r.clipped);
      r.gradient_gate = opaque(r.gradient_gate);
    } else {
      r.clipped = false;
      r.gradient_gate = gates == Gates::kGradient ? GradientGate::kGradient : GradientGate::kNone;
    }
    return r;
  }
};

template <class T, Gates gates>
struct BackwardNothing : Form<T, MaskUse::kNone, false, kBackwardSteps<gates>>,
                         RuleNow<typename Computed<T>::V, gates> {
  using Base = Form<T, MaskUse::kNone, false, kBackwardSteps<gates>>;
  using typename Base::V;
  using typename Base::Values;
  bool pass;

  BackwardNothing(const Program& program, const LiveScale& live)
      : RuleNow<V, gates>(program, live), pass(program.slope_high != 0) {}

  PYREVGRAD_HD unsigned operator()(Values& g, const Values&, unsigned) const {
#pragma unroll
    for (int i = 0; i < Base::lanes; ++i)
      g[i] = gated(g[i], this->high, V(0), pass, this->of_element());
    return 0;
  }
};

template <class T, Gates gates>
struct BackwardMask : Form<T, MaskUse::kRead, false, kBackwardSteps<gates>>,
                      RuleNow<typename Computed<T>::V, gates> {
  using Base = Form<T, MaskUse::kRead, false, kBackwardSteps<gates>>;
  using typename Base::V;
  using typename Base::Values;
  using RuleNow<V, gates>::RuleNow;

  PYREVGRAD_HD unsigned operator()(Values& g, const Values&, unsigned bits) const {
#pragma unroll
    for (int i = 0; i < Base::lanes; ++i) {
      const bool own = bits >> i & 1;
      const V slope = select(own, this->high, this->low);
      g[i] = gated(g[i], slope, V(0), own || !this->low_blocks, this->of_element());
    }
    return 0;
  }
};

template <class A, class T, bool plain>
struct BackwardOutput : Form<T, MaskUse::kNone, true, kKeptSteps<plain>>,
                        RuleNow<typename Computed<T>::V, plain ? Gates::kNone : Gates::kAny> {
  using Base = Form<T, MaskUse::kNone, true, kKeptSteps<plain>>;
  using typename Base::V;
  using typename Base::Values;
  Constants<V> p;

  BackwardOutput(const Program& program, const LiveScale& live)
      : RuleNow<V, plain ? Gates::kNone : Gates::kAny>(program, live), p(program.a, program.b) {}

  PYREVGRAD_HD unsigned operator()(Values& g, const Values& y, unsigned) const {
#pragma unroll
    for (int i = 0; i < Base::lanes; ++i) {
      V slope = this->high;
      bool pass = true;
      if constexpr (A::kind == Kind::kOutput) {
        slope = slope_at_output<A, T>(y[i], p);
      } else if constexpr (A::kind == Kind::kMask && A::output_gives_slope) {
        const bool own = A::passes_output(y[i], p);
        slope = select(own, this->high, this->low);
        pass = own || !this->low_blocks || this->identity;
      }
      if (!plain && this->identity) slope = V(1);
      g[i] = gated(g[i], slope, y[i], pass, this->of_element());
    }
    return 0;
  }
};

template <class A, class T, bool plain>
struct BackwardInput : Form<T, MaskUse::kNone, true, kKeptSteps<plain>>,
                       RuleNow<typename Computed<T>::V, plain ? Gates::kNone : Gates::kAny> {
  using Base = Form<T, MaskUse::kNone, true, kKeptSteps<plain>>;
  using typename Base::V;
  using typename Base::Values;
  Constants<V> p;
  MaskBit bit;

  BackwardInput(const Program& program, const LiveScale& live)
      : RuleNow<V, plain ? Gates::kNone : Gates::kAny>(program, live),
        p(program.a, program.b),
        bit(program.mask_bit) {}

  PYREVGRAD_HD unsigned operator()(Values& g, const Values& x, unsigned) const {
#pragma unroll
    for (int i = 0; i < Base::lanes; ++i) g[i] = one(g[i], x[i]);
    return 0;
  }

 private:
  PYREVGRAD_HD V one(V g, V x) const {
    const Rule<V> rule = this->of_element();
    V slope = this->high, y(0);
    bool pass = true;
    if constexpr (A::kind == Kind::kInput || A::kind == Kind::kOutput) {
      slope = slope_at<A, T>(x, p);
      if constexpr (A::has_flat) pass = this->identity || !A::flat(x, p);
    } else if constexpr (A::kind == Kind::kMask) {
      const bool own = A::passes(x, p);
      slope = select(own, this->high, this->low);
      pass = own || !this->low_blocks || this->identity;
    }
    if constexpr (!plain) {
      const MaskBit asked = opaque(bit);
      if (asked == MaskBit::kPositive) pass = pass && positive(x);
      if (asked == MaskBit::kInterval) pass = pass && inside(x, rule.low, rule.high);
      if (rule.gradient_gate == GradientGate::kOutput) {
        y = as_stored(value_of<A, T>(x, p), Base::type());
      }
      if (this->identity) slope = V(1);
    }
    return gated(g, slope, y, pass, rule);
  }
};

}  // namespace pyrevgrad::cuda
