"""The NumPy oracle against finite differences, PyTorch's autograd and formulas by hand.

It may import the gates, the examples, NumPy and PyTorch; nothing else of ours, so that
the oracle stays independent.
"""

import ast
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pyrevgrad.reference import gates

ROOT = Path(__file__).resolve().parent.parent
NAN, INF = math.nan, math.inf


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def torch_neuron(x, w, b):
    return torch.sigmoid(torch.dot(x, w) + b)


LABELS, BITS = np.array([2, 0, 1, 2]), np.array([[1, 0], [0, 0], [1, 1]])

# A gate, PyTorch's own form of it, and its inputs. Labels are the inputs that are integers.
GATES = {
    "add": (gates.Add, torch.add, (draw(3, 4), draw(3, 4, seed=1))),
    "add broadcast": (gates.Add, torch.add, (draw(2, 1, 4), draw(3, 1))),
    "add scalar": (gates.Add, torch.add, (draw(), draw(3, 2))),
    "multiply": (gates.Multiply, torch.mul, (draw(3, 4), draw(3, 4, seed=1))),
    "multiply broadcast": (gates.Multiply, torch.mul, (draw(2, 1, 4), draw(3, 1))),
    "multiply scalar": (gates.Multiply, torch.mul, (draw(5), draw())),
    "multiply ones": (gates.Multiply, torch.mul, (draw(1, 1), draw(1))),
    "affine": (gates.Affine, lambda X, W, b: X @ W + b, (draw(5, 3), draw(3, 4), draw(4))),
    "rows": (lambda: gates.Rows(1, 3), lambda x: x[1:3], (draw(4, 2),)),
    "sigmoid": (gates.Sigmoid, torch.sigmoid, (3 * draw(4, 5),)),
    "tanh": (gates.Tanh, torch.tanh, (2 * draw(4, 5),)),
    "relu": (gates.Relu, torch.relu, (draw(4, 5),)),
    "softmax cross-entropy": (gates.SoftmaxCrossEntropy, F.cross_entropy, (draw(4, 3), LABELS)),
    "binary cross-entropy": (
        gates.BinaryCrossEntropy,
        lambda z, t: F.binary_cross_entropy_with_logits(z, t.double()),
        (draw(3, 2), BITS),
    ),
    "neuron": (gates.Neuron, torch_neuron, (draw(6), draw(6, seed=1), draw())),
    "softplus by ModifiedBackward": (
        lambda: gates.ModifiedBackward(
            lambda x: np.logaddexp(0, x), lambda x, g: g / (1 + np.exp(-x))
        ),
        F.softplus,
        (draw(3, 4),),
    ),
}


def is_label(array):
    return np.issubdtype(array.dtype, np.integer)


