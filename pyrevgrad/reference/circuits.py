"""Circuits of gates, in float64: a graph run in topological order and back, and small networks.

The oracle for whole networks. It may import NumPy, the standard library and the gates beside it,
nothing else, so that it shares no code with what it checks.
"""

import graphlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from .gates import (
    Add,
    Affine,
    Array,
    BinaryCrossEntropy,
    Gate,
    Neuron,
    Reversal,
    Rows,
    SoftmaxCrossEntropy,
    Tanh,
    float64_array,
)

Layers: TypeAlias = Sequence[tuple[ArrayLike, ArrayLike]]


class Graph:
    """Gates that feed each other, run in topological order and back.

    ``Graph("x", "w")`` names the inputs; ``add`` names each gate and what feeds it, in any order.

    Raises
    ------
    ValueError
        For a name used twice, an unknown name, a gate used twice, a cycle, inputs that are missing
        or not declared, and shapes that do not fit, with the node's name before the reason.
    TypeError
        For inputs that are not numbers, or too many or too few for a gate.
    RuntimeError
        For ``backward`` before ``forward``.

    Examples
    --------
    >>> from pyrevgrad.reference.gates import Multiply
    >>> graph = Graph("x", "y", "z")
    >>> graph.add("sum", Add(), "x", "y").add("product", Multiply(), "sum", "z")
    Graph('x', 'y', 'z'): sum = Add()(x, y); product = Multiply()(sum, z)
    >>> values = graph.forward(x=-2, y=5, z=-4)
    >>> gradients = graph.backward("product")
    >>> print(values["product"], gradients["x"], gradients["y"], gradients["z"])
    -12.0 -4.0 -4.0 3.0
    """

    def __init__(self, *inputs: str) -> None:
        if len(set(inputs)) != len(inputs):
            raise ValueError(f"an input is named twice: {', '.join(inputs)}")
        self._inputs = inputs
        self._nodes: dict[str, tuple[Gate, tuple[str, ...]]] = {}
        self._values: dict[str, Array] | None = None

    def __repr__(self) -> str:
        nodes = [f"{n} = {g!r}({', '.join(feeds)})" for n, (g, feeds) in self._nodes.items()]
        return f"Graph({', '.join(map(repr, self._inputs))}): {'; '.join(nodes)}"

    def add(self, name: str, gate: Gate, *feeds: str) -> "Graph":
        """Add ``gate`` as the node ``name``, fed by the inputs or nodes ``feeds``; return self."""
        if name in self._nodes or name in self._inputs:
            raise ValueError(f"the name {name!r} is taken")
        for other, (taken, _) in self._nodes.items():
            if taken is gate:
                raise ValueError(
                    f"this {gate!r} is node {other!r}: give each node a gate of its own"
                )
        if len(feeds) != len(gate.inputs):
            expected = ", ".join(gate.inputs)
            raise TypeError(f"node {name!r}: {gate!r} takes ({expected}), not {len(feeds)} inputs")
        self._nodes[name] = gate, feeds
        self._values = None
        return self

    def order(self) -> list[str]:
        """Return the nodes so that each stands after everything that feeds it."""
        for name, (_, feeds) in self._nodes.items():
            for feed in feeds:
                if feed not in self._nodes and feed not in self._inputs:
                    known = ", ".join([*self._inputs, *self._nodes])
                    raise ValueError(
                        f"node {name!r} is fed by {feed!r}, which is not one of {known}"
                    )
        try:
            feeds_of = {name: feeds for name, (_, feeds) in self._nodes.items()}
            order = list(graphlib.TopologicalSorter(feeds_of).static_order())
        except graphlib.CycleError as error:
            raise ValueError(f"the graph has a cycle: {' -> '.join(error.args[1])}") from None
        return [name for name in order if name in self._nodes]

    def forward(self, **inputs: ArrayLike) -> dict[str, Array]:
        """Return the value of every input and node by name."""
        self._values = None
        order = self.order()
        for name in self._inputs:
            if name not in inputs:
                raise ValueError(f"the input {name!r} is missing")
        for name in inputs:
            if name not in self._inputs:
                known = ", ".join(self._inputs)
                raise ValueError(f"{name!r} is not an input of this graph, which has {known}")
        values = {name: np.asarray(value) for name, value in inputs.items()}
        for name in order:
            gate, feeds = self._nodes[name]
            try:
                values[name] = gate.forward(*(values[feed] for feed in feeds))
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"node {name!r}: {error}") from error
        self._values = values
        return dict(values)

    def backward(self, output: str, gradient: ArrayLike | None = None) -> dict[str, Array]:
        """Return, by name, the gradient of ``output`` in every input and node that feeds it.

        Where one name feeds several nodes its gradients are added. ``gradient`` is the one sent
        into ``output``; it may be left out where that is a single number, and is then 1.
        """
        if self._values is None:
            raise RuntimeError("call forward before backward")
        if output not in self._values:
            raise ValueError(f"the graph has no node {output!r}: {', '.join(self._values)}")
        shape = self._values[output].shape
        if gradient is None:
            if self._values[output].size != 1:
                raise ValueError(f"{output!r} has shape {shape}: give the gradient sent into it")
            gradient = np.ones(shape)
        gradient = float64_array("gradient", gradient)
        if gradient.shape != shape:
            raise ValueError(f"the gradient has shape {gradient.shape}, {output!r} {shape}")
        gradients = {output: gradient}
        for name in reversed(self.order()):
            gate, feeds = self._nodes[name]
            if name not in gradients:
                continue
            for feed, part in zip(feeds, gate.backward(gradients[name]), strict=True):
                if part is not None:
                    gradients[feed] = gradients[feed] + part if feed in gradients else part
        return gradients


