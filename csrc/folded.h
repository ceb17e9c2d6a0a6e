// A linear layer and a convolution behind a gradient reversal, −λ folded into the product that
// makes the gradient of x: the nodes of what pyrevgrad/folding.py writes as Functions. For
// csrc/autograd.cpp alone.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <c10/core/SafePyObject.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/utils/python_arg_parser.h>

#include <array>
#include <cmath>
#include <vector>

#include "nodes.h"

namespace pyrevgrad {
namespace {

// Functions of pyrevgrad/folding.py for what is differentiated again or comes in batches.
PyObject* linear_any_order = nullptr;
PyObject* convolution_any_order = nullptr;

// The gradients that such a function returned: a tuple of tensors and of None.
void take(PyObject* made, variable_list& found) {
  for (std::size_t i = 0; i < found.size(); ++i) {
    PyObject* one = PyTuple_GET_ITEM(made, static_cast<Py_ssize_t>(i));
    if (one != Py_None) found[i] = THPVariable_Unpack(one);
  }
}

// Whether the ATen operations of a plain backward are enough for this gradient.
bool is_first_order(const Tensor& g) {
  return !at::GradMode::is_enabled() && !g.key_set().has(c10::DispatchKey::Batched) && is_plain(g);
}

// Of each of x, W and b whether its gradient is wanted.
using Wanted = std::array<bool, 3>;

// What a backward of a folded layer does before and behind its products.
struct FoldedBackward : OwnNode {
  FoldedBackward(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& live)
      : scale(live), factor(weight, false) {
    set_next_edges(torch::autograd::collect_next_edges(x, weight, bias));
  }
  void release_variables() override {
    const std::lock_guard lock(mutex_);
    kept.reset_data();
    factor.reset_data();
  }

  variable_list apply(variable_list&& gradients) override {
    const Tensor& g = gradients[0];
    variable_list found(3);
    if (!g.defined()) return found;
    const Wanted wanted{task_should_compute_output(0), task_should_compute_output(1),
                        task_should_compute_output(2)};
    const Tensor x = reads_x(wanted) ? unpacked(*this, mutex_, kept) : Tensor();
    const Tensor weight = reads_weight(wanted) ? unpacked(*this, mutex_, factor) : Tensor();
    if (is_first_order(g) && is_factor()) {
      first_order(g, x, weight, wanted, found);
    } else {
      const pybind11::gil_scoped_acquire gil;
      take(Reference(any_order(g, x, weight, wanted)).get(), found);
    }
    return found;
  }

  // Whether a product takes λ as a factor: Python's function says what else.
  virtual bool is_factor() const { return true; }
  virtual bool reads_x(const Wanted& wanted) const = 0;
  virtual bool reads_weight(const Wanted& wanted) const = 0;
  virtual void first_order(const Tensor& g, const Tensor& x, const Tensor& weight,
                           const Wanted& wanted, variable_list& found) const = 0;
  // What Python's function returns; called with the interpreter.
  virtual PyObject* any_order(const Tensor& g, const Tensor& x, const Tensor& weight,
                              const Wanted& wanted) const = 0;

  Tensor scale;
  SavedVariable kept, factor;
};

struct FoldedLinearBackward : FoldedBackward {
  FoldedLinearBackward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                       const Tensor& live)
      : FoldedBackward(x, weight, bias, live), shape(x.sizes().vec()) {
    // The gradient of W alone reads x.
    if (should_compute_output(1)) kept = SavedVariable(x, false);
  }
  std::string name() const override { return "FoldedLinearBackward"; }
  // As in pyrevgrad/folding.py, whose _TINY and _HUGE these are.
  bool is_factor() const override {
    return std::abs(number()) >= 0x1p-126 && std::abs(number()) < 0x1p64;
  }
  bool reads_x(const Wanted& wanted) const override { return wanted[1]; }
  bool reads_weight(const Wanted& wanted) const override { return wanted[0]; }

  void first_order(const Tensor& g, const Tensor& x, const Tensor& weight, const Wanted& wanted,
                   variable_list& found) const override {
    const std::int64_t rows = c10::multiply_integers(shape.begin(), shape.end() - 1);
    const Tensor g2 = g.dim() == 2 ? g : g.reshape({rows, g.size(-1)});
    if (wanted[0]) {
      // Fresh storage for the product alone, so that autograd may add to it in place.
      found[0] = at::empty(shape, g2.options());
      // beta 0: what is there is not read.
      Tensor flat = shape.size() == 2 ? found[0] : found[0].view({rows, shape.back()});
      at::addmm_out(flat, flat, g2, weight, 0, -number());
    }
    if (wanted[1]) found[1] = g2.t().mm(x.dim() == 2 ? x : x.reshape({rows, shape.back()}));
    if (wanted[2]) found[2] = g2.sum(0);
  }

