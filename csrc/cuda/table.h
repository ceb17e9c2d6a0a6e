// Which body serves a call. The including file gives launch(body, arrays, stream), on the device or
// as a simulation on the host, and names the stored types that it serves.
#pragma once

#include <stdexcept>

#include "call.h"
#include "thread.h"

namespace pyrevgrad::cuda {

inline Arrays arrays_of(const Call& call) {
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  const Work& w = call.work;
  return {w.input, w.kept,           w.output,        w.mask,
          w.size,  aligned(w.input), aligned(w.kept), aligned(w.output)};
}

template <class B>
void run(const Call& call) {
  LiveScale live{call.work.program.scale, call.scale, call.scale_dtype};
  launch(B(call.work.program, live), arrays_of(call), call.stream);
}

using Run = void (*)(const Call&);

template <class A, class T>
void run_forward(const Call& call) {
  if (call.work.mask == nullptr) return run<Forward<A, T, Writes::kNone>>(call);
  if (call.work.program.mask_bit != MaskBit::kOwn) {
    return run<Forward<A, T, Writes::kInterval>>(call);
  }
  if constexpr (A::kind == Kind::kMask) return run<Forward<A, T, Writes::kOwn>>(call);
  throw std::runtime_error("this activation has no mask of its own");
}

template <class A, class T>
void run_backward_output(const Call& call) {
  if constexpr (A::kind == Kind::kOutput) {
    if (call.work.program.plain()) return run<BackwardOutput<A, T, true>>(call);
  }
  // Where the output tells no slope, the program's number is the slope, whatever the activation.
  using Told = std::conditional_t<A::output_gives_slope, A, Identity>;
  run<BackwardOutput<Told, T, false>>(call);
}

template <class A, class T>
void run_backward_input(const Call& call) {
  if constexpr (A::kind == Kind::kOutput || A::kind == Kind::kInput) {
    if (call.work.program.plain()) return run<BackwardInput<A, T, true>>(call);
  }
  run<BackwardInput<A, T, false>>(call);
}

template <template <class, Gates> class B, class T>
void run_by_gates(const Call& call) {
  const Program& program = call.work.program;
  if (!program.clipped && program.gradient_gate == GradientGate::kNone) {
    return run<B<T, Gates::kNone>>(call);
  }
  if (!program.clipped && program.gradient_gate == GradientGate::kGradient) {
    return run<B<T, Gates::kGradient>>(call);
  }
  run<B<T, Gates::kAny>>(call);
}

template <class T>
void forward(const Call& call) {
#define PYREVGRAD_ENTRY(A, NAME) run_forward<A, T>,
  static constexpr Run by_activation[] = {PYREVGRAD_ACTIVATIONS(PYREVGRAD_ENTRY)};
#undef PYREVGRAD_ENTRY
  by_activation[call.work.program.activation](call);
}

template <class T>
void backward(const Call& call) {
#define PYREVGRAD_ENTRY(A, NAME) run_backward_output<A, T>,
  static constexpr Run by_output[] = {PYREVGRAD_ACTIVATIONS(PYREVGRAD_ENTRY)};
#undef PYREVGRAD_ENTRY
#define PYREVGRAD_ENTRY(A, NAME) run_backward_input<A, T>,
  static constexpr Run by_input[] = {PYREVGRAD_ACTIVATIONS(PYREVGRAD_ENTRY)};
#undef PYREVGRAD_ENTRY
  switch (call.work.program.keeps) {
    case Keeps::kNothing:
      return run_by_gates<BackwardNothing, T>(call);
    case Keeps::kMask:
      return run_by_gates<BackwardMask, T>(call);
    case Keeps::kOutput:
      return by_output[call.work.program.activation](call);
    case Keeps::kInput:
      return by_input[call.work.program.activation](call);
  }
}

}  // namespace pyrevgrad::cuda
