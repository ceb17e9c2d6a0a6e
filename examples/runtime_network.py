"""A network built at run time: hidden sizes from a list, and a penalty on every layer's numbers."""

import torch
import torch.nn.functional as F
from torch import nn

from pyrevgrad.nn import Activation


def build(hidden=(8, 6, 4, 8, 16), inputs=10, outputs=32):
    """Tanh layers of the `hidden` sizes, then a linear one for the softmax."""
    layers, before = [], inputs
    for size in hidden:
        layers += [nn.Linear(before, size), Activation("tanh")]
        before = size
    return nn.Sequential(*layers, nn.Linear(before, outputs))


def loss(model, x, labels, penalty=0.1):
    """Cross-entropy + penalty·Σ(w²) + Σ(b²) over every layer."""
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    weights = sum(layer.weight.square().sum() for layer in linear)
    biases = sum(layer.bias.square().sum() for layer in linear)
    return F.cross_entropy(model(x), labels) + penalty * weights + biases


def step(model, x, labels, rate=0.01):
    """p − rate·∂E/∂p for every parameter; return the loss before."""
    before = loss(model, x, labels)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(before, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= rate * gradient
    return before.item()


def main():
    torch.manual_seed(0)
    model = build()
    x, labels = torch.randn(128, 10), torch.randint(32, (128,))
    print(model, "\n")
    for i in range(201):
        before = step(model, x, labels)
        if i % 40 == 0:
            print(f"step {i:3d}: loss {before:.4f}")


if __name__ == "__main__":
    main()
