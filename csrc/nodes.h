// What the nodes of autograd share: how they are counted, what they call in Python and hand back,
// and which tensors they may serve. For csrc/autograd.cpp alone.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <cstring>
#include <initializer_list>
#include <mutex>
#include <utility>

#include "memory.h"

namespace pyrevgrad {
namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Nodes are counted by c10's pointers in newer versions of torch and by the standard's in older.
constexpr bool intrusive = std::is_base_of_v<c10::intrusive_ptr_target, Node>;
template <class N, class... Arguments>
auto make_node(Arguments&&... arguments) {
  if constexpr (intrusive) {
    return c10::make_intrusive<N>(std::forward<Arguments>(arguments)...);
  } else {
    return std::make_shared<N>(std::forward<Arguments>(arguments)...);
  }
}
template <class N>
auto pointer_to(N* node) {
  if constexpr (intrusive) {
    return c10::intrusive_ptr<Node>::reclaim_copy(node);
  } else {
    return node->shared_from_this();
  }
}

// A node that compiled autograd, which asks this of each node, cannot read.
struct OwnNode : Node {
  void compiled_args(torch::autograd::CompiledNodeArgs& /*args*/) const override {
    TORCH_CHECK_NOT_IMPLEMENTED(
        false, "pyrevgrad: compiled autograd cannot read the C++ node ", name(),
        "; set PYREVGRAD_AUTOGRAD=python in the environment, which records calls in Python");
  }
};

// What a node has saved. Another thread that runs backward over the same graph may release it
// meanwhile, under the node's own lock.
template <class N>
Tensor unpacked(N& node, std::mutex& mutex, const SavedVariable& saved) {
  const std::lock_guard lock(mutex);
  return saved.unpack(pointer_to(&node));
}

// The error of PyTorch itself where an operation on `x` got no memory for a result like it and its
// mask: raised by asking for both again.
void ask_again(const std::exception& error, const Tensor& x) {
  if (std::strstr(error.what(), kNoMemory) == nullptr) return;
  const Tensor result = at::empty_like(x);
  const Tensor mask = at::empty({(x.numel() + 7) / 8}, x.options().dtype(at::kByte));
}

// An operation of csrc/library.cpp, called below autograd; `x` is the first of its arguments.
struct Operation {
  explicit Operation(const char* name)
      : handle(c10::Dispatcher::singleton().findSchemaOrThrow(name, "")) {}
  torch::jit::Stack operator()(const Tensor& x, torch::jit::Stack stack) const {
    const at::AutoDispatchBelowADInplaceOrView below;
    try {
      handle.callBoxed(stack);
    } catch (const std::exception& error) {
      ask_again(error, x);
      throw;
    }
    return stack;
  }
  c10::OperatorHandle handle;
};
c10::IValue optional(const Tensor& tensor) {
  return tensor.defined() ? c10::IValue(tensor) : c10::IValue();
}

// What raised in Python, to be raised again where backward was called.
[[noreturn]] void raise() {
  python_error error;
  error.persist();
  throw error;
}

class Reference {
 public:
  explicit Reference(PyObject* made) : object_(made) {
    if (made == nullptr) raise();
  }
  Reference(const Reference&) = delete;
  ~Reference() { Py_DECREF(object_); }
  PyObject* get() const { return object_; }

 private:
  PyObject* object_;
};

PyObject* wrapped(const Tensor& tensor) {
  return tensor.defined() ? THPVariable_Wrap(tensor) : Py_NewRef(Py_None);
}

// What `function` returns, a new reference; it takes over the arguments.
PyObject* result_of(PyObject* function, std::initializer_list<PyObject*> arguments) {
  const Reference tuple(PyTuple_New(static_cast<Py_ssize_t>(arguments.size())));
  Py_ssize_t i = 0;
  for (PyObject* argument : arguments) PyTuple_SET_ITEM(tuple.get(), i++, argument);
  return PyObject_CallObject(function, tuple.get());
}

// The tensor that `function` returns.
Tensor called(PyObject* function, std::initializer_list<PyObject*> arguments) {
  const Reference result(result_of(function, arguments));
  return THPVariable_Unpack(result.get());
}

// What the Functions, or their errors, must serve: subclasses, transforms, tracers, other types.
bool is_plain(const Tensor& x) {
  using Key = c10::DispatchKey;
  static const c10::DispatchKeySet special({Key::Python, Key::Negative, Key::Conjugate,
                                            Key::ZeroTensor, Key::Functionalize,
                                            Key::FuncTorchBatched, Key::FuncTorchGradWrapper});
  static const c10::DispatchKeySet transforms(
      {Key::FuncTorchDynamicLayerFrontMode, Key::FuncTorchDynamicLayerBackMode});
  return x.layout() == at::kStrided && !x.is_nested() && !x.key_set().has_any(special) &&
         !c10::impl::tls_local_dispatch_key_set().included_.has_any(transforms) &&
         !torch::jit::tracer::isTracing() && !torch::autograd::isFwGradDefined(x);
}

bool is_half(const Tensor& x) {
  return x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
}
bool is_full(const Tensor& x) {
  return x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble;
}

}  // namespace
}  // namespace pyrevgrad
