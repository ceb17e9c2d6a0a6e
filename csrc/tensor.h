// A tensor handle of the stable ABI, owned; and the few questions that the operations ask of it.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "memory.h"

namespace pyrevgrad {

inline void check(bool holds, const std::string& message) {
  if (!holds) throw std::runtime_error("pyrevgrad: " + message);
}

inline void check_shim(AOTITorchError error, const char* what) {
  if (error != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error(std::string("pyrevgrad: ") + what + " failed");
  }
}
#define PYREVGRAD_SHIM(CALL) ::pyrevgrad::check_shim((CALL), #CALL)

class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor() {
    if (handle_) aoti_torch_delete_tensor_object(handle_);
  }

  explicit operator bool() const { return handle_ != nullptr; }
  AtenTensorHandle get() const { return handle_; }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

  std::int64_t dim() const {
    std::int64_t value;
    PYREVGRAD_SHIM(aoti_torch_get_dim(handle_, &value));
    return value;
  }
  std::int64_t numel() const {
    std::int64_t value;
    PYREVGRAD_SHIM(aoti_torch_get_numel(handle_, &value));
    return value;
  }
  const std::int64_t* sizes() const {
    std::int64_t* value;
    PYREVGRAD_SHIM(aoti_torch_get_sizes(handle_, &value));
    return value;
  }
  const std::int64_t* strides() const {
    std::int64_t* value;
    PYREVGRAD_SHIM(aoti_torch_get_strides(handle_, &value));
    return value;
  }
  std::int32_t dtype() const {
    std::int32_t value;
    PYREVGRAD_SHIM(aoti_torch_get_dtype(handle_, &value));
    return value;
  }
  std::int32_t device_type() const {
    std::int32_t value;
    PYREVGRAD_SHIM(aoti_torch_get_device_type(handle_, &value));
    return value;
  }
  std::int32_t device_index() const {
    std::int32_t value;
    PYREVGRAD_SHIM(aoti_torch_get_device_index(handle_, &value));
    return value;
  }
  void* data() const {
    void* value;
    PYREVGRAD_SHIM(torch_get_mutable_data_ptr(handle_, &value));
    return value;
  }

 private:
  AtenTensorHandle handle_ = nullptr;
};

[[noreturn]] inline void no_memory(std::int64_t elements) {
  throw std::runtime_error(std::string("pyrevgrad: ") + kNoMemory + " a tensor of " +
                           std::to_string(elements) + " elements");
}

inline Tensor empty(std::int64_t dim, const std::int64_t* sizes, const std::int64_t* strides,
                    std::int32_t dtype, const Tensor& like) {
  AtenTensorHandle made;
  if (aoti_torch_empty_strided(dim, sizes, strides, dtype, like.device_type(), like.device_index(),
                               &made) != AOTI_TORCH_SUCCESS) {
    no_memory(std::accumulate(sizes, sizes + dim, std::int64_t(1), std::multiplies<>()));
  }
  return Tensor(made);
}

inline Tensor empty_like(const Tensor& like) {
  return empty(like.dim(), like.sizes(), like.strides(), like.dtype(), like);
}

// A dense copy in the order of the dimensions that torch.empty_like gives.
inline Tensor clone(const Tensor& from) {
  AtenTensorHandle made;
  if (aoti_torch_clone(from.get(), &made) != AOTI_TORCH_SUCCESS) no_memory(from.numel());
  return Tensor(made);
}

inline void copy(const Tensor& to, const Tensor& from) {
  PYREVGRAD_SHIM(aoti_torch_copy_(to.get(), from.get(), 0));
}

// Whether two stride lists place `sizes` alike; the stride of a size-1 dimension means nothing.
inline bool same_layout(std::int64_t dim, const std::int64_t* sizes, const std::int64_t* a,
                        const std::int64_t* b) {
  for (std::int64_t i = 0; i < dim; ++i) {
    if (sizes[i] != 1 && a[i] != b[i]) return false;
  }
  return true;
}

// Whether the elements fill one stretch of memory, each once, in some order of the dimensions.
inline bool is_dense(std::int64_t dim, const std::int64_t* sizes, const std::int64_t* strides) {
  std::int64_t expected = 1, i = dim - 1;
  while (i >= 0 && (sizes[i] == 1 || strides[i] == expected)) expected *= sizes[i--];
  if (i < 0) return true;
  std::vector<std::int64_t> order;
  for (i = 0; i < dim; ++i) {
    if (sizes[i] > 1) order.push_back(i);
  }
  std::sort(order.begin(), order.end(),
            [strides](std::int64_t a, std::int64_t b) { return strides[a] < strides[b]; });
  expected = 1;
  for (const std::int64_t j : order) {
    if (strides[j] != expected) return false;
    expected *= sizes[j];
  }
  return true;
}

inline bool is_dense(const Tensor& x) { return is_dense(x.dim(), x.sizes(), x.strides()); }

}  // namespace pyrevgrad