def central_difference(function, arrays, i, step=1e-6):
    """Return d function / d arrays[i], where the function gives one number."""
    gradient = np.zeros(arrays[i].shape)
    for at in np.ndindex(arrays[i].shape):
        ends = []
        for sign in (1, -1):
            moved = [array.copy() for array in arrays]
            moved[i][at] += sign * step
            ends.append(function(*moved))
        gradient[at] = (ends[0] - ends[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("name", GATES)
def test_gradient_is_the_central_difference_of_the_value(name):
    make, _, inputs = GATES[name]
    gate = make()
    value = gate.forward(*inputs)
    sent = draw(*value.shape, seed=7)
    gradients = gate.backward(sent)
    assert len(gradients) == len(inputs) == len(gate.inputs)
    for i, (array, gradient) in enumerate(zip(inputs, gradients, strict=True)):
        if is_label(array):
            assert gradient is None
            continue
        expected = central_difference(lambda *a: (make().forward(*a) * sent).sum(), inputs, i)
        assert gradient.shape == array.shape
        assert gradient.dtype == np.float64
        np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", GATES)
def test_value_and_gradient_are_those_of_torch_in_float64(name):
    make, function, inputs = GATES[name]
    gate = make()
    value = gate.forward(*inputs)
    tensors = [torch.from_numpy(np.asarray(a)).clone() for a in inputs]
    wanted = [t.requires_grad_() for t in tensors if t.is_floating_point()]
    output = function(*tensors)
    sent = draw(*value.shape, seed=8)
    expected = torch.autograd.grad(output, wanted, torch.from_numpy(np.asarray(sent)))
    np.testing.assert_allclose(value, output.detach().numpy(), rtol=1e-13, atol=1e-14)
    found = [g for g in gate.backward(sent) if g is not None]
    for gradient, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, reference.numpy(), rtol=1e-12, atol=1e-14)


def test_float32_and_lists_are_computed_in_float64():
    gate = gates.Multiply()
    assert gate.forward(np.float32([0.1, 0.2]), [3, 4]).dtype == np.float64
    assert [g.dtype for g in gate.backward([1, 1])] == [np.float64, np.float64]


def test_sigmoid_and_tanh_keep_their_relative_accuracy_in_saturation():
    x = np.array([-700.0, -40.0, 40.0, 300.0])
    sigmoid, tanh = gates.Sigmoid(), gates.Tanh()
    np.testing.assert_allclose(sigmoid.forward(x), [math.exp(-700), math.exp(-40), 1, 1])
    expected = [math.exp(-abs(v)) for v in x]
    np.testing.assert_allclose(sigmoid.backward(np.ones(4))[0], expected, rtol=1e-13)
    tanh.forward(x)
    expected = [math.cosh(v) ** -2 if abs(v) < 350 else 0 for v in x]
    np.testing.assert_allclose(tanh.backward(np.ones(4))[0], expected, rtol=1e-13)


def test_losses_do_not_overflow_at_large_logits():
    softmax, binary = gates.SoftmaxCrossEntropy(), gates.BinaryCrossEntropy()
    assert softmax.forward([[1e4, 0.0], [0.0, 1e4]], [0, 0]) == 5000
    np.testing.assert_array_equal(softmax.backward(1.0)[0], [[0, 0], [-0.5, 0.5]])
    assert binary.forward([1e4, -1e4, INF, -INF], [0, 0, 1, 0]) == 2500
    np.testing.assert_array_equal(binary.backward(1.0)[0], [0.25, 0, 0, 0])
    binary.forward([-50.0], [0])
    np.testing.assert_allclose(binary.backward(1.0)[0], [math.exp(-50)], rtol=1e-13)


EDGES = np.array([NAN, -INF, -2.0, -5e-324, -0.0, 0.0, 5e-324, 2.0, INF])


def same_bits(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_array_equal(found, expected)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found[number]), np.signbit(expected[number]))


def test_relu_agrees_with_torch_at_kinks_zeros_infinities_and_nan():
    x, g = (a.ravel().copy() for a in np.meshgrid(EDGES, EDGES))
    gate = gates.Relu()
    tensor = torch.from_numpy(x).requires_grad_()
    output = torch.relu(tensor)
    same_bits(gate.forward(x), output.detach().numpy())
    same_bits(gate.backward(g)[0], torch.autograd.grad(output, tensor, torch.from_numpy(g))[0])


def test_guided_relu_blocks_where_x_or_g_is_not_positive_and_lets_nan_pass():
    for x in EDGES:
        gate = gates.GuidedRelu()
        same_bits(gate.forward(x), torch.relu(torch.tensor(x)).item())
        for g in EDGES:
            blocked = x <= 0 or g <= 0
            same_bits(gate.backward(g)[0], 0.0 if blocked else g)


def test_blocked_gradient_is_positive_zero():
    gate = gates.GuidedRelu()
    gate.forward([-1.0, -1.0, 0.0, -0.0, 1.0, 1.0])
    (gradient,) = gate.backward([INF, NAN, NAN, -INF, -0.0, -3.0])
    same_bits(gradient, np.zeros(6))


@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0, 0.0, -0.0])
def test_reversal_is_the_identity_and_sends_minus_scale_times_the_gradient(scale):
    gate = gates.Reversal(scale)
    same_bits(gate.forward(EDGES), EDGES)
    with np.errstate(invalid="ignore"):
        same_bits(gate.backward(EDGES)[0], (-scale) * EDGES)


def test_infinities_and_nan_go_through_without_warnings():
    with np.errstate(all="raise"):
        for gate in (gates.Sigmoid(), gates.Tanh(), gates.Relu()):
            gate.forward(EDGES)
            gate.backward(EDGES)
        assert math.isnan(gates.Multiply().forward(0.0, INF))
        assert math.isnan(gates.Add().forward(INF, -INF))


def test_a_modified_backward_keeps_the_value_and_sends_the_chosen_gradient():
    straight_through = gates.ModifiedBackward(np.sign, lambda x, g: g)
    np.testing.assert_array_equal(straight_through.forward([-3, 0, 2]), [-1, 0, 1])
    np.testing.assert_array_equal(straight_through.backward([1, 2, 3])[0], [1, 2, 3])
    guided = gates.ModifiedBackward(np.tanh, lambda x, g: np.where((x <= 0) | (g <= 0), 0, g))
    np.testing.assert_array_equal(guided.forward([-3, 0, 2]), np.tanh([-3, 0, 2]))
    np.testing.assert_array_equal(guided.backward([1, 2, 3])[0], [0, 0, 3])


