// Every activation's formula, once, over a scalar or vector type V; shared by CPU and CUDA.
//
// A functor has value(x, p); beside it, by kind:
//   kConstant  nothing more (the slope is a number of the program)
//   kMask      passes(x, p): which of the two slopes holds; passes_output(y, p) where y tells too
//   kOutput    slope(x, p) and slope_of_output(y, p)
//   kInput     slope(x, p); flat(x, p), with has_flat, where a slope of exactly 0 blocks like a
//   gate
// Comparisons are false at NaN, so `!(x <= 0)` lets NaN pass and `x > 0` does not.
#pragma once

#include "scalar.h"

namespace pyrevgrad {

enum class Kind { kConstant, kMask, kOutput, kInput };

template <class V>
struct Parameters {
  V a, b;
};

template <Kind kind_, bool output_gives_slope_ = (kind_ == Kind::kOutput), bool has_flat_ = false>
struct Row {
  static constexpr Kind kind = kind_;
  static constexpr bool output_gives_slope = output_gives_slope_;
  static constexpr bool has_flat = has_flat_;
  // The value is x, a constant or, with `scales`, a constant times x, chosen by comparing x with
  // constants.
  static constexpr bool chooses = false;
  static constexpr bool scales = false;
};

#define PYREVGRAD_FORMULA(NAME, ARGUMENT)                    \
  template <class V>                                         \
  static PYREVGRAD_HD auto NAME([[maybe_unused]] V ARGUMENT, \
                                [[maybe_unused]] const Parameters<V>& p)

// Vector types with a quicker way (approximate and refined) give their own.
template <class V>
PYREVGRAD_HD V reciprocal_from_one(V x) {  // 1/x for x >= 1
  return V(1) / x;
}
template <class V>
PYREVGRAD_HD V quotient_from_one(V a, V b) {  // a/b for b >= 1
  return a / b;
}

template <class V>
PYREVGRAD_HD V divided_by_a(V x, const Parameters<V>& p) {
  return x / p.a;
}

template <class V>
PYREVGRAD_HD V logistic(V x) {
  return reciprocal_from_one(V(1) + exponential(-x));
}

struct Identity : Row<Kind::kConstant> {
  static constexpr bool chooses = true;
  PYREVGRAD_FORMULA(value, x) { return x; }
};

struct Relu : Row<Kind::kMask, true> {
  static constexpr bool chooses = true;
  PYREVGRAD_FORMULA(value, x) { return select(x < V(0), V(0), x); }
  PYREVGRAD_FORMULA(passes, x) { return !(x <= V(0)); }
  PYREVGRAD_FORMULA(passes_output, y) { return !(y <= V(0)); }
};

struct LeakyRelu : Row<Kind::kMask, true> {
  static constexpr bool chooses = true;
  static constexpr bool scales = true;
  PYREVGRAD_FORMULA(value, x) { return select(x > V(0), x, p.a * x); }
  PYREVGRAD_FORMULA(passes, x) { return x > V(0); }
  PYREVGRAD_FORMULA(passes_output, y) { return y > V(0); }
};

struct Hardtanh : Row<Kind::kMask, true> {
  static constexpr bool chooses = true;
  PYREVGRAD_FORMULA(value, x) { return select(x < p.a, p.a, select(x > p.b, p.b, x)); }
  PYREVGRAD_FORMULA(passes, x) { return (!(x <= p.a)) & (!(x >= p.b)); }
  PYREVGRAD_FORMULA(passes_output, y) { return (!(y <= p.a)) & (!(y >= p.b)); }
};

struct Relu6 : Row<Kind::kMask, true> {
  static constexpr bool chooses = true;
  template <class V>
  static PYREVGRAD_HD Parameters<V> bounds() {
    return {V(0), V(6)};
  }
  PYREVGRAD_FORMULA(value, x) { return Hardtanh::value(x, bounds<V>()); }
  PYREVGRAD_FORMULA(passes, x) { return Hardtanh::passes(x, bounds<V>()); }
  PYREVGRAD_FORMULA(passes_output, y) { return Hardtanh::passes(y, bounds<V>()); }
};

struct ReluSquared : Row<Kind::kInput, false, true> {
  PYREVGRAD_FORMULA(value, x) {
    const V r = select(x <= V(0), V(0), x);
    return r * r;
  }
  PYREVGRAD_FORMULA(slope, x) { return V(2) * select(x <= V(0), V(0), x); }
  PYREVGRAD_FORMULA(flat, x) { return x <= V(0); }
};

// s·(x > 0 ? x : a·(exp(z) − 1)), the family of elu, selu and celu.
template <class V>
PYREVGRAD_HD V exponential_unit(V x, V z, V s, V a) {
  return s * select(x > V(0), x, a * exponential_minus_one(z));
}

struct Elu : Row<Kind::kOutput> {
  PYREVGRAD_FORMULA(value, x) { return exponential_unit(x, x, V(1), p.a); }
  PYREVGRAD_FORMULA(slope, x) { return select(x > V(0), V(1), p.a * exponential(x)); }
  PYREVGRAD_FORMULA(slope_of_output, y) { return select(y > V(0), V(1), y + p.a); }
};

struct Selu : Row<Kind::kOutput> {
  static constexpr double s = 1.0507009873554804934193349852946;
  static constexpr double a = 1.6732632423543772848170429916717;
  PYREVGRAD_FORMULA(value, x) { return exponential_unit(x, x, V(s), V(a)); }
  PYREVGRAD_FORMULA(slope, x) { return select(x > V(0), V(s), V(s * a) * exponential(x)); }
  PYREVGRAD_FORMULA(slope_of_output, y) { return select(y > V(0), V(s), y + V(s * a)); }
};

struct Celu : Row<Kind::kOutput> {
  PYREVGRAD_FORMULA(value, x) { return exponential_unit(x, divided_by_a(x, p), V(1), p.a); }
  PYREVGRAD_FORMULA(slope, x) { return select(x > V(0), V(1), exponential(divided_by_a(x, p))); }
  PYREVGRAD_FORMULA(slope_of_output, y) {
    return select(y > V(0), V(1), divided_by_a(y, p) + V(1));
  }
};

struct Softplus : Row<Kind::kInput> {
  PYREVGRAD_FORMULA(value, x) {
    const V z = p.a * x;
    const V rest = log_one_plus(exponential(-absolute(z)));
    return select(z > p.b, x, divided_by_a(select(z > V(0), z, V(0)) + rest, p));
  }
  PYREVGRAD_FORMULA(slope, x) {
    const V z = p.a * x;
    return select(z > p.b, V(1), logistic(z));
  }
};

struct Softsign : Row<Kind::kOutput> {
  PYREVGRAD_FORMULA(value, x) { return quotient_from_one(x, V(1) + absolute(x)); }
  PYREVGRAD_FORMULA(slope, x) {
    const V d = V(1) + absolute(x);
    // x − x is 0, but NaN where x is infinite: there the value is NaN too.
    return quotient_from_one(V(1), d * d) + (x - x);
  }
  PYREVGRAD_FORMULA(slope_of_output, y) {
    const V d = V(1) - absolute(y);
    return d * d;
  }
};

struct Sigmoid : Row<Kind::kOutput> {
  PYREVGRAD_FORMULA(value, x) { return logistic(x); }
  PYREVGRAD_FORMULA(slope, x) {
    const V y = logistic(x);
    return (V(1) - y) * y;
  }
  PYREVGRAD_FORMULA(slope_of_output, y) { return (V(1) - y) * y; }
};

struct Logsigmoid : Row<Kind::kOutput> {
  PYREVGRAD_FORMULA(value, x) {
    return select(x > V(0), V(0), x) - log_one_plus(exponential(-absolute(x)));
  }
  PYREVGRAD_FORMULA(slope, x) { return logistic(-x); }
  PYREVGRAD_FORMULA(slope_of_output, y) { return -exponential_minus_one(y); }
};

struct Tanh : Row<Kind::kOutput> {
  PYREVGRAD_FORMULA(value, x) { return hyperbolic_tangent(x); }
  PYREVGRAD_FORMULA(slope, x) {
    const V y = hyperbolic_tangent(x);
    return V(1) - y * y;
  }
  PYREVGRAD_FORMULA(slope_of_output, y) { return V(1) - y * y; }
};

struct Tanhshrink : Row<Kind::kInput> {
  PYREVGRAD_FORMULA(value, x) { return x - hyperbolic_tangent(x); }
  PYREVGRAD_FORMULA(slope, x) {
    const V t = hyperbolic_tangent(x);
    return t * t;
  }
};

struct Hardshrink : Row<Kind::kMask, true> {
  static constexpr bool chooses = true;
  PYREVGRAD_FORMULA(value, x) { return select(absolute(x) <= p.a, V(0), x); }
  PYREVGRAD_FORMULA(passes, x) { return !(absolute(x) <= p.a); }
  PYREVGRAD_FORMULA(passes_output, y) { return y != V(0); }
};

struct Softshrink : Row<Kind::kMask> {
  PYREVGRAD_FORMULA(value, x) {
    return select(absolute(x) <= p.a, V(0), select(x < V(0), x + p.a, x - p.a));
  }
  PYREVGRAD_FORMULA(passes, x) { return !(absolute(x) <= p.a); }
};

// Φ(x), given e^(−x²/2). In float32 by formula 7.1.26 of Abramowitz & Stegun (1964), an error of
// 1.5e-7, and without cancellation where x < 0; it shares its exponential with the density.
template <class V>
PYREVGRAD_HD V normal_distribution(V x, [[maybe_unused]] V bell) {
  if constexpr (sizeof(typename ScalarOf<V>::type) == 8) {
    return V(0.5) * (V(1) + error_function(x * V(0.70710678118654752440)));
  } else {
    const V p(0.3275911 * 0.70710678118654752440);
    const V t = reciprocal_from_one(multiply_add(p, absolute(x), V(1)));
    V q(1.061405429 / 2);
    q = multiply_add(q, t, V(-1.453152027 / 2));
    q = multiply_add(q, t, V(1.421413741 / 2));
    q = multiply_add(q, t, V(-0.284496736 / 2));
    q = multiply_add(q, t, V(0.254829592 / 2));
    const V tail = q * t * bell;
    return select(x < V(0), tail, V(1) - tail);
  }
}

struct Gelu : Row<Kind::kInput> {
  template <class V>
  static PYREVGRAD_HD V bell(V x) {
    return exponential(V(-0.5) * x * x);
  }
  PYREVGRAD_FORMULA(value, x) { return x * normal_distribution(x, bell(x)); }
  PYREVGRAD_FORMULA(slope, x) {
    const V e = bell(x);
    return normal_distribution(x, e) + x * (V(0.39894228040143267794) * e);
  }
};

struct GeluTanh : Row<Kind::kInput> {
  static constexpr double beta = 0.79788456080286535588;
  static constexpr double kappa = 0.044715;
  // (1 + tanh(z)) / 2 = 1 / (1 + e^(−2z)), which does not cancel where z < 0.
  template <class V>
  static PYREVGRAD_HD V share(V x) {
    return logistic(V(2 * beta) * (x + V(kappa) * x * x * x));
  }
  PYREVGRAD_FORMULA(value, x) { return x * share(x); }
  PYREVGRAD_FORMULA(slope, x) {
    const V s = share(x);
    const V inner = V(2 * beta) * (V(1) + V(3 * kappa) * x * x);
    return s + x * (s * (V(1) - s)) * inner;
  }
};

struct Silu : Row<Kind::kInput> {
  PYREVGRAD_FORMULA(value, x) { return x * logistic(x); }
  PYREVGRAD_FORMULA(slope, x) {
    const V s = logistic(x);
    return s * (V(1) + x * (V(1) - s));
  }
};

struct QuickGelu : Row<Kind::kInput> {
  static constexpr double alpha = 1.702;
  PYREVGRAD_FORMULA(value, x) { return x * logistic(V(alpha) * x); }
  PYREVGRAD_FORMULA(slope, x) {
    const V s = logistic(V(alpha) * x);
    return s + V(alpha) * (x * s * (V(1) - s));
  }
};

// tanh(log(1 + e^x)) = n / (n + 2) with n = e^x·(e^x + 2); at x >= 20 that is 1 in both types.
struct Mish : Row<Kind::kInput> {
  template <class V>
  static PYREVGRAD_HD V tangent(V x) {
    const V e = exponential(select(x > V(20), V(20), x));
    const V n = e * (e + V(2));
    return quotient_from_one(n, n + V(2));
  }
  PYREVGRAD_FORMULA(value, x) { return x * tangent(x); }
  PYREVGRAD_FORMULA(slope, x) {
    const V e = exponential(select(x > V(20), V(20), x));
    const V n = e * (e + V(2));
    const V d = n + V(2);
    const V t = quotient_from_one(V(1), d);
    // σ(x)·(1 − tanh²) = e/(e + 1) · 4·(e + 1)²/d², without the cancellation.
    const V rest = select(x > V(20), V(0), V(4) * e * (e + V(1)) * (t * t));
    return quotient_from_one(n, d) + x * rest;
  }
};

struct Hardswish : Row<Kind::kInput, false, true> {
  PYREVGRAD_FORMULA(value, x) {
    const V z = x + V(3);
    return x * select(z < V(0), V(0), select(z > V(6), V(6), z)) * V(1.0 / 6);
  }
  PYREVGRAD_FORMULA(slope, x) {
    return select(x <= V(-3), V(0), select(x >= V(3), V(1), x * V(1.0 / 3) + V(0.5)));
  }
  PYREVGRAD_FORMULA(flat, x) { return x <= V(-3); }
};

struct Hardsigmoid : Row<Kind::kMask> {
  PYREVGRAD_FORMULA(value, x) {
    const V z = x + V(3);
    return select(z < V(0), V(0), select(z > V(6), V(6), z)) / V(6);
  }
  PYREVGRAD_FORMULA(passes, x) { return (x > V(-3)) & (x < V(3)); }
};

struct Sign : Row<Kind::kConstant> {
  static constexpr bool chooses = true;
  PYREVGRAD_FORMULA(value, x) { return select(x > V(0), V(1), select(x < V(0), V(-1), V(0))); }
};

struct Round : Row<Kind::kConstant> {
  PYREVGRAD_FORMULA(value, x) { return round_even(x); }
};

struct Heaviside : Row<Kind::kConstant> {
  static constexpr bool chooses = true;
  PYREVGRAD_FORMULA(value, x) { return select(x > V(0), V(1), select(x == V(0), p.a, V(0))); }
};

#undef PYREVGRAD_FORMULA

// The one list of activations: the library's codes, tables and names come from it.
#define PYREVGRAD_ACTIVATIONS(X) \
  X(Identity, "identity")        \
  X(Relu, "relu")                \
  X(LeakyRelu, "leaky_relu")     \
  X(Relu6, "relu6")              \
  X(Hardtanh, "hardtanh")        \
  X(ReluSquared, "relu_squared") \
  X(Elu, "elu")                  \
  X(Selu, "selu")                \
  X(Celu, "celu")                \
  X(Softplus, "softplus")        \
  X(Softsign, "softsign")        \
  X(Sigmoid, "sigmoid")          \
  X(Logsigmoid, "logsigmoid")    \
  X(Tanh, "tanh")                \
  X(Tanhshrink, "tanhshrink")    \
  X(Hardshrink, "hardshrink")    \
  X(Softshrink, "softshrink")    \
  X(Gelu, "gelu")                \
  X(GeluTanh, "gelu_tanh")       \
  X(Silu, "silu")                \
  X(QuickGelu, "quick_gelu")     \
  X(Mish, "mish")                \
  X(Hardswish, "hardswish")      \
  X(Hardsigmoid, "hardsigmoid")  \
  X(Sign, "sign")                \
  X(Round, "round")              \
  X(Heaviside, "heaviside")

}  // namespace pyrevgrad