def neuron(x: ArrayLike, w: ArrayLike, b: ArrayLike) -> tuple[float, tuple[Array | None, ...]]:
    """Run a `Neuron` once: its value, and the gradients of it in x, w and b.

    >>> value, (gradient_x, gradient_w, gradient_b) = neuron([1, 2], [4, -2], 0)
    >>> print(value, gradient_x, gradient_w, gradient_b)
    0.5 [ 1.  -0.5] [0.25 0.5 ] 0.25
    """
    gate = Neuron()
    return float(gate.forward(x, w, b)), gate.backward(1.0)


def flat_circuit(w: ArrayLike, x: ArrayLike) -> tuple[float, tuple[Array, Array]]:
    """L = sigmoid(w0·x0 + w1·x1 + w2), with every gradient written out by hand.

    Takes w (3,) and x (2,); returns L and the gradients of L in w and in x. Anything else than
    three and two numbers is a ValueError.

    >>> value, (gradient_w, gradient_x) = flat_circuit([2, -3, -3], [-1, -2])
    >>> print(round(value, 2), gradient_w.round(2), gradient_x.round(2))
    0.73 [-0.2  -0.39  0.2 ] [ 0.39 -0.59]
    """
    w, x = float64_array("w", w), float64_array("x", x)
    if w.shape != (3,) or x.shape != (2,):
        raise ValueError(f"flat_circuit: w (3,) and x (2,) are needed, not {w.shape} and {x.shape}")
    (w0, w1, w2), (x0, x1) = w, x
    with np.errstate(over="ignore"):
        L = float(1 / (1 + np.exp(-(w0 * x0 + w1 * x1 + w2))))
    dz = L * (1 - L)
    dw0, dw1, dw2 = dz * x0, dz * x1, dz
    dx0, dx1 = dz * w0, dz * w1
    return L, (np.array([dw0, dw1, dw2]), np.array([dx0, dx1]))


def train_two_layer_network(
    steps: int = 2000,
    learning_rate: float = 1e-4,
    seed: int = 0,
    report: Callable[[str], object] | None = print,
) -> list[float]:
    """Train 1000 -> 100 sigmoid -> 10 on 64 random samples, in plain NumPy; return every loss.

    The loss is the sum of squared errors, before each step. x (64, 1000), y (64, 10), w1 (1000,
    100) and w2 (100, 10) are drawn in this order by ``default_rng(seed).standard_normal``; there
    are no biases. ``report`` gets a line per step, None keeps quiet.

    >>> losses = train_two_layer_network(steps=2)
    0 30074.56
    1 20545.21
    """
    draw = np.random.default_rng(seed).standard_normal
    x, y = draw((64, 1000)), draw((64, 10))
    w1, w2 = draw((1000, 100)), draw((100, 10))
    losses = []
    for step in range(steps):
        hidden = 1 / (1 + np.exp(-x @ w1))
        error = hidden @ w2 - y
        losses.append(float(np.square(error).sum()))
        if report is not None:
            report(f"{step} {losses[-1]:.2f}")
        gradient_output = 2 * error
        gradient_hidden = gradient_output @ w2.T
        gradient_w2 = hidden.T @ gradient_output
        gradient_w1 = x.T @ (gradient_hidden * hidden * (1 - hidden))
        w1 -= learning_rate * gradient_w1
        w2 -= learning_rate * gradient_w2
    return losses


PARTS = ("features", "label_head", "domain_head")


def adversarial_parameters(
    inputs: int = 2,
    features: Sequence[int] = (3, 4),
    label_head: Sequence[int] = (7, 8),
    domain_head: Sequence[int] = (5, 6),
    seed: int = 0,
) -> dict[str, list[tuple[Array, Array]]]:
    """Draw parameters for `adversarial_gradients`: W standard normal, b zero, in layer order.

    A size is a layer's number of outputs, so the last of ``label_head`` is the number of classes.

    >>> parameters = adversarial_parameters()
    >>> [(W.shape, b.shape) for W, b in parameters["label_head"]]
    [((4, 7), (7,)), ((7, 8), (8,))]
    """
    draw = np.random.default_rng(seed).standard_normal
    shared = features[-1] if features else inputs
    parts = zip(PARTS, (inputs, shared, shared), (features, label_head, domain_head), strict=True)
    return {
        part: [
            (draw((before, size)), np.zeros(size))
            for before, size in zip((first, *sizes), sizes, strict=False)
        ]
        for part, first, sizes in parts
    }


