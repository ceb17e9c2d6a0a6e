// The library of the CUDA kernels: the operations of csrc/library.cpp on CUDA tensors.
//
// A library of its own, so that a torch without CUDA never maps it and a toolkit that fails to
// build it leaves the CPU's whole. It takes the current stream from libtorch_cuda by a weak symbol,
// so that it loads on any torch, and says so where the symbol is missing.
#include <Python.h>

#include "../operations.h"
#include "call.h"
#include "runtime.h"

extern "C" __attribute__((weak, visibility("default"))) AOTITorchError
aoti_torch_get_current_cuda_stream(std::int32_t device_index, void** stream);

namespace pyrevgrad {
namespace {

constexpr const char* kNoStream =
    "this torch is built without CUDA: it has no aoti_torch_get_current_cuda_stream";

void* current_stream(std::int32_t device) {
  // Never stream 0 instead: work there would race with what the caller enqueued elsewhere.
  check(aoti_torch_get_current_cuda_stream != nullptr, kNoStream);
  void* stream = nullptr;
  PYREVGRAD_SHIM(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

// The device of a tensor for as long as this lives, in torch and in our copy of the runtime.
class OnDevice {
 public:
  explicit OnDevice(std::int32_t device) {
    PYREVGRAD_SHIM(aoti_torch_create_device_guard(device, &guard_));
    try {
      cuda::use_device(device);
    } catch (...) {
      aoti_torch_delete_device_guard(guard_);
      throw;
    }
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { aoti_torch_delete_device_guard(guard_); }

 private:
  DeviceGuardHandle guard_ = nullptr;
};

using Enqueue = void (*)(const cuda::Call&);

void enqueue(const Work& work, const Tensor& beside, const Tensor& scale,
             const Enqueue (&by_dtype)[kDTypes]) {
  if (work.size == 0) return;
  const std::int32_t device = beside.device_index();
  cuda::Call call{work, nullptr, kFloat32, current_stream(device)};
  if (scale) {
    call.scale = scale.data();
    call.scale_dtype = dtype_of(scale);
  }
  const OnDevice guard(device);
  by_dtype[dtype_of(beside)](call);
}

void compute_forward(const Work& work, const Tensor& x) {
  static constexpr Enqueue by_dtype[] = {cuda::forward<float>, cuda::forward<double>,
                                         cuda::forward<Bfloat16>, cuda::forward<Half>};
  enqueue(work, x, Tensor(), by_dtype);
}

void compute_backward(const Work& work, const Tensor& gradient, const Tensor& scale) {
  static constexpr Enqueue by_dtype[] = {cuda::backward<float>, cuda::backward<double>,
                                         cuda::backward<Bfloat16>, cuda::backward<Half>};
  enqueue(work, gradient, scale, by_dtype);
}

// What this build holds: the CUDA version, then the architectures.
void describe(StableIValue* stack, std::uint64_t, std::uint64_t) {
  stack[0] = torch::stable::detail::from(cuda::build());
}

// Why the kernels cannot run on a device, or nothing.
void problem(StableIValue* stack, std::uint64_t, std::uint64_t) {
  const auto index = torch::stable::detail::to<std::int64_t>(stack[0]);
  std::string found = kNoStream;
  if (aoti_torch_get_current_cuda_stream != nullptr) {
    // torch's guard, for it goes back without taking hold of a device that nobody uses.
    DeviceGuardHandle guard = nullptr;
    aoti_torch_create_device_guard(static_cast<std::int32_t>(index), &guard);
    found = cuda::problem(static_cast<int>(index));
    if (guard != nullptr) aoti_torch_delete_device_guard(guard);
  }
  stack[0] = torch::stable::detail::from(found);
}

}  // namespace
}  // namespace pyrevgrad

STABLE_TORCH_LIBRARY_FRAGMENT(pyrevgrad, m) {
  m.def("cuda_build() -> str");
  m.def("cuda_problem(int device) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(pyrevgrad, CUDA, m) { PYREVGRAD_IMPLEMENT(m); }

STABLE_TORCH_LIBRARY_IMPL(pyrevgrad, CompositeExplicitAutograd, m) {
  m.impl("cuda_build", pyrevgrad::describe);
  m.impl("cuda_problem", pyrevgrad::problem);
}

// Importing the module loads the library, which registers the operations above.
PyMODINIT_FUNC PyInit__native_cuda() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   "_native_cuda",
                                   nullptr,
                                   -1,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
