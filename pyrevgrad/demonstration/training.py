"""The demo's training: one small network, with and without GradientReversal, and its accuracies.

May import torch, the public functions and layers, and the demo's digits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

import pyrevgrad

from .digits import Digits

PIXELS, HIDDEN, FEATURES, DOMAIN_HIDDEN, CLASSES = 64, 128, 64, 128, 10


@dataclass(frozen=True)
class Settings:
    """What both trainings share; chosen on seeds 100 to 107, which the demo does not report.

    Momentum is .5, not Ganin's .9: with .9 the domain head and the features overshoot each other
    and the target accuracy of a seed depends on where in that swing training stops.
    """

    epochs: int = 80
    batch: int = 32
    learning_rate: float = 0.2
    momentum: float = 0.5
    gamma: float = 10.0


@dataclass(frozen=True)
class Training:
    """One training: classifier and domain head as they stood after each epoch, the start first."""

    classifiers: list[torch.nn.Module]
    domain_heads: list[torch.nn.Module]

    @property
    def classifier(self) -> torch.nn.Module:
        """The classifier with its last-epoch weights."""
        return self.classifiers[-1]


@dataclass(frozen=True)
class Accuracies:
    """Fractions correct after each epoch, the start first."""

    source: list[float]
    target: list[float]
    target_in_training: list[float]
    domain: list[float]


def build_classifier(rule: pyrevgrad.Rule = pyrevgrad.EXACT) -> torch.nn.Sequential:
    """The label path 64-128-64-10, every activation a relu with `rule`."""
    return torch.nn.Sequential(
        torch.nn.Linear(PIXELS, HIDDEN),
        pyrevgrad.nn.Activation("relu", rule=rule),
        torch.nn.Linear(HIDDEN, FEATURES),
        pyrevgrad.nn.Activation("relu", rule=rule),
        torch.nn.Linear(FEATURES, CLASSES),
    )


def build_domain_head(first: torch.nn.Module) -> torch.nn.Sequential:
    """The domain path 64-128-1 behind `first`, a GradientReversal."""
    return torch.nn.Sequential(
        first,
        torch.nn.Linear(FEATURES, DOMAIN_HIDDEN),
        pyrevgrad.nn.Activation("relu"),
        torch.nn.Linear(DOMAIN_HIDDEN, 1),
    )


def build(seed: int, first: torch.nn.Module) -> tuple[torch.nn.Sequential, torch.nn.Sequential]:
    """Classifier and domain head with the initial weights of `seed`, whatever `first` is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_classifier(), build_domain_head(first)


def train(
    source: torch.Tensor,
    labels: torch.Tensor,
    target: torch.Tensor,
    *,
    reversal: bool,
    seed: int,
    settings: Settings,
    after_epoch: Callable[[], Any] = lambda: None,
) -> Training:
    """Train on labelled source and unlabelled target; target labels cannot be reached from here.

    The loss is the mean cross-entropy of the source labels plus the mean binary cross-entropy of
    domain 0 on source and 1 on target. With `reversal` the features receive −λ times the domain
    gradient, λ following Ganin's schedule; without, they receive none of it. Nothing else differs:
    `seed` alone decides the initial weights and the batches.

    Parameters
    ----------
    source, labels, target : torch.Tensor
        Source pixels (n, 64), their classes (n,), and target pixels (m, 64).
    reversal : bool
        Whether the `GradientReversal` before the domain head has Ganin's λ; else it has λ = 0,
        which is the baseline.
    seed : int
        Initial weights and order of the batches.
    settings : Settings
        Epochs, batch size and rates.
    after_epoch : callable
        Called after each epoch, for a progress bar.
    """
    steps_per_epoch = len(source) // settings.batch
    steps = settings.epochs * steps_per_epoch
    schedule = pyrevgrad.schedules.GaninSchedule(steps, gamma=settings.gamma)
    # λ = 0 sends nothing back: the domain head trains, and the features do not hear of it.
    first = pyrevgrad.nn.GradientReversal(schedule if reversal else 0.0)
    classifier, domain_head = build(seed, first)
    parameters = [*classifier.parameters(), *domain_head.parameters()]
    optimizer = torch.optim.SGD(parameters, settings.learning_rate, momentum=settings.momentum)
    rate = pyrevgrad.schedules.GaninLearningRate(optimizer, steps)
    domains = torch.cat([torch.zeros(settings.batch), torch.ones(settings.batch)])
    batches = torch.Generator().manual_seed(seed)
    training = Training([copy.deepcopy(classifier)], [copy.deepcopy(domain_head[1:])])
    for _ in range(settings.epochs):
        source_order = endless(len(source), steps_per_epoch * settings.batch, batches)
        target_order = endless(len(target), steps_per_epoch * settings.batch, batches)
        for step in range(steps_per_epoch):
            here = slice(step * settings.batch, (step + 1) * settings.batch)
            picked = source_order[here]
            features = classifier[:4](torch.cat([source[picked], target[target_order[here]]]))
            label_loss = functional.cross_entropy(
                classifier[4](features[: settings.batch]), labels[picked]
            )
            domain_loss = functional.binary_cross_entropy_with_logits(
                domain_head(features)[:, 0], domains
            )
            optimizer.zero_grad()
            (label_loss + domain_loss).backward()
            optimizer.step()
            rate.step()
            schedule.step()
        training.classifiers.append(copy.deepcopy(classifier))
        training.domain_heads.append(copy.deepcopy(domain_head[1:]))
        after_epoch()
    return training


def endless(items: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """`length` indices below `items` in random order, beginning again when all are used."""
    order = torch.randperm(items, generator=generator)
    return order.repeat(-(-length // items))[:length]


@torch.no_grad()
def score(training: Training, digits: Digits) -> Accuracies:
    """Accuracies of every kept epoch, computed when training is over.

    `domain` is the domain head's mean accuracy over held-out source and unseen target; .5 means
    that it cannot tell them apart.
    """

    def correct(classifier: torch.nn.Module, part: Any) -> float:
        return (classifier(part.flat).argmax(1) == part.labels).double().mean().item()

    def domain(classifier: torch.nn.Module, head: torch.nn.Module) -> float:
        trunk = classifier[:4]  # type: ignore[index]
        as_source = head(trunk(digits.source_held_out.flat)) <= 0
        as_target = head(trunk(digits.target_unseen.flat)) > 0
        return (as_source.double().mean().item() + as_target.double().mean().item()) / 2

    return Accuracies(
        [correct(classifier, digits.source_held_out) for classifier in training.classifiers],
        [correct(classifier, digits.target_unseen) for classifier in training.classifiers],
        [correct(classifier, digits.target) for classifier in training.classifiers],
        [
            domain(classifier, head)
            for classifier, head in zip(training.classifiers, training.domain_heads, strict=True)
        ],
    )
