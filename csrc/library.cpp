// The library: schemas, and the operations on CPU tensors. Autograd lives in pyrevgrad/autograd.py
// and csrc/autograd.cpp.
#include <Python.h>

#include <limits>

#include "cpu/dispatch.h"
#include "cpu/pages.h"
#include "cpu/writing.h"
#include "operations.h"

namespace pyrevgrad {
namespace {

// The number in a 0-dim floating tensor, read on the host: it lies on the CPU.
double number_in(const Tensor& scale) {
  switch (dtype_of(scale)) {
    case kFloat32:
      return *static_cast<const float*>(scale.data());
    case kFloat64:
      return *static_cast<const double*>(scale.data());
    default: {
      Tensor wide = empty(0, nullptr, nullptr, aoti_torch_dtype_float64(), scale);
      copy(wide, scale);
      return *static_cast<const double*>(wide.data());
    }
  }
}

void parallel_for(std::int64_t blocks, std::int64_t grain,
                  void (*run)(std::int64_t, std::int64_t, void*), void* context) {
  PYREVGRAD_SHIM(torch_parallel_for(0, blocks, grain, run, context));
}

std::int64_t threads() {
  std::uint32_t count;
  PYREVGRAD_SHIM(torch_get_num_threads(&count));
  return count;
}

// Memory for a result that is written for the first time.
void prepare(const Work& work, DType dtype) {
  const std::int64_t bytes = work.size * cpu::size_of(dtype);
  if (work.output == work.input || bytes < cpu::kHugeFrom || !cpu::asks_for_huge_pages()) return;
  if (bytes >= cpu::kHugeFrom * threads()) cpu::ask_for_huge_pages(work.output, bytes);
}

void compute_forward(const Work& work, const Tensor& x) {
  prepare(work, dtype_of(x));
  cpu::forward(work, dtype_of(x), parallel_for);
}

void compute_backward(const Work& work, const Tensor& gradient, const Tensor& scale) {
  Work scaled = work;
  double& factor = scaled.program.scale;
  if (scale) factor *= number_in(scale);
  // One NaN for all: the kernels' rounding to bfloat16 counts on its low bits.
  if (factor != factor) factor = std::numeric_limits<double>::quiet_NaN();
  prepare(scaled, dtype_of(gradient));
  cpu::backward(scaled, dtype_of(gradient), parallel_for);
}

// What this build holds, for show_config(): the names in code order, then the instruction set, then
// whether large results ask for huge pages, then the bytes from which they pass the caches by.
void describe(StableIValue* stack, std::uint64_t, std::uint64_t) {
  std::string text;
#define PYREVGRAD_NAME(functor, name) text += name ",";
  PYREVGRAD_ACTIVATIONS(PYREVGRAD_NAME)
#undef PYREVGRAD_NAME
  text += cpu::kernels().capability;
  text += cpu::asks_for_huge_pages() ? ",1" : ",0";
  text += "," + std::to_string(cpu::writing_here().streams_from);
  stack[0] = torch::stable::detail::from(text);
}

}  // namespace
}  // namespace pyrevgrad

STABLE_TORCH_LIBRARY(pyrevgrad, m) {
  m.def("value(Tensor x, Tensor program) -> Tensor");
  m.def("value_and_mask(Tensor x, Tensor program) -> (Tensor, Tensor)");
  m.def("value_(Tensor(a!) x, Tensor program) -> ()");
  m.def("value_and_mask_(Tensor(a!) x, Tensor program) -> Tensor");
  m.def(
      "backward(Tensor gradient, Tensor? kept, Tensor program, Tensor? scale=None, "
      "SymInt[]? strides=None) -> Tensor");
  m.def("describe() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(pyrevgrad, CPU, m) { PYREVGRAD_IMPLEMENT(m); }

STABLE_TORCH_LIBRARY_IMPL(pyrevgrad, CompositeExplicitAutograd, m) {
  m.impl("describe", pyrevgrad::describe);
}

// Importing the module loads the library, which registers the operations above.
PyMODINIT_FUNC PyInit__native() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_native", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
