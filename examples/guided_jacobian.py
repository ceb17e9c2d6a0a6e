"""The Jacobian of one output column with respect to the input, under guided backpropagation.

The trap was an override that nobody called: the shape was right and the gradient the plain one.
So this page compares with the plain gradient, and says how far apart the two are.
"""

import torch
from torch import nn

from pyrevgrad import EXACT, GUIDED
from pyrevgrad.nn import Activation


def network(rule):
    """A small network on sequences (batch, 20, 32) whose relus carry `rule`."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(20, 16, 3, padding=1),
        Activation("relu", rule),
        nn.Flatten(),
        nn.Linear(16 * 32, 24),
        Activation("relu", rule),
        nn.Linear(24, 5),
    )


def column_jacobian(model, x, column):
    """d output[:, column] / d x, one row per sample: the samples do not mix."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(model(x)[:, column].sum(), x)[0]


def main():
    torch.manual_seed(1)
    x = torch.randn(64, 20, 32)
    plain = column_jacobian(network(EXACT), x, column=3)
    guided = column_jacobian(network(GUIDED), x, column=3)
    angle = torch.cosine_similarity(plain.flatten(1), guided.flatten(1))
    print(f"the Jacobian of column 3 has shape {tuple(guided.shape)}")
    changed = (plain != guided).float().mean()
    print(f"share of entries that differ from the plain gradient: {changed:.3f}")
    print(f"cosine to the plain gradient, mean over samples: {angle.mean():.3f}")


if __name__ == "__main__":
    main()
