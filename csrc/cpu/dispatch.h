// Chooses the kernel table and runs one call over the threads. No tensors here.
#pragma once

#include "storage.h"

namespace pyrevgrad::cpu {

// The table in use; PYREVGRAD_CPU_CAPABILITY names a lesser one than the machine's best.
const KernelTable& kernels();

inline std::int64_t size_of(DType dtype) {
  return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2;
}

// `threads` splits [0, blocks) as at::parallel_for does.
using ParallelFor = void (*)(std::int64_t blocks, std::int64_t grain,
                             void (*run)(std::int64_t, std::int64_t, void*), void* context);

void forward(const Work& work, DType dtype, ParallelFor threads);
void backward(const Work& work, DType dtype, ParallelFor threads);

}  // namespace pyrevgrad::cpu
