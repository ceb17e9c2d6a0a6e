"""The generic adversarial network: features, a label head, and a domain head behind a reversal.

Every parameter takes the step p − μ·∂E/∂p. The domain head descends its loss; the features, whose
gradient comes back reversed and scaled, climb it.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from pyrevgrad.nn import GradientReversal


def tanh_layers(sizes, bare_last=False):
    """Linear layers of these sizes, each with a tanh, the last without if `bare_last`."""
    layers = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*(layers[:-1] if bare_last else layers))


class AdversarialNetwork(nn.Module):
    """Any sizes: `features`, `label_head` and `domain_head` list the outputs of their layers."""

    def __init__(self, inputs=2, features=(3, 4), label_head=(7, 8), domain_head=(5, 6), scale=0.5):
        super().__init__()
        shared = features[-1]
        self.features = tanh_layers([inputs, *features])
        self.label_head = tanh_layers([shared, *label_head], bare_last=True)
        self.reversal = GradientReversal(scale)
        self.domain_head = tanh_layers([shared, *domain_head], bare_last=True)

    def loss(self, source, labels, target):
        """Cross-entropy of the source labels plus that of domain 0 on source and 1 on target."""
        features = self.features(torch.cat([source, target]))
        label_loss = F.cross_entropy(self.label_head(features[: len(source)]), labels)
        logits = self.domain_head(self.reversal(features))
        domains = torch.zeros_like(logits)
        domains[len(source) :] = 1.0
        return label_loss + F.binary_cross_entropy_with_logits(logits, domains)

    def step(self, source, labels, target, rate=0.01):
        """Take one step of gradient descent; return the loss before it."""
        parameters = list(self.parameters())
        loss = self.loss(source, labels, target)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= rate * gradient
        return loss.item()


def main():
    torch.manual_seed(0)
    source, target = torch.randn(9, 2), torch.randn(10, 2) + 1.0
    labels = torch.arange(9) % 8
    network = AdversarialNetwork()
    print(network, "\n")
    for step in range(201):
        loss = network.step(source, labels, target)
        if step % 40 == 0:
            print(f"step {step:3d}: label loss + domain loss {loss:.4f}")


if __name__ == "__main__":
    main()
