// A linear layer behind a gradient reversal, −λ folded into the product that makes the gradient of
// x: the node of what pyrevgrad/folding.py writes as a Function. For csrc/autograd.cpp alone.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/utils/python_arg_parser.h>

#include <array>
#include <vector>

#include "nodes.h"

namespace pyrevgrad {
namespace {

// The function of pyrevgrad/folding.py for what is differentiated again or comes in batches.
PyObject* folded_any_order = nullptr;

struct FoldedLinearBackward : Node {
  FoldedLinearBackward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                       const Tensor& live)
      : shape(x.sizes().vec()), scale(live) {
    set_next_edges(torch::autograd::collect_next_edges(x, weight, bias));
    // The gradient of W alone reads x.
    if (should_compute_output(1)) kept = SavedVariable(x, false);
    factor = SavedVariable(weight, false);
  }
  std::string name() const override { return "FoldedLinearBackward"; }
  void release_variables() override {
    kept.reset_data();
    factor.reset_data();
  }

  variable_list apply(variable_list&& gradients) override {
    const Tensor& g = gradients[0];
    variable_list found(3);
    if (!g.defined()) return found;
    const std::array<bool, 3> wanted{task_should_compute_output(0), task_should_compute_output(1),
                                     task_should_compute_output(2)};
    const Tensor x = wanted[1] ? kept.unpack(pointer_to(this)) : Tensor();
    const Tensor weight = wanted[0] ? factor.unpack(pointer_to(this)) : Tensor();
    const bool batched = g.key_set().has(c10::DispatchKey::Batched);
    if (at::GradMode::is_enabled() || batched || !is_plain(g)) {
      differentiable(g, x, weight, wanted[2], found);
      return found;
    }
    const std::int64_t rows = c10::multiply_integers(shape.begin(), shape.end() - 1);
    const Tensor g2 = g.dim() == 2 ? g : g.reshape({rows, g.size(-1)});
    if (wanted[0]) {
      // Fresh storage for the product alone, so that autograd may add to it in place.
      found[0] = at::empty(shape, g2.options());
      // beta 0: what is there is not read.
      Tensor flat = shape.size() == 2 ? found[0] : found[0].view({rows, shape.back()});
      flat.addmm_(g2, weight, 0, -number());
    }
    if (wanted[1]) found[1] = g2.t().mm(x.dim() == 2 ? x : x.reshape({rows, shape.back()}));
    if (wanted[2]) found[2] = g2.sum(0);
    return found;
  }

  void differentiable(const Tensor& g, const Tensor& x, const Tensor& weight, bool bias,
                      variable_list& found) {
    const pybind11::gil_scoped_acquire gil;
    const Reference sizes(PyTuple_New(static_cast<Py_ssize_t>(shape.size())));
    for (std::size_t i = 0; i < shape.size(); ++i) {
      PyTuple_SET_ITEM(sizes.get(), static_cast<Py_ssize_t>(i), PyLong_FromLongLong(shape[i]));
    }
    const Reference made(result_of(
        folded_any_order,
        {wrapped(g), wrapped(x), wrapped(weight), wrapped(scale), PyFloat_FromDouble(number()),
         Py_NewRef(sizes.get()), Py_NewRef(bias ? Py_True : Py_False)}));
    for (std::size_t i = 0; i < found.size(); ++i) {
      PyObject* one = PyTuple_GET_ITEM(made.get(), static_cast<Py_ssize_t>(i));
      if (one != Py_None) found[i] = THPVariable_Unpack(one);
    }
  }

  // λ when backward runs: a schedule may change it until then.
  double number() const { return *scale.const_data_ptr<double>(); }

  std::vector<std::int64_t> shape;  // of x
  Tensor scale;
  SavedVariable kept, factor;
};

// Whether the layer's parameter is one that a plain linear layer of x could have.
bool fits(const Tensor& parameter, const Tensor& x) {
  return parameter.is_cpu() && parameter.scalar_type() == x.scalar_type() && is_plain(parameter);
}

// (x, weight, bias, scale): y. NotImplemented where the Function or its errors must serve.
PyObject* folded_linear(PyObject*, PyObject* const* arguments, Py_ssize_t) {
  HANDLE_TH_ERRORS
  PyObject* const declined = Py_NotImplemented;
  for (const int i : {0, 1, 3}) {
    if (!THPVariable_CheckExact(arguments[i])) return Py_NewRef(declined);
  }
  const bool biased = arguments[2] != Py_None;
  if (biased && !THPVariable_CheckExact(arguments[2])) return Py_NewRef(declined);
  const Tensor& x = THPVariable_Unpack(arguments[0]);
  const Tensor& weight = THPVariable_Unpack(arguments[1]);
  const Tensor& scale = THPVariable_Unpack(arguments[3]);
  const Tensor bias = biased ? THPVariable_Unpack(arguments[2]) : Tensor();
  if (!(x.is_cpu() && (is_full(x) || is_half(x)) && is_plain(x) && fits(weight, x) &&
        (!biased || fits(bias, x)) && weight.dim() == 2 && x.dim() > 0 &&
        x.size(-1) == weight.size(1) && is_plain(scale) && scale.is_cpu() &&
        scale.scalar_type() == at::kDouble && scale.dim() == 0 && !scale.requires_grad()) ||
      at::autocast::is_autocast_enabled(at::kCPU) || at::impl::torch_function_mode_enabled()) {
    return Py_NewRef(declined);
  }
  Tensor y;
  {
    const pybind11::gil_scoped_release others_run;
    if (!(x.requires_grad() && at::GradMode::is_enabled())) {
      y = at::linear(x, weight, biased ? std::optional<Tensor>(bias) : std::nullopt);
    } else {
      auto node = make_node<FoldedLinearBackward>(x, weight, bias, scale);
      {
        // Not below autograd, where a mode would be shown linear and not what it is made of.
        const at::NoGradGuard unrecorded;
        y = at::linear(x, weight, biased ? std::optional<Tensor>(bias) : std::nullopt);
      }
      torch::autograd::set_history(y, node);
    }
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

}  // namespace
}  // namespace pyrevgrad
