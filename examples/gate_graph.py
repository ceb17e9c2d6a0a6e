"""Modular backprop: gates in a graph, run in topological order and back.

The same graph runs three times, with a relu, with a guided relu and with a relu behind a gradient
reversal: the values stay, the gradients before that place change.
"""

from pyrevgrad.reference.circuits import Graph
from pyrevgrad.reference.gates import Add, GuidedRelu, Multiply, Relu, Reversal

VALUES = {"x": [3.0, 1.0, -2.0], "y": [-1.0, 4.0, 1.0], "z": [2.0, -3.0, 5.0]}


def build(relu, reversed_=False):
    """Return relu(x + y) · z as a graph, the sum through a reversal if asked."""
    graph = Graph("x", "y", "z")
    graph.add("product", Multiply(), "active", "z")
    graph.add("active", relu, "turned" if reversed_ else "sum")
    graph.add("sum", Add(), "x", "y")
    if reversed_:
        graph.add("turned", Reversal(0.5), "sum")
    return graph


def main():
    variants = {
        "relu": build(Relu()),
        "guided relu": build(GuidedRelu()),
        "relu behind Reversal(0.5)": build(Relu(), reversed_=True),
    }
    for title, graph in variants.items():
        values = graph.forward(**VALUES)
        gradients = graph.backward("product", [1.0, 1.0, 1.0])
        print(f"{title}, run in the order {', '.join(graph.order())}")
        for name, value in values.items():
            print(f"  {name:8} = {value!s:16} gradient {gradients[name]}")


if __name__ == "__main__":
    main()
