"""The Jacobian of one output column with respect to the input, under guided backpropagation.

The model is anybody's: its relus are a layer and a function. The trap was an override that nobody
called: the shape was right and the gradient the plain one. So the swap says what it replaced,
raises when that is nothing, and proves by numbers that the gradients are the rule's.
"""

import torch
from torch import nn

import pyrevgrad
from pyrevgrad import GUIDED
from pyrevgrad.attribution import jacobian


class Network(nn.Module):
    """A small network on sequences (batch, 20, 32), which knows nothing of pyrevgrad."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv1d(20, 16, 3, padding=1)
        self.relu = nn.ReLU()
        self.first = nn.Linear(16 * 32, 24)
        self.last = nn.Linear(24, 5)

    def forward(self, x):
        h = self.relu(self.convolution(x)).flatten(1)
        return self.last(torch.relu(self.first(h)))


def column_jacobian(model, x, column):
    """d output[:, column] / d x, one row per sample: the samples do not mix."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(model(x)[:, column].sum(), x)[0]


def main():
    torch.manual_seed(1)
    x = torch.randn(64, 20, 32)
    model = Network()
    plain = column_jacobian(model, x, column=3)
    with pyrevgrad.swap(model, GUIDED) as swapped:
        guided = column_jacobian(model, x, column=3)
        proof = swapped.verify(x)
    print(swapped.report)
    print(f"\n{proof}\n")
    print(f"the Jacobian of column 3 has shape {tuple(guided.shape)}")
    angle = torch.cosine_similarity(plain.flatten(1), guided.flatten(1))
    changed = (plain != guided).float().mean()
    print(f"share of entries that differ from the plain gradient: {changed:.3f}")
    print(f"cosine to the plain gradient, mean over samples: {angle.mean():.3f}")
    columns = jacobian(model, x, rule=GUIDED)
    print(f"all five columns in one call: {tuple(columns.shape)}")


if __name__ == "__main__":
    main()
