// A CUDA device that is not there: tensors that say they lie on it and lie in the host's memory.
//
// For a torch without CUDA. torch.ops.cuda_on_host.labelled(tensor, index) is the same memory as a
// tensor of cuda:index, or of the CPU where index is -1. By the guard and the hooks autograd's
// engine starts a thread for each such device and follows their streams. The hooks are asked for
// once, so this is to be loaded before torch.
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/FakeGuardImpl.h>
#include <torch/library.h>

namespace at {

// The name that the registry is asked for.
struct CUDAHooks : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return c10::impl::kFakeGuardImplMaxDevices; }
};
REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at

namespace {

using Guard = c10::impl::FakeGuardImpl<c10::DeviceType::CUDA>;
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

void forget(void* held) { delete static_cast<at::Tensor*>(held); }

at::Tensor labelled(const at::Tensor& tensor, int64_t index) {
  const bool cpu = index < 0;
  const c10::Device device(cpu ? c10::kCPU : c10::kCUDA, cpu ? -1 : static_cast<int>(index));
  void* memory = tensor.numel() ? tensor.data_ptr() : nullptr;
  c10::DataPtr data(memory, new at::Tensor(tensor.detach()), forget, device);
  const auto bytes = tensor.storage().nbytes() - tensor.storage_offset() * tensor.itemsize();
  c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, std::move(data), nullptr, false);
  const c10::DispatchKeySet keys(cpu ? c10::DispatchKey::CPU : c10::DispatchKey::CUDA);
  auto impl = c10::make_intrusive<c10::TensorImpl>(std::move(storage), keys, tensor.dtype());
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides());
  return at::Tensor(std::move(impl));
}

}  // namespace

TORCH_LIBRARY(cuda_on_host, m) {
  m.def("labelled(Tensor tensor, int index) -> Tensor");
  m.impl("labelled", c10::DispatchKey::CompositeExplicitAutograd, labelled);
}
