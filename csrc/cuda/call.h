// A call of the CUDA kernels and who answers it, by stored type. Plain data, no CUDA headers.
#pragma once

#include "../cpu/storage.h"

namespace pyrevgrad::cuda {

struct Call {
  Work work;
  const void* scale;  // one number on the device, or null
  DType scale_dtype;
  void* stream;
};

// Enqueue on the stream of the current device; defined once for each stored type.
template <class T>
void forward(const Call& call);
template <class T>
void backward(const Call& call);

}  // namespace pyrevgrad::cuda