BAD_INPUTS = [
    (gates.Add, ([1, 2], [1, 2, 3]), ValueError, r"Add\(\): shapes \(2,\) and \(3,\) do not br"),
    (gates.Multiply, (np.ones((2, 3)), [1, 2]), ValueError, r"Multiply\(\): shapes \(2, 3\) and"),
    (gates.Multiply, (1,), TypeError, r"Multiply\(\) takes 2 inputs \(a, b\), not 1"),
    (gates.Tanh, ([1j],), TypeError, "x must hold real numbers, not complex128"),
    (gates.Tanh, (["one"],), TypeError, "x must hold real numbers, not <U3"),
    (gates.Affine, (np.ones((2, 3)), np.ones((4, 5)), np.ones(5)), ValueError, r"not \(2, 3\), "),
    (gates.Affine, (np.ones((2, 3)), np.ones((3, 5)), np.ones(1)), ValueError, r"and \(1,\)$"),
    (lambda: gates.Rows(1, 4), ([1, 2, 3],), ValueError, r"Rows\(1, 4\): there are no such rows"),
    (lambda: gates.Rows(-1, 2), ([1, 2, 3],), ValueError, "there are no such rows"),
    (gates.SoftmaxCrossEntropy, (np.ones((2, 3)), [0, 3]), ValueError, "lie between 0 and 2"),
    (gates.SoftmaxCrossEntropy, (np.ones((2, 3)), [0, -1]), ValueError, "lie between 0 and 2"),
    (gates.SoftmaxCrossEntropy, (np.ones((2, 3)), [0.0, 1.0]), TypeError, "integers, not float64"),
    (gates.SoftmaxCrossEntropy, (np.ones((2, 3)), [0]), ValueError, r"not \(2, 3\) and \(1,\)"),
    (gates.SoftmaxCrossEntropy, (np.ones((0, 3)), []), ValueError, "neither empty"),
    (gates.BinaryCrossEntropy, ([1.0, 2.0], [1]), ValueError, r"not \(2,\) and \(1,\)"),
    (gates.BinaryCrossEntropy, ([1.0, 2.0], [1, 0.5]), ValueError, "labels must be 0 or 1"),
    (gates.Neuron, ([1, 2], [1, 2, 3], 0), ValueError, r"not \(2,\), \(3,\) and \(\)"),
    (lambda: gates.ModifiedBackward(np.sum, np.add), ([1, 2],), ValueError, "the value has shape "),
]


@pytest.mark.parametrize(("make", "inputs", "kind", "message"), BAD_INPUTS)
def test_inputs_that_do_not_fit_are_refused_by_name(make, inputs, kind, message):
    with pytest.raises(kind, match=message):
        make().forward(*inputs)


def test_backward_refuses_what_does_not_fit_the_forward():
    gate = gates.Tanh()
    with pytest.raises(RuntimeError, match=r"Tanh\(\): call forward before backward"):
        gate.backward(1.0)
    gate.forward([1, 2])
    with pytest.raises(ValueError, match=r"the gradient has shape \(3,\), the output \(2,\)"):
        gate.backward([1, 2, 3])
    with pytest.raises(TypeError, match="x must hold real numbers"):
        gate.forward([1j])
    with pytest.raises(RuntimeError, match="call forward before backward"):
        gate.backward([1, 2])
    chosen = gates.ModifiedBackward(np.tanh, lambda x, g: g.sum())
    chosen.forward([1, 2])
    with pytest.raises(ValueError, match=r"the chosen gradient has shape \(\), the input \(2,\)"):
        chosen.backward([1, 1])


@pytest.mark.parametrize("name", ["gates", "circuits"])
def test_the_oracle_imports_nothing_but_numpy_the_standard_library_and_the_gates(name):
    tree = ast.parse((ROOT / "pyrevgrad" / "reference" / f"{name}.py").read_text("utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    allowed = {"collections.abc", "typing", "numpy", "numpy.typing"}
    assert found <= (allowed if name == "gates" else allowed | {"graphlib", ".gates"})


EXAMPLES = {
    "flat_circuit": ((), "0.19661193"),
    "neuron": ((), "(1.0, 1.0) -> 1.000, wanted 1"),
    "multiply_function": ((), "gradcheck: True"),
    "numpy_network": ((3,), "fell in 2 of 2 steps"),
    "gate_graph": ((), "guided relu, run in the order sum, active, product"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs_and_says_what_it_found(name, capsys):
    arguments, said = EXAMPLES[name]
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(*arguments)
    assert said in capsys.readouterr().out
