// The operations over whatever computes: arguments from the stack, checks, layouts. Included by the
// one source of each library that registers them, which defines compute_forward and
// compute_backward for its kind of device.
//
// Boxed by hand on the C interface of the stable ABI: every handle on the stack is ours to free.
#pragma once

#include <torch/csrc/stable/library.h>

#include "cpu/storage.h"
#include "tensor.h"

namespace pyrevgrad {
namespace {

// y of work.input, the mask too where work.mask is given; tensors lie beside `x`.
void compute_forward(const Work& work, const Tensor& x);
// gx of work.input; a `scale` is a tensor of one number that multiplies the program's.
void compute_backward(const Work& work, const Tensor& gradient, const Tensor& scale);

Tensor tensor_from(StableIValue value) { return Tensor(reinterpret_cast<AtenTensorHandle>(value)); }

StableIValue to_stack(Tensor&& tensor) { return reinterpret_cast<StableIValue>(tensor.release()); }

// An optional is null or a heap cell that is ours to free.
Tensor optional_tensor_from(StableIValue value) {
  if (value == 0) return Tensor();
  auto* cell = reinterpret_cast<StableIValue*>(value);
  Tensor tensor = tensor_from(*cell);
  delete cell;
  return tensor;
}

std::vector<std::int64_t> optional_ints_from(StableIValue value) {
  using Ints = std::optional<std::vector<std::int64_t>>;
  return torch::stable::detail::to<Ints>(value).value_or(std::vector<std::int64_t>());
}

DType dtype_of(const Tensor& x) {
  static const std::int32_t float32 = aoti_torch_dtype_float32(),
                            float64 = aoti_torch_dtype_float64(),
                            bfloat16 = aoti_torch_dtype_bfloat16(),
                            float16 = aoti_torch_dtype_float16();
  const std::int32_t dtype = x.dtype();
  if (dtype == float32) return kFloat32;
  if (dtype == float64) return kFloat64;
  if (dtype == bfloat16) return kBfloat16;
  check(dtype == float16, "expected a float32, float64, bfloat16 or float16 tensor");
  return kFloat16;
}

Program program_from(const Tensor& tensor) {
  check(tensor.numel() == kProgramSize && dtype_of(tensor) == kFloat64 &&
            tensor.device_type() == aoti_torch_device_type_cpu(),
        "a program is a float64 CPU tensor of " + std::to_string(kProgramSize) + " numbers");
  const Program p = program_of(static_cast<const double*>(tensor.data()));
  check(p.activation >= 0 && p.activation < kActivations, "no such activation code");
  check(p.keeps >= Keeps::kNothing && p.keeps <= Keeps::kInput && p.mask_bit >= MaskBit::kNone &&
            p.mask_bit <= MaskBit::kInterval && p.gradient_gate >= GradientGate::kNone &&
            p.gradient_gate <= GradientGate::kOutput,
        "the program holds a code that does not exist");
  return p;
}

Tensor empty_mask(const Tensor& x, std::int64_t elements) {
  const std::int64_t bytes = (elements + 7) / 8, one = 1;
  return empty(1, &bytes, &one, aoti_torch_dtype_uint8(), x);
}

// y from x; the mask too where `mask` is given. A tensor that is not dense runs through a copy.
void run_forward(const Tensor& x, Tensor& y, Tensor* mask, const Program& program) {
  const std::int64_t elements = x.numel();
  if (mask) *mask = empty_mask(x, elements);
  Work work{program,
            x.data(),
            nullptr,
            y.data(),
            mask ? static_cast<std::uint8_t*>(mask->data()) : nullptr,
            elements};
  compute_forward(work, x);
}

Tensor forward_from(Tensor x, Tensor* mask, const Program& program) {
  if (is_dense(x)) {
    Tensor y = empty_like(x);
    run_forward(x, y, mask, program);
    return y;
  }
  Tensor y = clone(x);
  run_forward(y, y, mask, program);
  return y;
}

void forward_in_place(Tensor x, Tensor* mask, const Program& program) {
  if (is_dense(x)) return run_forward(x, x, mask, program);
  Tensor y = clone(x);
  run_forward(y, y, mask, program);
  copy(x, y);
}

Program masked_program_from(const Tensor& tensor) {
  const Program p = program_from(tensor);
  check(p.mask_bit != MaskBit::kNone, "the program has no mask");
  return p;
}

void value(StableIValue* stack, std::uint64_t, std::uint64_t) {
  Tensor x = tensor_from(stack[0]);
  const Program program = program_from(tensor_from(stack[1]));
  stack[0] = to_stack(forward_from(std::move(x), nullptr, program));
}

void value_and_mask(StableIValue* stack, std::uint64_t, std::uint64_t) {
  Tensor x = tensor_from(stack[0]), mask;
  const Program program = masked_program_from(tensor_from(stack[1]));
  stack[0] = to_stack(forward_from(std::move(x), &mask, program));
  stack[1] = to_stack(std::move(mask));
}

void value_in_place(StableIValue* stack, std::uint64_t, std::uint64_t) {
  Tensor x = tensor_from(stack[0]);
  forward_in_place(std::move(x), nullptr, program_from(tensor_from(stack[1])));
}

void value_and_mask_in_place(StableIValue* stack, std::uint64_t, std::uint64_t) {
  Tensor x = tensor_from(stack[0]), mask;
  forward_in_place(std::move(x), &mask, masked_program_from(tensor_from(stack[1])));
  stack[0] = to_stack(std::move(mask));
}

// `tensor` itself where it lies as `like` does, else a copy that does.
Tensor laid_out(Tensor tensor, const std::int64_t* strides) {
  const std::int64_t dim = tensor.dim();
  if (same_layout(dim, tensor.sizes(), tensor.strides(), strides)) return tensor;
  Tensor made = empty(dim, tensor.sizes(), strides, tensor.dtype(), tensor);
  copy(made, tensor);
  return made;
}

std::vector<std::int64_t> contiguous_strides(const Tensor& x) {
  const std::int64_t dim = x.dim();
  std::vector<std::int64_t> strides(dim);
  std::int64_t next = 1;
  for (std::int64_t i = dim - 1; i >= 0; --i) {
    strides[i] = next;
    next *= std::max<std::int64_t>(x.sizes()[i], 1);
  }
  return strides;
}

void check_same_device(const Tensor& gradient, const Tensor& other, const char* name) {
  const std::int32_t type = gradient.device_type();
  check(other.device_type() == type && (type == aoti_torch_device_type_cpu() ||
                                        other.device_index() == gradient.device_index()),
        std::string(name) + " is on another device than the gradient; move one to the other");
}

void check_same_shape(const Tensor& gradient, const Tensor& kept) {
  check(gradient.dim() == kept.dim() &&
            std::equal(gradient.sizes(), gradient.sizes() + gradient.dim(), kept.sizes()),
        "the gradient's shape differs from the kept tensor's");
  check(gradient.dtype() == kept.dtype(), "the gradient's dtype differs from the kept tensor's");
}

Tensor backward_with_mask(Tensor gradient, Tensor mask, const Program& program, const Tensor& scale,
                          std::vector<std::int64_t> strides) {
  const std::int64_t elements = gradient.numel();
  check(mask.numel() == (elements + 7) / 8 && mask.dtype() == aoti_torch_dtype_uint8(),
        "the mask does not belong to a tensor of the gradient's shape");
  // A saved-tensor hook may have brought it back otherwise than it was.
  if (mask.dim() != 1 || mask.strides()[0] != 1) {
    const std::vector<std::int64_t> in_order = contiguous_strides(mask);
    mask = laid_out(std::move(mask), in_order.data());
  }
  if (strides.empty()) strides = contiguous_strides(gradient);
  check(static_cast<std::int64_t>(strides.size()) == gradient.dim() &&
            is_dense(gradient.dim(), gradient.sizes(), strides.data()),
        "the strides of a mask must be dense and have the gradient's dimensions");
  gradient = laid_out(std::move(gradient), strides.data());
  Tensor gx = empty_like(gradient);
  compute_backward({program, gradient.data(), nullptr, gx.data(),
                    static_cast<std::uint8_t*>(mask.data()), elements},
                   gradient, scale);
  return gx;
}

Tensor backward_with_tensor(Tensor gradient, Tensor kept, const Program& program,
                            const Tensor& scale) {
  check_same_shape(gradient, kept);
  if (!is_dense(kept)) kept = clone(kept);
  gradient = laid_out(std::move(gradient), kept.strides());
  Tensor gx = empty_like(kept);
  compute_backward({program, gradient.data(), kept.data(), gx.data(), nullptr, gradient.numel()},
                   gradient, scale);
  return gx;
}

Tensor backward_with_nothing(Tensor gradient, const Program& program, const Tensor& scale) {
  const bool dense = is_dense(gradient);
  if (!dense) gradient = clone(gradient);
  Tensor gx = dense ? empty_like(gradient) : Tensor();
  compute_backward({program, gradient.data(), nullptr, dense ? gx.data() : gradient.data(), nullptr,
                    gradient.numel()},
                   gradient, scale);
  return dense ? std::move(gx) : std::move(gradient);
}

void backward(StableIValue* stack, std::uint64_t, std::uint64_t) {
  Tensor gradient = tensor_from(stack[0]);
  Tensor kept = optional_tensor_from(stack[1]);
  Tensor numbers = tensor_from(stack[2]);
  Tensor scale = optional_tensor_from(stack[3]);
  std::vector<std::int64_t> strides = optional_ints_from(stack[4]);
  const Program program = program_from(numbers);
  if (kept) check_same_device(gradient, kept, "the kept tensor");
  if (scale) {
    check(scale.numel() == 1, "a tensor scale must hold one number");
    check_same_device(gradient, scale, "the tensor scale");
  }
  check(static_cast<bool>(kept) == (program.keeps != Keeps::kNothing),
        "the program and the kept tensor do not belong together");
  if (program.keeps == Keeps::kNothing) {
    stack[0] = to_stack(backward_with_nothing(std::move(gradient), program, scale));
  } else if (program.keeps == Keeps::kMask) {
    stack[0] = to_stack(backward_with_mask(std::move(gradient), std::move(kept), program, scale,
                                           std::move(strides)));
  } else {
    stack[0] = to_stack(backward_with_tensor(std::move(gradient), std::move(kept), program, scale));
  }
}

}  // namespace
}  // namespace pyrevgrad

#define PYREVGRAD_IMPLEMENT(m)                                   \
  m.impl("value", pyrevgrad::value);                             \
  m.impl("value_and_mask", pyrevgrad::value_and_mask);           \
  m.impl("value_", pyrevgrad::value_in_place);                   \
  m.impl("value_and_mask_", pyrevgrad::value_and_mask_in_place); \
  m.impl("backward", pyrevgrad::backward)
