#include "dispatch.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "writing.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace pyrevgrad::cpu {
namespace {

// at::internal::GRAIN_SIZE: below this many elements a second thread costs more than it gives.
constexpr std::int64_t kGrain = 32768;

struct Candidate {
  const KernelTable* table;
  bool supported;
};

#if defined(__x86_64__)
// Not by __builtin_cpu_supports, which has no words for these in Clang 14 and GCC 10.
[[maybe_unused]] bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

[[maybe_unused]] bool has_avx512_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1 << 5) != 0;
}

#if !defined(PYREVGRAD_WITHOUT_AVX512)
const KernelTable& with_avx512_bf16() {
  static const KernelTable table{"avx512_bf16",
                                 kernels_avx512.streams,
                                 {kernels_avx512.of[kFloat32], kernels_avx512.of[kFloat64],
                                  &kernels_avx512_bf16, kernels_avx512.of[kFloat16]}};
  return table;
}
#endif
#endif

const KernelTable& choose() {
#if defined(__x86_64__)
  [[maybe_unused]] const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  [[maybe_unused]] const bool avx512 =
      avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("bmi2");
#endif
  const Candidate candidates[] = {
#if defined(__x86_64__) && !defined(PYREVGRAD_WITHOUT_AVX512)
      {&with_avx512_bf16(), avx512 && has_avx512_bf16()},
      {&kernels_avx512, avx512},
#endif
#if defined(__x86_64__) && !defined(PYREVGRAD_WITHOUT_AVX2)
      {&kernels_avx2, avx2},
#endif
      {&kernels_portable, true}};
  const char* wanted = std::getenv("PYREVGRAD_CPU_CAPABILITY");
  const bool any = wanted == nullptr || *wanted == '\0';
  for (const Candidate& candidate : candidates) {
    const bool named = any || std::strcmp(candidate.table->capability, wanted) == 0;
    if (named && candidate.supported) return *candidate.table;
  }
  throw std::runtime_error(std::string("PYREVGRAD_CPU_CAPABILITY=") + wanted +
                           " names no instruction set of this machine and build; "
                           "choose avx512_bf16, avx512, avx2 or portable, or leave it unset");
}

struct Task {
  const Work* work;
  Writing how;
  Kernel kernel;
};

void run(const Work& work, DType dtype, Kernel kernel, ParallelFor threads) {
  if (work.size == 0) return;
  const Writing how = writing_of(work, work.size * size_of(dtype));
  if (work.size <= kGrain) return kernel(work, how, 0, work.size);
  Task task{&work, how, kernel};
  const auto part = [](std::int64_t first, std::int64_t last, void* context) {
    const Task& t = *static_cast<const Task*>(context);
    const std::int64_t end = last * kBlock;
    t.kernel(*t.work, t.how, first * kBlock, end < t.work->size ? end : t.work->size);
  };
  threads((work.size + kBlock - 1) / kBlock, kGrain / kBlock, part, &task);
}

Kernel by_gates(const Program& program, const Kernel (&variants)[4]) {
  const bool low_blocks = program.slope_low == 0;
  if (program.clipped) return variants[0];
  if (program.gradient_gate == GradientGate::kNone) return variants[low_blocks ? 2 : 1];
  if (program.gradient_gate == GradientGate::kGradient && low_blocks) return variants[3];
  return variants[0];
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable& chosen = choose();
  return chosen;
}

void forward(const Work& work, DType dtype, ParallelFor threads) {
  const Program& program = work.program;
  const auto bit = work.mask == nullptr ? MaskBit::kNone : program.mask_bit;
  const Kernel kernel = kernels().of[dtype]->forward[program.activation][static_cast<int>(bit)];
  if (kernel == nullptr) throw std::runtime_error("this activation has no mask of its own");
  run(work, dtype, kernel, threads);
}

void backward(const Work& work, DType dtype, ParallelFor threads) {
  const Program& program = work.program;
  const Kernels& table = *kernels().of[dtype];
  switch (program.keeps) {
    case Keeps::kNothing:
      return run(work, dtype, by_gates(program, table.backward_nothing), threads);
    case Keeps::kMask:
      return run(work, dtype, by_gates(program, table.backward_mask), threads);
    case Keeps::kOutput:
      return run(work, dtype, table.backward_output[program.activation][program.plain()], threads);
    case Keeps::kInput:
      return run(work, dtype, table.backward_input[program.activation][program.plain()], threads);
  }
}

}  // namespace pyrevgrad::cpu