  PyObject* any_order(const Tensor& g, const Tensor& x, const Tensor& weight,
                      const Wanted& wanted) const override {
    const Reference sizes(PyTuple_New(static_cast<Py_ssize_t>(shape.size())));
    for (std::size_t i = 0; i < shape.size(); ++i) {
      PyTuple_SET_ITEM(sizes.get(), static_cast<Py_ssize_t>(i), PyLong_FromLongLong(shape[i]));
    }
    return result_of(linear_any_order, {wrapped(g), wrapped(x), wrapped(weight), wrapped(scale),
                                        PyFloat_FromDouble(number()), Py_NewRef(sizes.get()),
                                        Py_NewRef(wanted[2] ? Py_True : Py_False)});
  }

  // λ when backward runs: a schedule may change it until then.
  double number() const { return *scale.const_data_ptr<double>(); }

  std::vector<std::int64_t> shape;  // of x
};

struct FoldedConvolutionBackward : FoldedBackward {
  FoldedConvolutionBackward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                            const Tensor& live, const Tensor& numbers, PyObject* given,
                            std::array<std::vector<std::int64_t>, 3> sizes, std::int64_t parts)
      : FoldedBackward(x, weight, bias, live),
        program(numbers),
        geometry(Py_NewRef(given), getPyInterpreter()),
        spans(std::move(sizes)),
        groups(parts) {
    kept = SavedVariable(x, false);
  }
  std::string name() const override { return "FoldedConvolutionBackward"; }
  bool reads_x(const Wanted&) const override { return true; }
  bool reads_weight(const Wanted&) const override { return true; }

  void first_order(const Tensor& g, const Tensor& x, const Tensor& weight, const Wanted& wanted,
                   variable_list& found) const override {
    if (!wanted[0] || g.scalar_type() == at::kHalf) {
      // Of float16, −λ·W or −λ·g may be below what it holds, and gx be a number all the same.
      found = plain(g, x, weight, wanted);
      if (wanted[0]) found[0] = reversed(found[0]);
    } else if (weight.numel() <= g.numel()) {
      // The gradient of W does not read W.
      found = plain(g, x, reversed(weight), wanted);
    } else {
      found[0] = plain(reversed(g), x, weight, {true, false, false})[0];
      if (wanted[1] || wanted[2]) {
        auto rest = plain(g, x, weight, {false, wanted[1], wanted[2]});
        found[1] = rest[1];
        found[2] = rest[2];
      }
    }
  }

  PyObject* any_order(const Tensor& g, const Tensor& x, const Tensor& weight,
                      const Wanted& wanted) const override {
    PyObject* asked = PyList_New(3);
    for (int i = 0; i < 3; ++i) {
      PyList_SET_ITEM(asked, i, Py_NewRef(wanted[i] ? Py_True : Py_False));
    }
    PyObject* given = Py_NewRef(geometry.ptr(getPyInterpreter()));
    return result_of(convolution_any_order,
                     {wrapped(g), wrapped(x), wrapped(weight), wrapped(scale), given, asked});
  }

  // −λ times a tensor, in one kernel.
  Tensor reversed(const Tensor& t) const {
    static const Operation operation("pyrevgrad::backward");
    return operation(t, {t, c10::IValue(), program, scale, c10::IValue()})[0].toTensor();
  }

  variable_list plain(const Tensor& g, const Tensor& x, const Tensor& weight,
                      const Wanted& wanted) const {
    const std::array<std::int64_t, 1> channels{weight.size(0)};
    const std::array<std::int64_t, 2> none{0, 0};
    at::OptionalIntArrayRef sizes;
    if (wanted[2]) sizes = at::IntArrayRef(channels);
    auto [gx, gw, gb] = at::convolution_backward(g, x, weight, sizes, spans[0], spans[1], spans[2],
                                                 false, none, groups, wanted);
    return {std::move(gx), std::move(gw), std::move(gb)};
  }

  Tensor program;
  c10::SafePyObject geometry;                      // as Python handed it over
  std::array<std::vector<std::int64_t>, 3> spans;  // stride, padding, dilation
  std::int64_t groups;
};

// (x, weight, bias, scale) of a layer, where a node may serve them.
struct Folded {
  explicit Folded(PyObject* const* arguments) {
    for (const int i : {0, 1, 3}) {
      if (!THPVariable_CheckExact(arguments[i])) return;
    }
    const bool biased = arguments[2] != Py_None;
    if (biased && !THPVariable_CheckExact(arguments[2])) return;
    x = THPVariable_Unpack(arguments[0]);
    weight = THPVariable_Unpack(arguments[1]);
    scale = THPVariable_Unpack(arguments[3]);
    if (biased) bias = THPVariable_Unpack(arguments[2]);
    served = x.is_cpu() && (is_full(x) || is_half(x)) && is_plain(x) && fits(weight) &&
             (!biased || fits(bias)) && is_plain(scale) && scale.is_cpu() &&
             scale.scalar_type() == at::kDouble && scale.dim() == 0 && !scale.requires_grad() &&
             !at::autocast::is_autocast_enabled(at::kCPU) &&
             !at::impl::torch_function_mode_enabled();
  }

