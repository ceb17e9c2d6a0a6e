"""ReverseGradient: the identity forward, −λ·g backward, as a function and as a layer."""

import torch
from torch import nn

from pyrevgrad import reverse_gradient
from pyrevgrad.nn import GradientReversal


def as_a_function(scale):
    """Return the value and the gradient of the sum of `reverse_gradient` at 1, 2, 3."""
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = reverse_gradient(x, scale)
    y.sum().backward()
    return y.detach(), x.grad


def as_a_layer(scale):
    """Return the gradients of one weight without and with the layer before the head."""
    gradients = []
    for layers in ([], [GradientReversal(scale)]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), *layers, nn.Linear(3, 1))
        network(torch.tensor([[1.0, -1.0]])).sum().backward()
        gradients.append(network[0].weight.grad)
    return gradients


def main():
    value, gradient = as_a_function(0.5)
    print(f"forward  {value.tolist()}")
    print(f"backward {gradient.tolist()}\n")
    plain, reversed_ = as_a_layer(0.5)
    print("the gradient of the first weights, without and with GradientReversal(0.5):")
    for row, turned in zip(plain.tolist(), reversed_.tolist(), strict=True):
        print(*(f"{number:8.4f}" for number in row), "   ", *(f"{n:8.4f}" for n in turned))


if __name__ == "__main__":
    main()
