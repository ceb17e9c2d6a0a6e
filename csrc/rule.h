// A rule applied to one scalar or vector: gates, clip, scale. Shared by CPU and CUDA.
#pragma once

#include "formulas.h"

namespace pyrevgrad {

// The layout of the program tensor, a float64 CPU tensor that pyrevgrad/native.py writes. One
// tensor instead of scalar arguments (there were eleven): measured 2.1 against 5.3 microseconds a
// call.
enum ProgramEntry : int {
  kActivation,
  kKeeps,
  kMaskBit,
  kGradientGate,
  kIdentitySlope,
  kA,
  kB,
  kLow,
  kHigh,
  kSlopeHigh,
  kSlopeLow,
  kThreshold,
  kClip,
  kScale,
  kProgramSize
};

enum class Keeps { kNothing, kMask, kOutput, kInput };
// What a mask's bit says: nothing, the activation's own slope, x > 0, x inside [low, high].
enum class MaskBit { kNone, kOwn, kPositive, kInterval };
enum class GradientGate { kNone, kGradient, kProduct, kOutput };

struct Program {
  int activation = 0;
  Keeps keeps = Keeps::kNothing;
  MaskBit mask_bit = MaskBit::kNone;
  GradientGate gradient_gate = GradientGate::kNone;
  bool identity_slope = false;
  double a = 0, b = 0, low = 0, high = 0, slope_high = 1, slope_low = 0;
  double threshold = 0, clip = 0, scale = 1;
  bool clipped = false;

  // Nothing but scale and slope: the fast path where the output or the input is kept.
  PYREVGRAD_HD bool plain() const {
    return gradient_gate == GradientGate::kNone && !clipped && !identity_slope &&
           mask_bit == MaskBit::kNone;
  }
};

inline Program program_of(const double* numbers) {
  Program p;
  p.activation = static_cast<int>(numbers[kActivation]);
  p.keeps = static_cast<Keeps>(static_cast<int>(numbers[kKeeps]));
  p.mask_bit = static_cast<MaskBit>(static_cast<int>(numbers[kMaskBit]));
  p.gradient_gate = static_cast<GradientGate>(static_cast<int>(numbers[kGradientGate]));
  p.identity_slope = numbers[kIdentitySlope] != 0;
  p.a = numbers[kA];
  p.b = numbers[kB];
  p.low = numbers[kLow];
  p.high = numbers[kHigh];
  p.slope_high = numbers[kSlopeHigh];
  p.slope_low = numbers[kSlopeLow];
  p.threshold = numbers[kThreshold];
  p.clip = numbers[kClip];
  p.clipped = p.clip <= 1.7976931348623157e308;
  p.scale = numbers[kScale];
  return p;
}

// What a gate on the gradient compares with: NaN, which nothing is below, where there is no gate.
PYREVGRAD_HD double limit_of(const Program& p) {
  if (p.gradient_gate == GradientGate::kNone) return NAN;
  return p.gradient_gate == GradientGate::kOutput ? p.threshold : 0;
}

// The rule as numbers alone: one that does not clip has an infinite clip.
template <class V>
struct Rule {
  V scale, limit, clip;
};

template <class V>
PYREVGRAD_HD Rule<V> rule_of(const Program& p) {
  return {V(p.scale), V(limit_of(p)), V(p.clipped ? p.clip : INFINITY)};
}

// The gates on the input.
template <class V>
PYREVGRAD_HD auto positive(V x) {
  return !(x <= V(0));
}
template <class V>
PYREVGRAD_HD auto inside(V x, V low, V high) {
  return (!(x < low)) & (!(x > high));
}

template <class V>
PYREVGRAD_HD V clamp_symmetric(V g, V clip) {
  return select(g > clip, clip, select(g < -clip, -clip, g));
}

// Where the gate on the gradient lets pass: it tests `tested`·g, which is 1, the slope or y times
// g.
template <class V>
PYREVGRAD_HD auto gate(V g, V tested, const Rule<V>& rule) {
  return !(tested * g <= rule.limit);
}

// gx = pass ? (scale·slope)·g : +0.
template <class V, class M>
PYREVGRAD_HD V sent(V g, V slope, M pass, const Rule<V>& rule) {
  return select(pass, (rule.scale * slope) * g, V(0));
}

}  // namespace pyrevgrad