  // Whether a parameter is one that a plain layer of x could have.
  bool fits(const Tensor& parameter) const {
    return parameter.is_cpu() && parameter.scalar_type() == x.scalar_type() && is_plain(parameter);
  }
  bool recorded() const { return x.requires_grad() && at::GradMode::is_enabled(); }
  std::optional<Tensor> given_bias() const {
    return bias.defined() ? std::optional<Tensor>(bias) : std::nullopt;
  }

  bool served = false;
  Tensor x, weight, bias, scale;
};

// (x, weight, bias, scale): y. NotImplemented where the Function or its errors must serve.
PyObject* folded_linear(PyObject*, PyObject* const* arguments, Py_ssize_t) {
  HANDLE_TH_ERRORS
  const Folded given(arguments);
  const Tensor &x = given.x, &weight = given.weight;
  if (!given.served || weight.dim() != 2 || x.dim() == 0 || x.size(-1) != weight.size(1)) {
    return Py_NewRef(Py_NotImplemented);
  }
  Tensor y;
  {
    const pybind11::gil_scoped_release others_run;
    if (!given.recorded()) {
      y = at::linear(x, weight, given.given_bias());
    } else {
      auto node = make_node<FoldedLinearBackward>(x, weight, given.bias, given.scale);
      {
        // Not below autograd, where a mode would be shown linear and not what it is made of.
        const at::NoGradGuard unrecorded;
        y = at::linear(x, weight, given.given_bias());
        // Of more or fewer axes it may be a view, which nobody could then change in place.
        if (x.dim() != 2) y = at::_unsafe_view(y, y.sizes());
      }
      torch::autograd::set_history(y, node);
    }
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

// A number, or a tuple of two: what a convolution's geometry is told in. False of anything else.
bool read_span(PyObject* given, std::vector<std::int64_t>& span) {
  if (PyLong_CheckExact(given)) {
    span.assign(2, PyLong_AsLongLong(given));
  } else if (!PyTuple_CheckExact(given) || PyTuple_GET_SIZE(given) != 2) {
    return false;
  }
  for (Py_ssize_t i = 0; span.size() < 2; ++i) {
    PyObject* one = PyTuple_GET_ITEM(given, i);
    if (!PyLong_CheckExact(one)) return false;
    span.push_back(PyLong_AsLongLong(one));
  }
  if (PyErr_Occurred() == nullptr) return true;
  PyErr_Clear();  // a number past 64 bits: its error is PyTorch's
  return false;
}

// (x, weight, bias, scale, full, half, geometry): y of a batch. NotImplemented as above.
PyObject* folded_convolution(PyObject*, PyObject* const* arguments, Py_ssize_t) {
  HANDLE_TH_ERRORS
  const Folded given(arguments);
  std::array<std::vector<std::int64_t>, 3> spans;
  PyObject* const geometry = arguments[6];
  bool told = given.served && given.recorded() && given.x.dim() == 4 && given.weight.dim() == 4;
  for (std::size_t i = 0; told && i < 3; ++i) {
    told = read_span(PyTuple_GET_ITEM(geometry, static_cast<Py_ssize_t>(i)), spans[i]);
  }
  if (!told || !PyLong_CheckExact(PyTuple_GET_ITEM(geometry, 3))) {
    return Py_NewRef(Py_NotImplemented);
  }
  const std::int64_t groups = PyLong_AsLongLong(PyTuple_GET_ITEM(geometry, 3));
  const Tensor& program =
      THPVariable_Unpack(PyTuple_GET_ITEM(arguments[is_half(given.x) ? 5 : 4], 0));
  // Made while the interpreter is ours: it counts a reference to the geometry.
  auto node = make_node<FoldedConvolutionBackward>(given.x, given.weight, given.bias, given.scale,
                                                   program, geometry, spans, groups);
  Tensor y;
  {
    const pybind11::gil_scoped_release others_run;
    {
      const at::NoGradGuard unrecorded;
      y = at::conv2d(given.x, given.weight, given.given_bias(), spans[0], spans[1], spans[2],
                     groups);
    }
    torch::autograd::set_history(y, node);
  }
  return THPVariable_Wrap(std::move(y));
  END_HANDLE_TH_ERRORS
}

}  // namespace
}  // namespace pyrevgrad
