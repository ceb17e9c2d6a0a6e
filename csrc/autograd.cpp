// Autograd's part of a call on PyTorch's own C++ interface: for a plain eager tensor, the nodes
// that pyrevgrad/autograd.py writes as Functions, in less host time. CPU tensors, and those of CUDA
// devices that Python has found the native kernels to run on: until then, and of what it cannot
// decide, it answers NotImplemented, and the choice, the errors and the words are Python's.
//
// Unlike the rest of csrc it is bound to the torch and the Python that it was built with. So it is
// optional: where it is missing or is another torch's, the Functions serve. The operations are
// called through the dispatcher, so that modes and profilers see them.
#include <c10/core/SafePyObject.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <utility>
#include <vector>

#include "folded.h"
#include "nodes.h"
#include "rule.h"

namespace pyrevgrad {
namespace {

Tensor value(const Tensor& x, const Tensor& program) {
  static const Operation operation("pyrevgrad::value");
  return operation(x, {x, program})[0].toTensor();
}
// Functions of pyrevgrad/autograd.py for what is differentiated again; set once, by `configure`.
PyObject* any_order = nullptr;
PyObject* derivative_of_output = nullptr;

// y as a function of x with slope f'(x), whatever rule y itself was recorded under.
struct DerivativeOfOutput : OwnNode {
  explicit DerivativeOfOutput(c10::SafePyObject p) : pair(std::move(p)) {}
  std::string name() const override { return "DerivativeOfOutput"; }
  void release_variables() override {
    const std::lock_guard lock(mutex_);
    y.reset_data();
  }

  variable_list apply(variable_list&& gradients) override {
    if (!gradients[0].defined()) return {Tensor()};
    const Tensor kept = unpacked(*this, mutex_, y);
    const pybind11::gil_scoped_acquire gil;
    PyObject* own = Py_NewRef(pair.ptr(getPyInterpreter()));
    return {called(derivative_of_output, {wrapped(gradients[0]), wrapped(kept), own})};
  }

  SavedVariable y;
  c10::SafePyObject pair;
};

// A pair as Python hands it over: (program, exact, passes_through, pair).
struct Handle {
  explicit Handle(PyObject* tuple)
      : program(THPVariable_Unpack(PyTuple_GET_ITEM(tuple, 0))),
        keeps(static_cast<Keeps>(static_cast<int>(program.const_data_ptr<double>()[kKeeps]))),
        exact(PyTuple_GET_ITEM(tuple, 1) == Py_True),
        passes_through(PyTuple_GET_ITEM(tuple, 2) == Py_True),
        pair(PyTuple_GET_ITEM(tuple, 3)) {}
  const Tensor& program;
  Keeps keeps;
  bool exact, passes_through;
  PyObject* pair;
};

struct ModifiedBackward : OwnNode {
  ModifiedBackward(const Tensor& x, const Handle& handle, const Tensor& live)
      : keeps(handle.keeps),
        passes_through(handle.passes_through && !live.defined()),
        detached(keeps == Keeps::kOutput && (live.defined() || !handle.exact)),
        program(handle.program),
        scale(live),
        pair(Py_NewRef(handle.pair), getPyInterpreter()) {
    set_next_edges(torch::autograd::collect_next_edges(x));
  }
  std::string name() const override { return "ModifiedBackward"; }
  void release_variables() override {
    const std::lock_guard lock(mutex_);
    kept.reset_data();
  }

  variable_list apply(variable_list&& gradients) override {
    const Tensor& g = gradients[0];
    if (!g.defined()) return {Tensor()};
    Tensor saved;
    if (keeps != Keeps::kNothing) saved = unpacked(*this, mutex_, kept);
    if (at::GradMode::is_enabled()) return {differentiable(g, saved)};
    if (passes_through) return {g};
    TORCH_CHECK_TYPE(g.layout() == at::kStrided,
                     "a rule's backward takes dense gradients, got one "
                     "of layout ",
                     g.layout(), "; call .to_dense() on it");
    // A batch of gradients of torch.func, or one with a tangent.
    if (g.key_set().has(c10::DispatchKey::FuncTorchBatched) ||
        torch::autograd::isFwGradDefined(g)) {
      return {differentiable(g, saved)};
    }
    static const Operation operation("pyrevgrad::backward");
    c10::IValue laid = strides.empty() ? c10::IValue() : c10::IValue(strides);
    return {operation(g, {g, optional(saved), program, optional(scale), std::move(laid)})[0]
                .toTensor()};
  }

