"""A neuron, sigmoid(Σ x·w + b), that learns OR from the gradients it sends back."""

import math

import numpy as np

from pyrevgrad.reference.circuits import neuron

SAMPLES = [((0.0, 0.0), 0), ((0.0, 1.0), 1), ((1.0, 0.0), 1), ((1.0, 1.0), 1)]


def epoch(w, b, rate=1.0):
    """Step once on every sample; return the new w and b and the mean cross-entropy before."""
    loss = 0.0
    for x, label in SAMPLES:
        value, (_, gradient_w, gradient_b) = neuron(x, w, b)
        loss -= math.log(value if label else 1 - value) / len(SAMPLES)
        loss_in_value = -1 / value if label else 1 / (1 - value)
        w = w - rate * loss_in_value * gradient_w
        b = b - rate * loss_in_value * gradient_b
    return w, b, loss


def main():
    value, (gradient_x, gradient_w, gradient_b) = neuron([1.0, -2.0], [0.5, 0.25], 0.1)
    print(f"sigmoid(1·0.5 - 2·0.25 + 0.1) = {value:.4f}")
    print(f"gradients: x {gradient_x.round(4)}, w {gradient_w.round(4)}, b {gradient_b:.4f}\n")
    w, b = np.zeros(2), 0.0
    for i in range(201):
        w, b, loss = epoch(w, b)
        if i % 40 == 0:
            print(f"learning OR, epoch {i:3d}: loss {loss:.4f}")
    for x, label in SAMPLES:
        print(f"{x} -> {neuron(x, w, b)[0]:.3f}, wanted {label}")


if __name__ == "__main__":
    main()
