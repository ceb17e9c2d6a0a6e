"""The NumPy oracle: gates written from their definition, in float64.

Tests and benchmarks compare the rest of the project with it, so it shares no code with the rest:
it may import NumPy and the standard library, nothing else.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[Any]


def float64_array(name: str, value: ArrayLike) -> Array:
    """``value`` in float64, not copied where it is that already; a TypeError unless it is real."""
    array = np.asarray(value)
    if not np.can_cast(array.dtype, np.float64, "same_kind"):
        raise TypeError(f"{name} must hold real numbers, not {array.dtype}")
    converted: Array = array.astype(np.float64, copy=False)
    return converted


def _logistic(x: Array) -> Array:
    """1 / (1 + exp(-x)), with no overflow on either side."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _logistic_slope(x: Array) -> Array:
    """exp(-x) / (1 + exp(-x))**2: even in x, and exact where 1 - y would have cancelled."""
    small = np.exp(-np.abs(x))
    return np.asarray(small / (1 + small) ** 2)


def _sum_to(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting: sum over every axis along which ``shape`` was repeated."""
    lead = gradient.ndim - len(shape)
    repeated = [lead + i for i, n in enumerate(shape) if n != gradient.shape[lead + i]]
    axes = (*range(lead), *repeated)
    return gradient.sum(axis=axes).reshape(shape) if axes else gradient


class Gate:
    """A value, and the gradient it sends back to each of its inputs.

    ``forward(*inputs)`` takes what the class attribute ``inputs`` names, as anything that NumPy
    turns into real numbers, and returns a float64 array. ``backward(gradient)`` takes the gradient
    of some number in that array, of its shape, and returns a tuple with one float64 gradient per
    input, of the input's shape; None for labels. It refers to the latest ``forward``, whose inputs
    are kept, not copied. Infinities and NaN follow IEEE arithmetic without warnings.

    A subclass writes ``_value(*inputs)``, keeping what it needs, and ``_gradients(gradient)``.

    Raises
    ------
    TypeError
        For a wrong number of inputs, and for complex or non-numeric ones.
    ValueError
        For shapes that do not fit each other, and for a gradient that has not the output's shape.
    RuntimeError
        For ``backward`` before ``forward``.

    Examples
    --------
    >>> gate = Multiply()
    >>> print(gate.forward(3, -4))
    -12.0
    >>> [float(gradient) for gradient in gate.backward(2)]
    [-8.0, 6.0]
    """

    inputs: tuple[str, ...] = ("x",)
    _shape: tuple[int, ...] | None = None
    _value: Callable[..., Array]
    _gradients: Callable[[Array], tuple[Array | None, ...]]

    def forward(self, *inputs: ArrayLike) -> Array:
        """Return the value at ``inputs`` and keep what ``backward`` needs."""
        self._shape = None
        if len(inputs) != len(self.inputs):
            names = ", ".join(self.inputs)
            raise TypeError(
                f"{self!r} takes {len(self.inputs)} inputs ({names}), not {len(inputs)}"
            )
        arrays = [
            np.asarray(value) if name == "labels" else float64_array(name, value)
            for name, value in zip(self.inputs, inputs, strict=True)
        ]
        with np.errstate(all="ignore"):
            value = np.asarray(self._value(*arrays))
        self._shape = value.shape
        return value

    def backward(self, gradient: ArrayLike) -> tuple[Array | None, ...]:
        """Return the gradient of every input, given that of the value."""
        if self._shape is None:
            raise RuntimeError(f"{self!r}: call forward before backward")
        gradient = float64_array("gradient", gradient)
        if gradient.shape != self._shape:
            raise ValueError(
                f"{self!r}: the gradient has shape {gradient.shape}, the output {self._shape}"
            )
        with np.errstate(all="ignore"):
            gradients = self._gradients(gradient)
        return tuple(None if g is None else np.asarray(g) for g in gradients)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _broadcast(self, a: Array, b: Array) -> None:
        try:
            np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            message = f"{self!r}: shapes {a.shape} and {b.shape} do not broadcast"
            raise ValueError(message) from None


class Add(Gate):
    """a + b, broadcast; each gets ``g``, summed over the axes along which it was repeated.

    >>> gate = Add()
    >>> print(gate.forward([[1, 2], [3, 4]], [10, 20]))
    [[11. 22.]
     [13. 24.]]
    >>> print(gate.backward(np.ones((2, 2)))[1])
    [2. 2.]
    """

    inputs = ("a", "b")

    def _value(self, a: Array, b: Array) -> Array:
        self._broadcast(a, b)
        self._shapes = a.shape, b.shape
        return a + b

    def _gradients(self, gradient: Array) -> tuple[Array, ...]:
        return tuple(_sum_to(gradient, shape) for shape in self._shapes)


class Multiply(Gate):
    """a · b, broadcast; a gets ``g·b`` and b gets ``g·a``, summed as in `Add`.

    >>> gate = Multiply()
    >>> print(gate.forward([1, 2, 3], 10), *gate.backward([1, 1, 1]))
    [10. 20. 30.] [10. 10. 10.] 6.0
    """

    inputs = ("a", "b")

    def _value(self, a: Array, b: Array) -> Array:
        self._broadcast(a, b)
        self._a, self._b = a, b
        return a * b

    def _gradients(self, gradient: Array) -> tuple[Array, ...]:
        return _sum_to(gradient * self._b, self._a.shape), _sum_to(
            gradient * self._a, self._b.shape
        )


class Affine(Gate):
    """X @ W + b over a batch: X (batch, in), W (in, out), b (out,).

    X gets ``g @ W.T``, W gets ``X.T @ g``, b the sum of g over the batch. W is the transpose of
    `torch.nn.Linear`'s weight.

    >>> gate = Affine()
    >>> print(gate.forward([[1, 2]], [[3], [4]], [5]), *gate.backward([[1]]))
    [[16.]] [[3. 4.]] [[1.]
     [2.]] [1.]
    """

    inputs = ("X", "W", "b")

    def _value(self, X: Array, W: Array, b: Array) -> Array:
        fits = X.ndim == W.ndim == 2 and X.shape[1] == W.shape[0] and b.shape == W.shape[1:]
        if not fits:
            raise ValueError(
                f"{self!r}: X (batch, in), W (in, out) and b (out,) are needed, "
                f"not {X.shape}, {W.shape} and {b.shape}"
            )
        self._X, self._W = X, W
        return X @ W + b

    def _gradients(self, gradient: Array) -> tuple[Array, ...]:
        return gradient @ self._W.T, self._X.T @ gradient, gradient.sum(axis=0)


class Rows(Gate):
    """x[start:stop]; the other rows get +0.0. Needs 0 <= start <= stop <= rows of x.

    >>> gate = Rows(1, 2)
    >>> print(gate.forward([5, 6, 7]), *gate.backward([3]))
    [6.] [0. 3. 0.]
    """

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __repr__(self) -> str:
        return f"Rows({self.start}, {self.stop})"

    def _value(self, x: Array) -> Array:
        if x.ndim == 0 or not 0 <= self.start <= self.stop <= x.shape[0]:
            raise ValueError(f"{self!r}: there are no such rows in shape {x.shape}")
        self._input_shape = x.shape
        return x[self.start : self.stop]

    def _gradients(self, gradient: Array) -> tuple[Array, ...]:
        whole = np.zeros(self._input_shape)
        whole[self.start : self.stop] = gradient
        return (whole,)


class ModifiedBackward(Gate):
    """A nonlinearity's value with a gradient of your choice.

    Forward is ``function(x)``, backward is ``gradient(x, g)``; both must keep the shape of x.

    >>> deconvnet = ModifiedBackward(np.tanh, lambda x, g: np.where(g <= 0, 0.0, g))
    >>> print(deconvnet.forward([0, 0, 0]), *deconvnet.backward([-1, 0, 2]))
    [0. 0. 0.] [0. 0. 2.]
    """

    def __init__(
        self, function: Callable[[Array], Array], gradient: Callable[[Array, Array], Array]
    ) -> None:
        self.function, self.gradient = function, gradient

    def _value(self, x: Array) -> Array:
        self._x = x
        value = float64_array("the value", self.function(x))
        self._same_shape("value", value)
        return value

    def _gradients(self, gradient: Array) -> tuple[Array, ...]:
        chosen = float64_array("the chosen gradient", self.gradient(self._x, gradient))
        self._same_shape("chosen gradient", chosen)
        return (chosen,)

    def _same_shape(self, what: str, array: Array) -> None:
        if array.shape != self._x.shape:
            raise ValueError(
                f"{self!r}: the {what} has shape {array.shape}, the input {self._x.shape}"
            )


class Sigmoid(ModifiedBackward):
    """1 / (1 + exp(-x)); backward multiplies by ``exp(-x) / (1 + exp(-x))**2``.

    >>> gate = Sigmoid()
    >>> print(gate.forward([0, 1000]), *gate.backward([1, 1]))
    [0.5 1. ] [0.25 0.  ]
    """

    def __init__(self) -> None:
        super().__init__(_logistic, lambda x, g: _logistic_slope(x) * g)


class Tanh(ModifiedBackward):
    """tanh(x); backward multiplies by ``1 / cosh(x)**2``, four times `Sigmoid`'s slope at 2x.

    >>> gate = Tanh()
    >>> print(gate.forward([0, 1000]), *gate.backward([2, 2]))
    [0. 1.] [2. 0.]
    """

    def __init__(self) -> None:
        super().__init__(np.tanh, lambda x, g: 4 * _logistic_slope(2 * x) * g)


class Relu(ModifiedBackward):
    """0 where x < 0, else x; backward is +0.0 where x <= 0, else ``g``. NaN passes both ways.

    >>> gate = Relu()
    >>> print(gate.forward([-1, 0, 2, np.nan]), *gate.backward([5, 5, 5, 5]))
    [ 0.  0.  2. nan] [0. 0. 5. 5.]
    """

    def __init__(self) -> None:
        super().__init__(_relu, lambda x, g: np.where(x <= 0, 0.0, g))


class GuidedRelu(ModifiedBackward):
    """`Relu` with guided backpropagation: +0.0 where x <= 0 or g <= 0, else ``g``.

    A gate blocks where the tested value is <= 0, so 0 and -0.0 block and NaN passes (Springenberg
    et al. 2015, arXiv 1412.6806, section 3.4, where the gates pass what is > 0).

    >>> gate = GuidedRelu()
    >>> print(gate.forward([-1, 2, 2, np.nan]), *gate.backward([5, -5, 5, 5]))
    [ 0.  2.  2. nan] [0. 0. 5. 5.]
    """

    def __init__(self) -> None:
        super().__init__(_relu, lambda x, g: np.where((x <= 0) | (g <= 0), 0.0, g))


class Reversal(ModifiedBackward):
    """The identity forward and ``(-scale)·g`` backward (Ganin & Lempitsky 2015, arXiv 1409.7495).

    >>> gate = Reversal(0.5)
    >>> print(gate.forward([1, -2]), *gate.backward([4, 6]))
    [ 1. -2.] [-2. -3.]
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = float(scale)
        super().__init__(lambda x: x, lambda x, g: -self.scale * g)

    def __repr__(self) -> str:
        return f"Reversal({self.scale:g})"


def _relu(x: Array) -> Array:
    return np.where(x < 0, 0.0, x)


class SoftmaxCrossEntropy(Gate):
    """The mean over a batch of ``log(sum(exp(row))) - row[label]``.

    Logits are (batch, classes), labels (batch,), integers from 0 to classes - 1. The logits get
    ``(softmax - one_hot) / batch``; every row is shifted by its maximum, so nothing overflows.

    >>> gate = SoftmaxCrossEntropy()
    >>> print(gate.forward([[1000.0, 1000.0]], [0]).round(4), gate.backward(1)[0])
    0.6931 [[-0.5  0.5]]
    """

    inputs = ("logits", "labels")

    def _value(self, logits: Array, labels: Array) -> Array:
        if logits.ndim != 2 or logits.size == 0 or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"{self!r}: logits (batch, classes) and labels (batch,), neither empty, are "
                f"needed, not {logits.shape} and {labels.shape}"
            )
        if not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(f"{self!r}: labels must be integers, not {labels.dtype}")
        classes = logits.shape[1]
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"{self!r}: labels must lie between 0 and {classes - 1}")
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        self._softmax, self._one_hot = np.exp(log_softmax), np.eye(classes)[labels]
        return np.asarray(-log_softmax[np.arange(len(labels)), labels].mean())

    def _gradients(self, gradient: Array) -> tuple[Array | None, ...]:
        return gradient * (self._softmax - self._one_hot) / len(self._softmax), None


