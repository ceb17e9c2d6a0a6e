"""Inter-twinning moons: target accuracy with and without adaptation, one sample at a time.

The published program's settings, from its authors: 15 sigmoid units, weights uniform in
±√(6 / (in + out)), biases and domain head from zero, plain gradient descent at .05, 500 epochs,
source samples in order with a random target sample beside each. λ = 6 there multiplies the sum of
the two samples' domain losses, for head and features alike; the reversal's own scale is 1. In
`DANN`, whose domain loss is the mean of the two, that is ``domain_weight=12, scale=1``.

All runs are trained side by side, with one more dimension in front of every tensor. Their losses
are added, so that each run's gradient is its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import pyrevgrad
from pyrevgrad.adaptation.datasets import moons

HIDDEN, RATE, EPOCHS, WEIGHT = 15, 0.05, 500, 6.0
SEEDS = (0, 1, 2, 3, 4)

Weights = dict[str, Tensor]


def initial(seeds: list[int]) -> Weights:
    """The weights of every run, (runs, in, out), and its biases, (runs, 1, out)."""
    sizes = {"features": (2, HIDDEN), "label": (HIDDEN, 2), "domain": (HIDDEN, 1)}
    made = {}
    for name, (before, after) in sizes.items():
        bound = math.sqrt(6 / (before + after))
        drawn = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(1000 * len(made) + seed)
            uniform = torch.rand(before, after, generator=generator, dtype=torch.float64)
            drawn.append((2 * uniform - 1) * bound * (name != "domain"))
        made[f"{name}.weight"] = torch.stack(drawn).requires_grad_()
        made[f"{name}.bias"] = torch.zeros(len(seeds), 1, after).double().requires_grad_()
    return made


def features_of(weights: Weights, x: Tensor) -> Tensor:
    """Features (runs, samples, 15) of x (runs, samples, 2)."""
    linear = x @ weights["features.weight"] + weights["features.bias"]
    return pyrevgrad.sigmoid(linear)


def label_logits(weights: Weights, features: Tensor) -> Tensor:
    """Label logits (runs, samples, 2)."""
    return features @ weights["label.weight"] + weights["label.bias"]


def losses(weights: Weights, x: Tensor, label: Tensor, beside: Tensor, weight: Tensor) -> Tensor:
    """The loss of every run, on one source sample x (2,) and its own target sample (runs, 2)."""
    runs = len(beside)
    both = torch.stack([x.expand(runs, 2), beside], 1)
    found = features_of(weights, both)
    label_loss = F.cross_entropy(
        label_logits(weights, found[:, :1])[:, 0], label.expand(runs), reduction="none"
    )
    turned = pyrevgrad.reverse_gradient(found, 1.0)
    logits = (turned @ weights["domain.weight"] + weights["domain.bias"])[:, :, 0]
    domains = torch.tensor([0.0, 1.0]).double().expand(runs, 2)
    domain_loss = F.binary_cross_entropy_with_logits(logits, domains, reduction="none").sum(1)
    return label_loss + weight * domain_loss


def step(weights: Weights, *batch: Tensor) -> None:
    """One step of plain gradient descent, in every run."""
    parameters = list(weights.values())
    gradients = torch.autograd.grad(losses(weights, *batch).sum(), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(gradient, alpha=RATE)


@torch.no_grad()
def right(weights: Weights, x: Tensor, labels: Tensor) -> list[float]:
    """The share of samples that each run gets right."""
    logits = label_logits(
        weights, features_of(weights, x.expand(len(weights["label.bias"]), -1, 2))
    )
    return (logits.argmax(2) == labels).double().mean(1).tolist()


def train(
    seeds: tuple[int, ...] = SEEDS,
    epochs: int = EPOCHS,
    every: int = 10,
    after_epoch: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, list[list[float]]]]:
    """Train every seed with and without adaptation.

    Returns
    -------
    dict
        ``adapted`` and ``plain``, each with ``source`` and ``target``: per run the share of samples
        that are right after 0, `every`, 2·`every`, … epochs. The target's labels are used for this
        alone.
    """
    (x, y), (target, answers) = moons()
    runs = [*seeds, *seeds]
    weights = initial(runs)
    weight = torch.tensor([WEIGHT] * len(seeds) + [0.0] * len(seeds)).double()
    draws = [torch.Generator().manual_seed(seed) for seed in runs]
    curves: list[dict[str, list[float]]] = []
    for epoch in range(epochs + 1):
        if epoch % every == 0:
            here = {"source": right(weights, x, y), "target": right(weights, target, answers)}
            curves.append(here)
        if epoch < epochs:
            picked = torch.stack(
                [torch.randint(len(target), (len(x),), generator=draw) for draw in draws]
            )
            for i in range(len(x)):
                step(weights, x[i], y[i], target[picked[:, i]], weight)
            after_epoch()
    halves = {"adapted": range(len(seeds)), "plain": range(len(seeds), 2 * len(seeds))}
    return {
        name: {
            domain: [[curve[domain][run] for curve in curves] for run in half]
            for domain in ("source", "target")
        }
        for name, half in halves.items()
    }