def adversarial_gradients(
    parameters: Mapping[str, Layers],
    source: ArrayLike,
    labels: ArrayLike,
    target: ArrayLike,
    scale: float = 0.5,
    pooled: bool = True,
) -> tuple[float, dict[str, list[tuple[Array, Array]]]]:
    """Return the loss of a generic adversarial network and the gradient of every parameter.

    With ``layer(z) = z @ W + b``, every layer is followed by tanh except the last of a head::

        f(x) = tanh layers                        r = Reversal(scale)
        y(x) = softmax(label_head(f(x)))          d(x) = sigmoid(domain_head(r(f(x))))
        loss = mean over source of -log y(x)[label]
             + mean over source and target of -log(1 - d(x)) for source, -log d(x) for target

    The second mean is over all samples of both batches together, and over the units of d where it
    has several; with ``pooled=False`` it is the mean over source plus the mean over target. Head
    gradients are the loss's own; feature gradients are those of label loss - scale · domain loss.

    Parameters
    ----------
    parameters
        "features", "label_head" and "domain_head", each a list of (W (in, out), b (out,)), as
        `adversarial_parameters` draws them; the heads have a layer at least.
    source, labels, target
        (n, inputs), integers (n,) below the number of classes, (m, inputs).

    Returns
    -------
    The loss, and gradients laid out as the parameters. A step at rate μ is ``p - μ * gradient``.

    Raises
    ------
    ValueError
        For missing or unknown parts, a head without layers, and shapes that do not fit.

    Notes
    -----
    Ganin & Lempitsky 2015 (arXiv 1409.7495), section 3.

    Examples
    --------
    >>> source, target, labels = np.ones((9, 2)), np.zeros((10, 2)), np.arange(9) % 8
    >>> loss, gradients = adversarial_gradients(adversarial_parameters(), source, labels, target)
    >>> print(round(loss, 4), gradients["domain_head"][-1][0].shape)
    3.6845 (5, 6)
    """
    if set(parameters) != set(PARTS) or not all(parameters[part] for part in PARTS[1:]):
        raise ValueError(f"parameters must hold {', '.join(PARTS)}, and a layer in each head")
    source, target = float64_array("source", source), float64_array("target", target)
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(
            f"source (n, inputs) and target (m, inputs) are needed, "
            f"not {source.shape} and {target.shape}"
        )
    named = {
        f"{part} {i} {kind}": array
        for part in PARTS
        for i, layer in enumerate(parameters[part])
        for kind, array in zip("Wb", layer, strict=True)
    }
    units = np.shape(parameters["domain_head"][-1][1])
    domains = [np.zeros((len(source), *units)), np.ones((len(target), *units))]
    given = {"x": np.concatenate([source, target]), "labels": labels}
    graph = Graph(*given, "domains", *named)
    _build_adversarial(graph, parameters, (len(source), len(target)), scale, pooled)
    values = graph.forward(**given, domains=np.concatenate(domains), **named)
    found = graph.backward("loss")
    gradients = {
        part: [
            (found[f"{part} {i} W"], found[f"{part} {i} b"]) for i in range(len(parameters[part]))
        ]
        for part in PARTS
    }
    return float(values["loss"]), gradients


def _build_adversarial(
    graph: Graph,
    parameters: Mapping[str, Layers],
    sizes: tuple[int, int],
    scale: float,
    pooled: bool,
) -> None:
    n, m = sizes
    depth = {part: len(parameters[part]) for part in PARTS}
    shared = _add_layers(graph, "features", "x", depth["features"], bare_last=False)
    graph.add("source features", Rows(0, n), shared).add("reversed", Reversal(scale), shared)
    classes = _add_layers(graph, "label_head", "source features", depth["label_head"])
    domain = _add_layers(graph, "domain_head", "reversed", depth["domain_head"])
    graph.add("label loss", SoftmaxCrossEntropy(), classes, "labels")
    if pooled:
        graph.add("domain loss", BinaryCrossEntropy(), domain, "domains")
    else:
        for batch, start, stop in (("source", 0, n), ("target", n, n + m)):
            graph.add(f"{batch} logits", Rows(start, stop), domain)
            graph.add(f"{batch} domains", Rows(start, stop), "domains")
            logits, domains = f"{batch} logits", f"{batch} domains"
            graph.add(f"{batch} domain loss", BinaryCrossEntropy(), logits, domains)
        graph.add("domain loss", Add(), "source domain loss", "target domain loss")
    graph.add("loss", Add(), "label loss", "domain loss")


def _add_layers(graph: Graph, part: str, feed: str, depth: int, bare_last: bool = True) -> str:
    """Add the part's affine gates, each with a tanh, the last without if bare; name the last."""
    for i in range(depth):
        graph.add(f"{part} {i}", Affine(), feed, f"{part} {i} W", f"{part} {i} b")
        feed = f"{part} {i}"
        if i < depth - 1 or not bare_last:
            graph.add(f"{part} {i} tanh", Tanh(), feed)
            feed += " tanh"
    return feed
