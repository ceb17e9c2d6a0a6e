// The one kernel, over whatever body, and its launch. Device compilation only.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>

#include "runtime.h"
#include "thread.h"

namespace pyrevgrad::cuda {

template <class B>
__global__ void __launch_bounds__(kThreads) sweep(B body, const Arrays at) {
  Thread<typename B::Base> thread(at, blockIdx.x, static_cast<int>(threadIdx.x));
  thread.load();
  body.begin();
  thread.compute(body);
  if constexpr (B::use == MaskUse::kWrite) {
#pragma unroll
    for (int s = 0; s < B::steps; ++s) {
      // Every thread of the warp takes part; the bits beyond the end are 0.
#pragma unroll
      for (int distance = 1; distance < kShares<typename B::T>; distance *= 2) {
        thread.bits[s] |= __shfl_xor_sync(0xffffffffu, thread.bits[s], distance);
      }
    }
  }
  thread.store();
}

template <class B>
void launch(const B& body, const Arrays& at, void* stream) {
  const std::int64_t blocks = (at.size + kTile<B> - 1) / kTile<B>;
  if (blocks > 0x7fffffff) throw std::runtime_error("pyrevgrad: too many elements for one launch");
  sweep<B>
      <<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(body, at);
  check_launch();
}

}  // namespace pyrevgrad::cuda