  Tensor differentiable(const Tensor& g, Tensor saved) {
    if (detached) saved = leading_to_x(saved);
    const pybind11::gil_scoped_acquire gil;
    PyObject* laid = Py_NewRef(Py_None);
    if (!strides.empty()) {
      laid = PyTuple_New(static_cast<Py_ssize_t>(strides.size()));
      for (std::size_t i = 0; i < strides.size(); ++i) {
        PyTuple_SET_ITEM(laid, static_cast<Py_ssize_t>(i), PyLong_FromLongLong(strides[i]));
      }
    }
    PyObject* own = Py_NewRef(pair.ptr(getPyInterpreter()));
    return called(any_order, {wrapped(g), wrapped(saved), own, wrapped(scale), laid});
  }

  // The kept output with a history of its own: through this node it would meet the rule.
  Tensor leading_to_x(const Tensor& y) {
    auto node = make_node<DerivativeOfOutput>(pair);
    node->set_next_edges({next_edge(0)});
    Tensor leading = y.detach();
    torch::autograd::set_history(leading, node);
    node->y = SavedVariable(leading, true);
    return leading;
  }

  Keeps keeps;
  bool passes_through;
  bool detached;  // what is kept has no history
  Tensor program, scale;
  c10::SafePyObject pair;
  SavedVariable kept;
  std::vector<std::int64_t> strides;  // of a mask whose tensor was not contiguous
};

using Pointer = decltype(make_node<ModifiedBackward>(
    std::declval<const Tensor&>(), std::declval<const Handle&>(), std::declval<const Tensor&>()));

Tensor recorded(const Tensor& x, const Handle& handle, const Pointer& node) {
  Tensor y;
  if (handle.keeps == Keeps::kMask) {
    static const Operation operation("pyrevgrad::value_and_mask");
    auto made = operation(x, {x, handle.program});
    y = std::move(made[0]).toTensor();
    if (!y.is_contiguous()) node->strides = y.strides().vec();
    node->kept = SavedVariable(std::move(made[1]).toTensor(), false);
  } else {
    y = value(x, handle.program);
    if (handle.keeps == Keeps::kInput) node->kept = SavedVariable(x, false);
  }
  torch::autograd::set_history(y, node);
  if (handle.keeps == Keeps::kOutput) {
    node->kept = node->detached ? SavedVariable(y.detach(), false) : SavedVariable(y, true);
  }
  return y;
}

// The identity as a view of x, which PyTorch lets nobody overwrite, as any view made in a Function.
Tensor recorded_view(const Tensor& x, const Handle&, const Pointer& node) {
  Tensor alias;
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    alias = x.view_as(x);
  }
  Tensor y = torch::autograd::as_view(x, alias, true, false, nullptr, nullptr,
                                      torch::autograd::CreationMeta::IN_CUSTOM_FUNCTION);
  torch::autograd::set_history(y, node);
  return y;
}

// Whether x may be overwritten at once: where it may not, Python makes a copy, or the error. Modes
// may run less than all operations, or look at what each returns.
bool may_overwrite(const Tensor& x, const Handle& handle, const Tensor& live) {
  if (c10::impl::TorchDispatchModeTLS::any_modes_set()) return false;
  if (!x.is_non_overlapping_and_dense() || x.is_inference()) return false;
  if (!(x.requires_grad() && at::GradMode::is_enabled())) return true;
  const bool needs_copy = handle.keeps == Keeps::kInput ||
                          (handle.keeps == Keeps::kOutput && (live.defined() || !handle.exact));
  return !needs_copy && !x.is_leaf() && !x.is_view();
}

Tensor overwritten(const Tensor& x, const Handle& handle) {
  static const Operation operation("pyrevgrad::value_");
  operation(x, {x, handle.program});
  torch::autograd::increment_version(x);
  return x;
}

Tensor recorded_in_place(const Tensor& x, const Handle& handle, const Pointer& node) {
  if (handle.keeps == Keeps::kMask) {
    static const Operation operation("pyrevgrad::value_and_mask_");
    node->kept = SavedVariable(operation(x, {x, handle.program})[0].toTensor(), false);
    if (!x.is_contiguous()) node->strides = x.strides().vec();
    torch::autograd::increment_version(x);
  } else {
    overwritten(x, handle);
  }
  torch::autograd::rebase_history(x, node);
  if (handle.keeps == Keeps::kOutput) node->kept = SavedVariable(x, true);
  return x;
}

// CUDA devices that the native kernels run on, by index; read and written under the interpreter.
std::vector<bool> cuda_devices;

bool is_served(const Tensor& x) {
  if (!x.is_cuda()) return x.is_cpu();
  const auto index = static_cast<std::size_t>(x.get_device());
  return index < cuda_devices.size() && cuda_devices[index];
}

// (x, full, half, scale): y by `record`, or by `plain` where no gradient is needed. NotImplemented
// where the Functions must serve.
template <class Record, class Plain>
PyObject* served(PyObject* const* arguments, Record record, Plain plain, bool in_place = false) {
  if (!THPVariable_CheckExact(arguments[0])) return Py_NewRef(Py_NotImplemented);
  const Tensor& x = THPVariable_Unpack(arguments[0]);
  if (!(is_served(x) && (is_full(x) || is_half(x)) && is_plain(x))) {
    return Py_NewRef(Py_NotImplemented);
  }
  Tensor scale;
  if (arguments[3] != Py_None) {
    scale = THPVariable_Unpack(arguments[3]);
    if (scale.requires_grad() || scale.device() != x.device()) return Py_NewRef(Py_NotImplemented);
  }
  const Handle handle(arguments[is_half(x) ? 2 : 1]);
  if (in_place && !may_overwrite(x, handle, scale)) return Py_NewRef(Py_NotImplemented);
  Pointer node;  // made while the interpreter is ours: it counts a reference to the pair
  if (x.requires_grad() && at::GradMode::is_enabled()) {
    node = make_node<ModifiedBackward>(x, handle, scale);
  }
  Tensor y;
  {
    const pybind11::gil_scoped_release others_run;
    y = node ? record(x, handle, node) : plain(x, handle);
  }
  return THPVariable_Wrap(std::move(y));
}

PyObject* call(PyObject*, PyObject* const* arguments, Py_ssize_t) {
  HANDLE_TH_ERRORS
  return served(arguments, recorded,
                [](const Tensor& x, const Handle& handle) { return value(x, handle.program); });
  END_HANDLE_TH_ERRORS
}

PyObject* call_in_place(PyObject*, PyObject* const* arguments, Py_ssize_t) {
  HANDLE_TH_ERRORS
  return served(arguments, recorded_in_place, overwritten, true);
  END_HANDLE_TH_ERRORS
}

PyObject* call_view(PyObject*, PyObject* const* arguments, Py_ssize_t) {
  HANDLE_TH_ERRORS
  return served(arguments, recorded_view,
                [](const Tensor& x, const Handle&) { return x.view_as(x); });
  END_HANDLE_TH_ERRORS
}

PyObject* configure(PyObject*, PyObject* arguments) {
  if (!PyArg_ParseTuple(arguments, "OO", &any_order, &derivative_of_output)) return nullptr;
  Py_INCREF(any_order);
  Py_INCREF(derivative_of_output);
  Py_RETURN_NONE;
}

PyObject* configure_folding(PyObject*, PyObject* arguments) {
  if (!PyArg_ParseTuple(arguments, "OO", &linear_any_order, &convolution_any_order)) return nullptr;
  Py_INCREF(linear_any_order);
  Py_INCREF(convolution_any_order);
  Py_RETURN_NONE;
}

PyObject* serve_cuda(PyObject*, PyObject* argument) {
  const std::size_t index = PyLong_AsSize_t(argument);
  if (PyErr_Occurred()) return nullptr;
  if (index >= cuda_devices.size()) cuda_devices.resize(index + 1);
  cuda_devices[index] = true;
  Py_RETURN_NONE;
}

#define PYREVGRAD_FAST(NAME) \
  {#NAME, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(NAME)), METH_FASTCALL, nullptr}
PyMethodDef methods[] = {PYREVGRAD_FAST(call),
                         PYREVGRAD_FAST(call_in_place),
                         PYREVGRAD_FAST(call_view),
                         PYREVGRAD_FAST(folded_linear),
                         PYREVGRAD_FAST(folded_convolution),
                         {"configure", configure, METH_VARARGS, nullptr},
                         {"configure_folding", configure_folding, METH_VARARGS, nullptr},
                         {"serve_cuda", serve_cuda, METH_O, nullptr},
                         {nullptr, nullptr, 0, nullptr}};

}  // namespace
}  // namespace pyrevgrad

PyMODINIT_FUNC PyInit__autograd() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   "_autograd",
                                   nullptr,
                                   -1,
                                   pyrevgrad::methods,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