class BinaryCrossEntropy(Gate):
    """The mean of ``-log(sigmoid(z))`` where the label is 1, ``-log(1 - sigmoid(z))`` where 0.

    Logits z have any shape that is not empty, labels the same shape, all of them 0 or 1. z gets
    ``(sigmoid(z) - label) / size``. Both are computed from s = z or -z without cancellation.

    >>> gate = BinaryCrossEntropy()
    >>> print(gate.forward([0.0, -1000.0], [1, 0]).round(4), gate.backward(1)[0])
    0.3466 [-0.25  0.  ]
    """

    inputs = ("logits", "labels")

    def _value(self, logits: Array, labels: Array) -> Array:
        if logits.shape != labels.shape or logits.size == 0:
            raise ValueError(
                f"{self!r}: logits and labels of one shape, not empty, are needed, "
                f"not {logits.shape} and {labels.shape}"
            )
        if not np.isin(labels, (0, 1)).all():
            raise ValueError(f"{self!r}: labels must be 0 or 1")
        self._sign = np.where(labels == 1, -1.0, 1.0)
        self._wrongness = self._sign * logits
        return np.asarray(np.logaddexp(0.0, self._wrongness).mean())

    def _gradients(self, gradient: Array) -> tuple[Array | None, ...]:
        slope = self._sign * _logistic(self._wrongness) / self._sign.size
        return gradient * slope, None


class Neuron(Gate):
    """sigmoid(sum(x·w) + b): x and w (n,), b (). With s the sigmoid's slope there and ``d = g·s``,
    x gets ``d·w``, w gets ``d·x``, b gets d.

    >>> gate = Neuron()
    >>> print(gate.forward([1, 2], [4, -2], 0), *gate.backward(1))
    0.5 [ 1.  -0.5] [0.25 0.5 ] 0.25
    """

    inputs = ("x", "w", "b")

    def _value(self, x: Array, w: Array, b: Array) -> Array:
        if x.ndim != 1 or x.shape != w.shape or b.shape != ():
            raise ValueError(
                f"{self!r}: x (n,), w (n,) and b () are needed, "
                f"not {x.shape}, {w.shape} and {b.shape}"
            )
        self._x, self._w, self._z = x, w, (x * w).sum() + b
        return _logistic(self._z)

    def _gradients(self, gradient: Array) -> tuple[Array, ...]:
        d = gradient * _logistic_slope(self._z)
        return d * self._w, d * self._x, d
